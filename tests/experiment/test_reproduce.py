"""A published table reproduced: a whole small sweep beside made-up figures, from the command line too."""

import importlib
import itertools
import json
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY

from fedsiege.cli import execute
from fedsiege.errors import InputError
from fedsiege.experiment import reproduce
from fedsiege.experiment.cell import LOG, Work, carry_out
from fedsiege.experiment.pool import Event
from fedsiege.experiment.prepare import Shelf
from fedsiege.report.grid import SweepResult, write
from fedsiege.report.result import Result

SWEEP = importlib.import_module("fedsiege.experiment.sweep")
GRID: dict[str, Any] = {
    "title": "Tiny table",
    "experiment": {**TINY, "rounds": 4, "profiles": {"small": {"rounds": 2}}},
    "cells": [
        {"name": "none"},
        {"name": "noise", "set": {"defences": ["perturb"]}},
        {"name": "more noise", "set": {"defences": [{"name": "perturb", "sigma": 5.0}]}},
    ],
    "seeds": [0, 1],
    "paper": {
        "claim": "Noise helps.",
        "source": "Nobody",
        "table": "Table 9",
        "link": "https://example.org",
        "rounding": {"accuracy": 0.005},
        "figures": [
            {"cell": "none", "attack": "fedmia_ii", "metric": "auc", "value": 0.5, "spread": 0.5},
            {"cell": "none", "attack": "fedmia_ii", "metric": "tpr@0.1", "value": 1.0},
            {"cell": "none", "attack": "fta_x", "metric": "auc", "value": 0.5},
            {"cell": "more noise", "metric": "accuracy_change", "against": "none", "value": 0.9},
            {"cell": "none", "metric": "accuracy", "value": 0.0},
        ],
    },
}
VERDICTS = ["agrees", "ours is lower", "not measured", "ours is lower", "ours is higher"]


class Here:
    """A pool of this very process, which is interrupted after so many runs."""

    def __init__(self, log: Path, runs: int = 99) -> None:
        self.log, self.left = log, runs

    def events(self, bundles: Sequence[tuple[Work, ...]], every: float) -> Generator[Event | None]:
        for work in itertools.chain.from_iterable(bundles):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield carry_out(work, self.log, Shelf())


@pytest.fixture(scope="module", autouse=True)
def _here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SWEEP, "_pool", lambda engine, jobs, place: Here(place / LOG))
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the grid, in a folder whose `out` has its runs."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "table.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    assert isinstance(reproduce(folder / "table.yaml", folder / "out", progress=False), SweepResult)
    return folder


def figures(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["paper"]["figures"]
    return found


def test_a_grid_is_run_and_compared_cell_by_cell(table: Path) -> None:
    result = SweepResult.read(table / "out")
    assert [one["verdict"] for one in figures(result.folder)] == VERDICTS
    runs = {cell["seed"]: cell for cell in result.data["cells"] if cell["name"] == "none"}
    aucs = [
        next(one["auc"]["value"] for one in runs[seed]["attacks"] if one["attack"] == "fedmia_ii")
        for seed in (0, 1)
    ]
    auc, _, missing, change, accuracy = figures(result.folder)
    assert auc["ours"]["value"] == pytest.approx(sum(aucs) / 2)
    assert auc["ours"]["low"] < auc["ours"]["value"] < auc["ours"]["high"]
    assert missing["ours"] is None
    assert accuracy["ours"]["value"] == pytest.approx((runs[0]["accuracy"] + runs[1]["accuracy"]) / 2)
    assert (change["ours"]["value"] < 0, change["ours"]["n"]) == (True, 2)
    frame = result.published()
    assert frame["verdict"].tolist() == VERDICTS
    assert frame["ours"].tolist()[0] == auc["ours"]["value"]
    page = (result.folder / "report.html").read_text()
    assert '<section id="paper"' in page
    assert "Noise helps." in page


def test_the_command_prints_the_comparison_and_goes_on_where_it_was(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["reproduce", str(table / "table.yaml"), "--out", str(table / "out")]
    assert execute([*arguments, "--resume"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "beside the paper: Table 9" in text
    assert (
        "Of 5 published figures ours agrees with 1, is higher than 1 and lower than 2; 1 is not compared." in text
    )
    assert text.index("more noise Test accuracy change from none, points") > text.index("none FedMIA-II")
    assert execute([*arguments, "--resume", "--set", "rounds=5"]) == 2
    assert "cannot resume with a changed grid: overrides.rounds was None and is now 5" in capsys.readouterr().err


def test_a_grid_that_is_only_partly_there_compares_what_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after its first run: what is written down so far compares that one."""
    monkeypatch.setattr(SWEEP, "_pool", lambda engine, jobs, place: Here(place / LOG, runs=1))
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    with pytest.raises(KeyboardInterrupt):
        reproduce(tmp_path / "table.yaml", tmp_path / "out", progress=False)
    found = figures(tmp_path / "out")
    assert [one["ours"] and one["ours"]["n"] for one in found] == [1, 1, None, None, 1]
    assert found[3]["verdict"] == "not measured"


def test_a_profile_and_overrides_reach_every_cell_and_every_verdict(
    table: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = ["--set", "profile=small", "--set", "seeds=[3]", "--set", "record_every=1", "--jobs", "1"]
    assert execute(["reproduce", str(table / "table.yaml"), "--out", str(tmp_path / "out"), *arguments]) == 0
    result = SweepResult.read(tmp_path / "out")
    assert {cell["seed"] for cell in result.data["cells"]} == {3}
    config = yaml.safe_load((tmp_path / "out/cells/none/seed3/config.yaml").read_text())
    assert (config["rounds"], config["record_every"], config["profile"]) == (2, 1, "small")
    assert result.data["paper"]["changed"] == ["rounds", "record_every"]
    assert {one["verdict"].partition(" (")[2] for one in figures(result.folder) if one["ours"]} == {
        "profile small)"
    }
    warning = "The published figures were measured in another setting: rounds and record_every differ here."
    assert warning in " ".join(capsys.readouterr().out.split())
    before = (result.folder / "report.html").read_bytes()
    write(result.folder)
    assert (result.folder / "report.html").read_bytes() == before


def test_a_failed_cell_is_named_when_the_rest_is_compared(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    data = SweepResult.read(table / "out")
    data.data["cells"][0] |= {"status": "failed", "error": "no memory"}
    monkeypatch.setattr("fedsiege.experiment.reproduce", lambda *given, **options: data)
    assert execute(["reproduce", "table.yaml", "--quiet"]) == 1
    assert "1 of 6 runs failed; the first is none, seed 0: no memory" in capsys.readouterr().err


def test_a_single_experiment_is_reproduced_as_ever(tmp_path: Path) -> None:
    figures = [{"attack": "fedmia_ii", "metric": "auc", "value": 0.5, "spread": 0.5}]
    paper = {"claim": "c", "source": "s", "table": "t", "link": "l", "figures": figures}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({**TINY, "rounds": 4, "paper": paper}))
    result = reproduce(tmp_path / "one.yaml", tmp_path / "out", progress=False)
    assert isinstance(result, Result)
    assert result.data["paper"]["figures"][0]["verdict"] == "agrees"


def test_what_states_no_figures_is_refused_before_anything_runs(tmp_path: Path) -> None:
    grid = {key: value for key, value in GRID.items() if key != "paper"}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(grid))
    with pytest.raises(InputError, match="has no `paper:` part with published figures to compare with"):
        reproduce(tmp_path / "table.yaml", tmp_path / "out")
    assert not (tmp_path / "out").exists()
