"""Cells as tasks of a Ray cluster: two nodes on loopback, started and ended here."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_pool import DEADLY
from tiny import TINY, deterministic

import fedsiege
from fedsiege.experiment import run
from fedsiege.experiment.cell import Ended, Work
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.grid import Grid
from fedsiege.experiment.pool import Started
from fedsiege.experiment.ray_pool import Site, carry_out_all

HEAD, SECOND = "127.0.0.2", "127.0.0.3"

NETWORK = """
import os
from pathlib import Path
import torch

def network(input_shape, classes):
    Path(__file__).with_name(f"seen-{os.environ['NODE']}").touch()
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(input_shape[0], 8), torch.nn.Linear(8, classes))
"""
"""A model of one's own that writes down on which node it was made."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster of two nodes with one CPU each."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; it comes with the extra flower")
    with socket.socket() as free:
        free.bind((HEAD, 0))
        address = f"{HEAD}:{free.getsockname()[1]}"
    started: list[subprocess.Popen[bytes]] = []

    def start(ip: str, *options: str) -> None:
        environment = {**os.environ, "NODE": ip, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", *options]
        with (tmp_path / f"ray-{ip}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [*command, f"--node-ip-address={ip}", "--disable-usage-stats"],
                    env={**environment, "PYTHONPATH": str(Path(fedsiege.__file__).parents[1])},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        end = time.monotonic() + 120
        while b"Ray runtime started" not in (tmp_path / f"ray-{ip}.log").read_bytes():
            assert started[-1].poll() is None, (tmp_path / f"ray-{ip}.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)

    # Not below tmp_path: the names of sockets are short.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        try:
            port = address.rpartition(":")[2]
            start(HEAD, "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
            start(SECOND, f"--address={address}")
            yield address
        finally:
            for process in reversed(started):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.mark.flower
def test_both_nodes_of_a_cluster_work_and_a_dead_task_is_tried_once_more(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "own_network.py").write_text(NETWORK)
    (tmp_path / "own_deadly.py").write_text(DEADLY)
    grid = {
        "experiment": {**TINY, "rounds": 4, "model": "own_network:network"},
        "axes": {
            "attacks": {
                "once": [{"name": "own_deadly:Deadly", "once": str(tmp_path / "flag")}],
                "always": ["own_deadly:Deadly"],
                "good": ["loss_series"],
            }
        },
        "seeds": [0, 1, 2],
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    done = subprocess.run(
        [sys.executable, "-m", "fedsiege", "sweep", "grid.yaml", "--out", "out", "--engine", "ray"],
        cwd=tmp_path,
        env={
            **{**os.environ, "RAY_ADDRESS": cluster, "NODE": "driver"},
            "PYTHONPATH": str(Path(fedsiege.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    place = tmp_path / "out"
    cells = json.loads((place / "sweep.json").read_text())["cells"]
    assert [(cell["axes"]["attacks"], cell["status"]) for cell in cells] == [
        (name, status)
        for name, status in (("once", "done"), ("always", "failed"), ("good", "done"))
        for _ in range(3)
    ]
    for cell in cells[3:6]:
        assert cell["error"].startswith("its Ray task ended 2 times: WorkerCrashedError: The worker died")
    seen = {path.name for path in tmp_path.glob("seen-*")}
    assert seen == {"seen-driver", f"seen-{HEAD}", f"seen-{SECOND}"}, "the driver only tries the cells"
    for cell in cells[6:]:
        folders = [place / other["folder"] for other in cells if other["seed"] == cell["seed"]]
        inodes = {(folder / "trace" / "round_000004.safetensors").stat().st_ino for folder in folders}
        assert len(inodes) == 1, "trained once"


@pytest.mark.flower
def test_ray_starts_by_itself_on_loopback_where_there_is_none(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; it comes with the extra flower")
    grid = {"experiment": {**TINY, "rounds": 4, "attacks": ["loss_series"]}, "budget": 0.1}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "fedsiege", "sweep", "grid.yaml", "--out", "out", "--engine", "ray", "-q"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(Path(fedsiege.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (cell,) = Grid.load(grid)[0].cells_of("grid")
    run(cell.experiment.model_dump(mode="json"), tmp_path / "alone", progress=False)
    assert deterministic(tmp_path / "out" / cell.folder) == deterministic(tmp_path / "alone")


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    def told(site: Site) -> Any:
        works = tuple(Work(i, tmp_path / str(i), Experiment(), ()) for i in range(2))
        return list(carry_out_all(works, site))

    nowhere = Site(tmp_path / "away" / "log", "12\n", str(tmp_path), ())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".lock").write_text("13\n")
    another = Site(tmp_path / "other" / "log", "12\n", str(tmp_path), ())
    for site in (nowhere, another):
        fault = (
            f"{site.log.parent}: node {socket.gethostname()} does not see what the sweep writes there; expected a "
            "folder on storage that every node of the cluster sees"
        )
        assert told(site) == [Started(0), Ended(0, fault), Started(1), Ended(1, fault)]
    gone = Site(tmp_path / "other" / "log", "13\n", str(tmp_path / "gone"), ())
    fault = f"{tmp_path / 'gone'}: not on node {socket.gethostname()}; expected the folder of the command there too"
    assert told(gone)[1] == Ended(0, fault)
