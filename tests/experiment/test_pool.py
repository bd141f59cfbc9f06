"""Worker processes: killed, replaced, interrupted, orphaned."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY, deterministic

import fedsiege
from fedsiege.cli import execute
from fedsiege.errors import FedSiegeError
from fedsiege.experiment import run
from fedsiege.experiment.cell import Ended, Work
from fedsiege.experiment.config import load
from fedsiege.experiment.grid import Grid
from fedsiege.experiment.pool import LocalPool, Started

DEADLY = """
import os, signal
from pathlib import Path
from typing import Literal
from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.registry import register

@register("deadly")
class Deadly(MembershipAttack):
    '''An attack that kills its process, always or, with a file, once.'''
    title = "Deadly"
    needs = frozenset({"loss"})
    multi_round = True
    vantage: Literal["server"] = "server"
    '''Where it works from.'''
    once: str = ""
    '''A file that says that it has done so.'''

    def score(self, view, target):
        if not self.once or not Path(self.once).exists():
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return -view.own("loss", target, 0)
"""

LONG = {**TINY, "rounds": 120, "record_every": 40, "checkpoint_every": 5, "attacks": ["loss_series"]}
"""Rounds enough to be killed in."""


def works(place: Path, *attacks: Any) -> tuple[Work, ...]:
    """Cells with one attack each, which share their training."""
    folders = [place / f"cell{i}" for i in range(len(attacks))]
    return tuple(
        Work(i, folder, load({**TINY, "attacks": [attack]}), tuple(one for one in folders if one != folder))
        for i, (folder, attack) in enumerate(zip(folders, attacks, strict=True))
    )


def test_a_worker_that_is_killed_is_replaced_and_its_cell_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    once = {"name": "own_deadly:Deadly", "once": str(tmp_path / "flag")}
    bundle = works(tmp_path, once, "own_deadly:Deadly", "loss_series")
    pool = LocalPool(1, 1, tmp_path / "log")
    said = [event for event in pool.events([bundle], 0.5) if event is not None]
    assert said == [
        *(Started(0), Started(0), Ended(0, None)),
        *(Started(1), Started(1), Ended(1, "its worker process was killed (SIGKILL), 2 times")),
        *(Started(2), Ended(2, None)),
    ]
    trained = [(tmp_path / f"cell{i}" / "checkpoint.safetensors").stat().st_ino for i in range(3)]
    assert len(set(trained)) == 1, "nothing is trained again"
    assert not (tmp_path / "log").exists()


def test_workers_end_with_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    events = LocalPool(2, 3, tmp_path / "log").events([works(tmp_path / n, "loss_series") for n in "ab"], 0.01)
    assert next(events) is None
    children = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    ours = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ours) == 2
    assert b"OMP_NUM_THREADS=3" in Path(f"/proc/{ours[0]}/environ").read_bytes()
    events.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in ours)
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_worker_that_cannot_begin_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("fedsiege.experiment.pool.serve", os.getenv)  # three arguments are too many for it
    with pytest.raises(
        FedSiegeError, match=r"ended with exit code 1 before it could begin; a script calls fedsiege"
    ):
        list(LocalPool(1, 1, tmp_path / "log").events([works(tmp_path, "loss_series")], 5))
    assert capfd.readouterr().err.count("TypeError") == 2


def until(what: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def locked(folder: Path) -> bool:
    path = folder / ".lock"
    if not path.exists():
        return False
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture
def sweeping(tmp_path: Path) -> Any:
    """Starts `fedsiege sweep` of long cells in a process of its own, and waits until one has trained a little."""
    started = []

    def start() -> tuple[subprocess.Popen[str], Path, list[Path]]:
        grid, place = tmp_path / "grid.yaml", tmp_path / "out"
        grid.write_text(yaml.safe_dump({"experiment": LONG, "seeds": [0, 1]}))
        process = subprocess.Popen(
            [sys.executable, "-m", "fedsiege", "sweep", str(grid), "--out", str(place), "--jobs", "2"],
            env={**os.environ, "PYTHONPATH": str(Path(fedsiege.__file__).parents[1])},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        cells = [place / "cells" / "base" / f"seed{seed}" for seed in (0, 1)]
        until(lambda: any((cell / "checkpoint.safetensors").is_file() for cell in cells))
        return process, place, cells

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_killed_sweep_goes_on_to_the_same_bytes(sweeping: Any, tmp_path: Path) -> None:
    process, place, cells = sweeping()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not any(locked(cell) for cell in cells), 10)
    assert not any((cell / "result.json").exists() for cell in cells), "it was killed too late"
    grid = tmp_path / "grid.yaml"
    assert execute(["sweep", str(grid), "--out", str(place), "-q"]) == 2, "nothing is overwritten"
    assert execute(["sweep", str(grid), "--out", str(place), "-q", "--resume", "--jobs", "2"]) == 0
    for cell, one in zip(cells, Grid.load(grid)[0].cells_of("grid"), strict=True):
        alone = tmp_path / f"alone{one.seed}"
        run(one.experiment.model_dump(mode="json"), alone, progress=False)
        assert deterministic(cell) == deterministic(alone)


def test_control_c_ends_the_workers_and_says_how_to_go_on(sweeping: Any) -> None:
    process, place, cells = sweeping()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody gets it
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "fedsiege: error: interrupted; go on with --resume\n"
    assert not any(locked(cell) for cell in cells)
    assert [cell["status"] for cell in json.loads((place / "sweep.json").read_text())["cells"]] == ["missing"] * 2
    assert not (place / "sweep.log").exists()
