"""A whole sweep: what it leaves, what is shared, what goes wrong, and that going on changes nothing."""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import TINY, deterministic, files

from fedsiege.cli import execute
from fedsiege.errors import InputError, ThreatModelError
from fedsiege.experiment import run, sweep
from fedsiege.experiment.cell import LOG, Work, carry_out
from fedsiege.experiment.config import load
from fedsiege.experiment.grid import Grid
from fedsiege.experiment.pool import Event, LocalPool, Started
from fedsiege.experiment.prepare import Shelf
from fedsiege.experiment.sharing import bundles, share, training

MODULE = importlib.import_module("fedsiege.experiment.sweep")
ONE, TWO = ["loss_series"], ["loss_series", "fedmia_ii"]
GRID: dict[str, Any] = {
    "title": "Tiny",
    "experiment": {**TINY, "rounds": 4},
    "axes": {
        "attacks": {"one": ONE, "two": TWO},
        "defences": {"none": [], "perturb 0.05": [{"name": "perturb", "sigma": 0.05}]},
    },
    "seeds": [0, 1],
}

FAULTY = """
from typing import Literal
import numpy as np
from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.registry import register

@register("faulty")
class Faulty(MembershipAttack):
    '''An attack that raises.'''
    title = "Faulty"
    needs = frozenset({"loss"})
    multi_round = True
    vantage: Literal["server"] = "server"
    '''Where it works from.'''

    def score(self, view, target):
        raise ZeroDivisionError("a fault\\nof one's own")
"""


class Here:
    """A pool of this very process: everything but the processes."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def events(self, bundles: Sequence[tuple[Work, ...]], every: float) -> Generator[Event | None]:
        yield None
        for works in bundles:
            for work in works:
                yield Started(work.place)
                yield carry_out(work, self.log, Shelf())


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_pool", lambda engine, jobs, place: Here(place / LOG))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole sweep in two worker processes."""
    place = tmp_path_factory.mktemp("sweep") / "out"
    sweep(GRID, place, jobs=2, progress=False)
    return place


def content(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "sweep.json").read_text())
    return found


def runs(place: Path) -> dict[tuple[str, int], Path]:
    return {(cell["name"], cell["seed"]): place / cell["folder"] for cell in content(place)["cells"]}


def scores(place: Path) -> dict[str, bytes]:
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("scores.parquet")}


def test_a_sweep_leaves_its_files_and_no_others(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == {
        *(".lock", "grid.yaml", "cells", "sweep.json", "report.html", "frontier.csv", "table.csv", "table.tex"),
        "figures",
    }
    assert len(list(done.glob("cells/*/seed*/report.html"))) == 8
    written = yaml.safe_load((done / "grid.yaml").read_text())
    assert written["experiment"] == GRID["experiment"]
    assert written["axes"] == GRID["axes"]


def test_what_sweep_json_says(done: Path) -> None:
    found = content(done)
    assert {key: found[key] for key in found if key != "cells"} == {
        "schema": 1,
        "title": "Tiny",
        "description": "",
        "budget": 0.02,
        "axes": {"attacks": ["one", "two"], "defences": ["none", "perturb 0.05"]},
        "seeds": [0, 1],
        "paper": None,
    }
    cell = next(c for c in found["cells"] if c["name"] == "attacks=two, defences=perturb 0.05" and c["seed"] == 1)
    result = json.loads((done / cell["folder"] / "result.json").read_text())
    assert cell["axes"] == {"attacks": "two", "defences": "perturb 0.05"}
    assert (cell["status"], cell["error"], cell["idle"]) == ("done", None, [])
    assert (cell["defences"], cell["labels"]) == (["perturb"], [result["components"][0]["label"]])
    assert cell["accuracy"] == result["task"]["accuracy"]
    assert cell["train_accuracy"] == result["task"]["train_accuracy"]
    assert cell["wall_seconds"] == result["cost"]["wall_seconds"]
    pooled = [one for one in result["attacks"] if (one["target"], one["against"]) == ("pooled", "all")]
    assert [one["attack"] for one in cell["attacks"]] == [one["attack"] for one in pooled] == TWO
    for ours, theirs in zip(cell["attacks"], pooled, strict=True):
        assert ours["auc"]["value"] == theirs["auc"]["value"]
        assert set(ours["auc"]) == {"value", "low", "high", "n"}
        assert ours["adapted"] is False
        rate = ours["tpr_at_fpr"]["0.001"]
        assert set(rate) == {"value", "low", "high", "n", "false_positives", "warning"}
        assert all(rate[key] == theirs["tpr_at_fpr"]["0.001"][key] for key in ("false_positives", "warning"))
        assert all(ours[key] == theirs[key] for key in ("n_nonmembers", "n_distinct_nonmembers"))
    assert cell["changes"] == {}
    assert found["cells"][0]["defences"] == found["cells"][0]["labels"] == []


def test_a_cell_is_the_run_of_its_config(done: Path, tmp_path: Path) -> None:
    cell = runs(done)["attacks=two, defences=perturb 0.05", 1]
    run(cell / "config.yaml", tmp_path / "alone", progress=False)
    assert deterministic(tmp_path / "alone") == deterministic(cell)


def test_what_differs_only_after_training_is_trained_once(done: Path) -> None:
    found = runs(done)
    trained: dict[tuple[str, int], list[list[int]]] = {}
    for (name, seed), folder in found.items():
        inodes = [path.stat().st_ino for path in sorted((folder / "trace").glob("round_*"))]
        inodes.append((folder / "checkpoint.safetensors").stat().st_ino)
        trained.setdefault((name.partition("defences")[2], seed), []).append(inodes)
    assert len(trained) == 4
    for ours in trained.values():
        assert ours[0] == ours[1]
    assert len({tuple(ours[0]) for ours in trained.values()}) == 4


@pytest.mark.usefixtures("_here")
def test_going_on_with_a_finished_sweep_touches_no_cell(done: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    shutil.copytree(done, place)
    before = files(place / "cells")
    said = (place / "sweep.json").read_bytes()
    sweep(GRID, place, resume=True, progress=False)
    assert files(place / "cells") == before
    assert (place / "sweep.json").read_bytes() == said


@pytest.mark.usefixtures("_here")
def test_only_what_is_missing_is_run_again_and_takes_the_training_of_the_others(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    shutil.copytree(done, place)
    found = runs(place)
    gone, stays = found["attacks=two, defences=none", 0], found["attacks=one, defences=none", 0]
    half = found["attacks=one, defences=none", 1]
    shutil.rmtree(gone)
    (half / "result.json").unlink()
    before = files(stays)
    monkeypatch.setattr("fedsiege.federation.local.train", None)  # any training would raise
    sweep(GRID, place, resume=True, progress=False)
    assert files(stays) == before
    assert scores(place) == scores(done)
    assert {cell["status"] for cell in content(place)["cells"]} == {"done"}
    donor = stays / "trace" / "round_000004.safetensors"
    assert (gone / "trace" / "round_000004.safetensors").stat().st_ino == donor.stat().st_ino


@pytest.mark.usefixtures("_here")
def test_a_cell_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "own_faulty.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    grid = {
        "experiment": {**TINY, "rounds": 4},
        "axes": {
            "attacks": {"faulty": ["own_faulty:Faulty"], "good": ONE},
        },
        "cells": [{"name": "diverges", "set": {"training.lr": 1e30}}],
    }
    path, place = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(grid))
    assert execute(["sweep", str(path), "--out", str(place), "-q"]) == 1
    faulty, good, diverges = content(place)["cells"]
    assert (good["status"], good["accuracy"] > 0) == ("done", True)
    assert (faulty["status"], faulty["accuracy"], faulty["attacks"]) == ("failed", None, [])
    assert faulty["error"] == "ZeroDivisionError: a fault of one's own (traceback in sweep.log)"
    assert 'raise ZeroDivisionError("a fault' in (place / "sweep.log").read_text()
    assert diverges["status"] == "failed"
    assert "non-finite" in diverges["error"]
    assert "2 of 3 runs failed; the first is attacks=faulty, seed 0: ZeroDivisionError" in capsys.readouterr().err
    assert (place / "report.html").is_file()

    mended = FAULTY.replace(
        'raise ZeroDivisionError("a fault\\nof one\'s own")', "return view.own('loss', target, 0)"
    )
    assert mended != FAULTY
    (tmp_path / "own_faulty.py").write_text(mended)
    monkeypatch.delitem(sys.modules, "own_faulty")
    before = files(place / good["folder"])
    assert execute(["sweep", str(path), "--out", str(place), "-q", "--resume"]) == 1
    assert [cell["status"] for cell in content(place)["cells"]] == ["done", "done", "failed"]
    assert files(place / good["folder"]) == before


@pytest.mark.usefixtures("_here")
def test_resuming_with_another_grid_is_refused_by_the_field(done: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    shutil.copytree(done, place)
    before = files(place)
    for changes, message in (
        ({"seeds": [0]}, r"seeds was \[0, 1\] and is now \[0\]"),
        ({"experiment": {**TINY, "rounds": 5}}, "experiment.rounds was 4 and is now 5"),
        ({"axes": {"attacks": {"one": ONE, "two": ONE}}}, "axes.attacks.two was"),
        ({"set": {"rounds": 3}}, "set.rounds was None and is now 3"),
    ):
        with pytest.raises(InputError, match=f"{place}: cannot resume with a changed grid: {message}"):
            sweep({**GRID, **changes}, place, resume=True, progress=False)
    with pytest.raises(InputError, match="exists and is not empty; choose another --out, or --resume"):
        sweep(GRID, place, progress=False)
    assert files(place) == before


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("name", ["config.yaml", "report.html", "sweep.json"])
def test_a_folder_of_something_else_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        InputError, match=f"{tmp_path}: has {name} but no grid.yaml; it is not a sweep that can go on"
    ):
        sweep(GRID, tmp_path, resume=True, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_one_process_a_folder(tmp_path: Path) -> None:
    made, _ = Grid.load(GRID)
    with (
        MODULE.opened(tmp_path / "out", made, False),
        pytest.raises(InputError, match=f"process {os.getpid()} is running in it"),
    ):
        sweep(GRID, tmp_path / "out", resume=True, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"model": ["mlp", "mpl"]}}, "cell 'model=mpl': model: unknown model 'mpl' (did you mean 'mlp'?)"),
        ({"axes": {"model.hiden": [[1]]}}, "model.hiden: mlp has no such field (did you mean 'hidden'?)"),
        ({"axes": {"data": ["wines"]}}, "data: unknown data 'wines' (did you mean 'wine'?)"),
        ({"axes": {"partition": ["idd"]}}, "partition: unknown partition 'idd' (did you mean 'iid'?)"),
        ({"axes": {"defences": {"x": ["pertub"]}}}, "defences.0: unknown client defence 'pertub'"),
        ({"axes": {"targets": [9]}}, "targets"),
        ({"axes": {"attacks": {"x": ["fedmia_3"]}}}, "attacks.0: unknown membership attack 'fedmia_3'"),
    ],
)
def test_every_cell_is_checked_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        sweep({**GRID, **changes}, tmp_path / "out", progress=False)
    assert message in str(caught.value)
    assert str(caught.value).startswith("grid: cell '")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"defences": [{"name": "sample", "share": 0.1}]},
            r"cell 'late': defences\.0\.share: got 0\.1, which leaves",
        ),
        ({"defences": ["augment"]}, r"cell 'late': defences\.0\.strength: got 1, which moves images"),
        ({"candidates.ofl": 5000}, r"cell 'late': candidates\.ofl: got 5000"),
        ({"model": "cnn"}, r"cell 'late': model cnn: got inputs of shape \(13,\)"),
    ],
)
def test_what_only_the_data_tell_is_refused_before_the_first_cell_too(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        sweep({**GRID, "cells": [{"name": "late", "set": changes}]}, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_data_are_read_once_for_runs_that_ask_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def read(experiment: Any) -> object:
        asked.append(experiment.data)
        return object()

    monkeypatch.setattr("fedsiege.experiment.prepare.loaded", read)
    shelf = Shelf()
    wine, digits = load(TINY), load({**TINY, "data": "digits"})
    first = shelf(wine)
    assert shelf(load({**TINY, "rounds": 9})) is first
    assert shelf(digits) is not first
    assert shelf(digits) is shelf(digits)
    shelf(wine)
    assert asked == ["wine", "digits", "wine"], "one data set is kept, the last"


def test_what_a_threat_model_forbids_is_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(ThreatModelError, match="cell 'secure_aggregation=true': attack grad_cosine: needs"):
        sweep({"axes": {"secure_aggregation": [True]}, "set": {"attacks": ["grad_cosine"]}}, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "rai"}, "engine: got 'rai'; expected local or ray"),
        ({"jobs": 0}, "jobs: got 0; expected 1 or more"),
        ({"engine": "ray", "jobs": 2}, "jobs: got 2; expected none with engine ray"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        sweep(GRID, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"Ray is not installed; expected it: pip install fedsiege\[flower\]"):
        sweep(GRID, tmp_path / "out", engine="ray")


def test_what_shadow_federations_will_cost_is_said_before_the_first_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("FEDSIEGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MODULE, "cores", lambda: 1)
    threads = torch.get_num_threads()
    shadowed = {**GRID["experiment"], "threads": None}
    some, more = ([{"name": "lira", "shadows": count}] for count in (2, 3))
    grid = {
        "experiment": shadowed,
        "axes": {"attacks": {"one": ONE, "two": some, "three": more}},
        "seeds": [0, 1],
    }
    try:
        torch.set_num_threads(1)  # as a worker of this machine's has
        run({**shadowed, "seed": 1, "attacks": some}, tmp_path / "before", progress=False)
        torch.set_num_threads(3)
        monkeypatch.setattr(MODULE, "_carry_out", lambda *arguments: None)
        monkeypatch.setattr(MODULE.report, "write", lambda place: None)
        monkeypatch.setattr(MODULE.SweepResult, "read", lambda place: None)
        capsys.readouterr()
        sweep(grid, tmp_path / "quiet", progress=False, overrides=["seeds=[0]"])
        assert "shadow" not in capsys.readouterr().err
        sweep(grid, tmp_path / "out")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().err
    assert (
        f"The cells want 6 shadow federations in all: 2 cached, 4 to train; kept in {tmp_path}/cache/shadows"
        in said
    )


def test_threads_are_the_cores_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "cores", lambda: 8)
    for jobs, threads in ((None, 8), (1, 8), (3, 2), (20, 1)):
        pool = MODULE._pool("local", jobs, tmp_path)
        assert isinstance(pool, LocalPool)
        assert (pool.jobs, pool.threads) == (jobs or 1, threads)


def test_cells_of_one_training_go_together_and_seeds_after_each_other() -> None:
    made, where = Grid.load(GRID)
    cells = made.cells_of(where)
    every = bundles(cells, [])
    assert [one.cells for one in every] == [one.todo for one in every]
    assert [[(cells[i].name[8:11], cells[i].seed) for i in one.todo] for one in every] == [
        [("one", 0), ("two", 0)],
        [("one", 0), ("two", 0)],
        [("one", 1), ("two", 1)],
        [("one", 1), ("two", 1)],
    ]
    first, *others = every
    left = bundles(cells, [first.cells[0], *others[0].cells])
    assert left[0].cells == first.cells
    assert left[0].todo == first.cells[1:]
    assert len(left) == 3


def test_what_decides_training_and_what_does_not() -> None:
    def key(**changes: Any) -> str:
        (cell,) = Grid.load({"experiment": {**TINY, **changes}, "budget": 0.1})[0].cells_of("x")
        return training(cell.experiment)

    after: list[dict[str, Any]] = [
        {"attacks": ["grad_norm"]},
        {"title": "x"},
        {"description": "x"},
        {"profiles": {"p": {}}},
    ]
    before: list[dict[str, Any]] = [
        {"seed": 1},
        {"trace": {"logits": True}},
        {"targets": 0},
        {"device": "cpu"},
        {"threads": 2},
    ]
    assert {key(**changes) for changes in after} == {key()}
    assert len({key(), *(key(**changes) for changes in before)}) == 1 + len(before)
    assert key(attacks=[{"name": "grad_cosine", "coordinates": "nonzero"}]) != key(), "it needs more recorded"


def test_where_links_do_not_work_files_are_copied(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    cells = Grid.load(GRID)[0].cells_of("x")
    donor = done / cells[0].folder
    share(donor, tmp_path / "cell", cells[0].experiment)
    names = ["checkpoint.safetensors", "trace/round_000002.safetensors", "trace/round_000004.safetensors"]
    for name in names:
        assert (tmp_path / "cell" / name).read_bytes() == (donor / name).read_bytes()
        assert (tmp_path / "cell" / name).stat().st_ino != (donor / name).stat().st_ino


def test_a_folder_keeps_the_training_it_has(done: Path, tmp_path: Path) -> None:
    cells = Grid.load(GRID)[0].cells_of("x")
    (tmp_path / "checkpoint.safetensors").write_text("mine")
    share(done / cells[0].folder, tmp_path, cells[0].experiment)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    share(tmp_path / "nothing", tmp_path / "new", cells[0].experiment)
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("_here")
def test_an_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    path, place = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(GRID))
    with monkeypatch.context() as patch:
        patch.setattr("fedsiege.experiment.board.Board.started", interrupt)
        assert execute(["sweep", str(path), "--out", str(place), "-q"]) == 130
    assert "interrupted; go on with --resume" in capsys.readouterr().err
    assert {cell["status"] for cell in content(place)["cells"]} == {"missing"}
