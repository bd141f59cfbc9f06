"""What is told the truth is no attack: shown and marked, but never the best, the strongest or a verdict's base."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from fedsiege.report import findings
from fedsiege.report.finished import Finished
from fedsiege.report.grid import findings as grid_findings
from fedsiege.report.grid import tables as grid_tables
from fedsiege.report.grid.comparison import beats_guessing, compare
from fedsiege.report.grid.finished import FinishedSweep, Point
from fedsiege.report.grid.html import page as grid_page
from fedsiege.report.html import page
from fedsiege.report.tables import everything, latex
from fedsiege.report.terminal import summary

from . import made, made_sweep
from .made_sweep import grid, run

BOUND = "fedmia_ii"  # the attack that finds most in made runs


def single(tmp_path: Path, *bounds: str) -> Finished:
    data, curves = made.result()
    for one in data["attacks"]:
        one["upper_bound"] = one["attack"] in bounds
        if one["attack"] in bounds:
            one["n_members"] //= 2
    data["attacks"].sort(key=lambda one: not one["upper_bound"])  # first, where whoever takes rows[0] meets it
    return Finished.read(made.folder(tmp_path / "run", data, curves))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def printed(shown: Any) -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        console.print(shown)
    return plain(capture.get())


def test_the_headline_is_an_attacks(tmp_path: Path) -> None:
    finished = single(tmp_path, BOUND)
    best = finished.best(finished.rows())
    assert best is not None
    assert best.attack == "fedmia_i"
    said = findings.finding(finished)
    assert said.statement.startswith("FedMIA-I recognises")
    assert "FedMIA-II" not in " ".join([said.statement, *said.support])
    assert finished.best([row for row in finished.rows() if row.upper_bound]) is None
    assert [row.attack for row in finished.rows() if row.upper_bound] == [BOUND]


def test_a_reassuring_headline_rests_on_attacks_too(tmp_path: Path) -> None:
    data, curves = made.result()
    for one in data["attacks"]:
        one["upper_bound"] = one["attack"] == BOUND
        if one["attack"] != BOUND:
            one["auc"] = {"value": 0.5, "low": 0.48, "high": 0.52, "n": 900}
            for rate in one["tpr_at_fpr"].values():
                rate |= {**made.binomial(0, 400), "false_positives": 0, "warning": None}
    said = findings.finding(Finished.read(made.folder(tmp_path, data, curves)))
    assert plain(said.statement).startswith("None of 7 attacks demonstrably tells")
    assert said.leaks is False
    assert "FedMIA-II" not in " ".join(said.support), "not as an attack that shows at another rate either"


def test_without_any_attack_there_is_no_headline(tmp_path: Path) -> None:
    said = findings.finding(single(tmp_path, *made.ATTACKS))
    assert said.statement == ("No attack was measured in this run, only an upper bound on what attacks can find.")
    assert said.leaks is None
    assert (
        findings.done(single(tmp_path, *made.ATTACKS))[-1].replace("\u00a0", " ").startswith("8 upper bounds then")
    )


def test_what_figures_rest_on_is_said_of_the_attacks(tmp_path: Path) -> None:
    finished = single(tmp_path, BOUND)
    rows = finished.rows()
    assert rows[0].upper_bound
    assert rows[0].n_members < rows[1].n_members == 1600
    assert plain(findings.basis(finished, rows)).startswith("1,600 members")
    assert plain(findings.done(finished)[-1]).startswith("7 attacks and 1 upper bound then scored 1,600 members")


def test_a_run_marks_it_wherever_it_is_named(tmp_path: Path) -> None:
    finished = single(tmp_path, BOUND)
    assert finished.names[BOUND] == "Upper bound: FedMIA-II"
    assert finished.names["fedmia_i"] == "FedMIA-I"
    table = everything(finished)
    assert set(table.loc[table["upper_bound"], "attack"]) == {BOUND}
    for text in (printed(summary(finished, 160)), plain(page(finished)), plain(latex(finished))):
        assert text.count("FedMIA-II") == text.count("Upper bound: FedMIA-II") > 0
    marked = [line for line in printed(summary(finished, 160)).splitlines() if "▸" in line]
    assert len(marked) == 1
    assert "FedMIA-I " in marked[0]
    assert "\\textbf" in latex(finished)


def test_an_old_file_has_none(tmp_path: Path) -> None:
    finished = Finished.read(made.folder(tmp_path, *made.result()))
    assert not any(row.upper_bound for row in finished.rows())
    assert not FinishedSweep.read(made_sweep.folder(tmp_path / "grid", made_sweep.sweep())).upper_bounds


def bounded(*cells: dict[str, Any], label: str = "b") -> dict[str, Any]:
    """A sweep in which the attack of this label is an upper bound."""
    for cell in cells:
        for one in cell["attacks"]:
            one["upper_bound"] = one["attack"] == label
    return grid(*cells)


def read(tmp_path: Path, data: dict[str, Any]) -> FinishedSweep:
    return FinishedSweep.read(made_sweep.folder(tmp_path / "sweep", json.loads(json.dumps(data))))


def point(sweep: FinishedSweep, short: str) -> Point:
    (found,) = [one for one in sweep.points if one.short == short]
    return found


CELLS = (
    ("none", 0.5, {"b": 0.9, "x": 0.5}),
    ("p", 0.49, {"b": 0.95, "x": 0.05}, "p"),
    ("q", 0.49, {"x": 0.3}, "q"),
)


@pytest.fixture
def sweep(tmp_path: Path) -> FinishedSweep:
    cells = [run(name, 0, accuracy, tprs, *defences) for name, accuracy, tprs, *defences in CELLS]
    return read(tmp_path, bounded(*cells))


def test_the_strongest_and_the_hypervolume_are_attacks(sweep: FinishedSweep) -> None:
    for short in ("none", "p", "q"):
        strongest = point(sweep, short).strongest
        assert strongest is not None
        assert strongest.attack == "x"
        assert point(sweep, short).figure(None, "auc") is point(sweep, short).figures["x"]
    assert sweep.hypervolume("", "p", None) == sweep.hypervolume("", "p", "x")
    assert sweep.hypervolume("", "p", "b").value != sweep.hypervolume("", "p", "x").value, "still shown for itself"
    assert sweep.attacks("") == ["x", "b"], "last, however much it finds"
    largest, smallest = grid_tables.extremes(sweep, "")
    assert all(attack != "b" for attack, _ in largest | smallest)
    assert (("x", "p") in largest, (None, "p") in largest) == (True, True)


def test_a_verdict_rests_on_attacks(sweep: FinishedSweep) -> None:
    found = compare(point(sweep, "none"), point(sweep, "p"))
    assert found is not None
    assert (found.before.attack, found.after.attack, found.shared, found.judged) == ("x", "x", ("x",), ("x",))
    said = grid_findings.headline(sweep)
    text = plain(" ".join([said.statement, *said.support]))
    assert said.helps
    assert "from 50.0 % to 5.0 %" in text
    other = compare(point(sweep, "none"), point(sweep, "q"))
    assert other is not None
    assert other.absent is None, "an upper bound that was not run on the defended cell is not missed"
    assert "B" not in text.replace("Behind", "").replace("Bound", "").split(), "nor named as not measured"


def test_a_bound_alone_beats_no_guess_and_compares_nothing(tmp_path: Path) -> None:
    cells = [run("none", 0, 0.5, {"b": 0.9}), run("p", 0, 0.5, {"b": 0.2}, "p")]
    alone = read(tmp_path, bounded(*cells))
    assert compare(point(alone, "none"), point(alone, "p")) is None
    assert not beats_guessing(point(alone, "none"))
    assert point(alone, "none").strongest is None
    assert grid_findings.headline(alone).helps is None
    assert alone.hypervolume("", "p", None).value is None


def test_a_bound_that_is_told_of_the_defence_makes_no_attack_adapted(tmp_path: Path) -> None:
    cells = [run(name, 0, accuracy, tprs, *defences) for name, accuracy, tprs, *defences in CELLS]
    data = bounded(*cells)
    for cell in data["cells"]:
        for one in cell["attacks"]:
            one["adapted"] = one["attack"] == "b"
    adapted = read(tmp_path, data)
    assert any("No attack here is told of the defence" in text for text in grid_findings.warnings(adapted))


def test_a_sweep_marks_it_wherever_it_is_named(sweep: FinishedSweep, tmp_path: Path) -> None:
    assert sweep.names == {"b": "Upper bound: B", "x": "X"}
    assert "1 attack and 1 upper bound" in plain(grid_findings.done(sweep)).replace(", ", " and ")
    frame = grid_tables.frame(sweep)
    assert set(frame.loc[frame["upper_bound"], "attack"]) == {"b"}
    assert not frame.loc[frame["upper_bound"], "strongest"].any()
    grid_tables.write_tables(sweep)
    runs = pd.read_csv(sweep.folder / "table.csv")
    assert set(runs.loc[runs["upper_bound"], "attack"]) == {"b"}
    assert "Upper bound: B" in grid_tables.latex(sweep)
    assert "Upper bound: B" in plain(grid_page(sweep))


def test_a_coalition_as_one_stands_beside_any(tmp_path: Path) -> None:
    data, curves = made.result()
    pooled = [one for one in data["attacks"] if one["target"] == "pooled" and one["attack"] == BOUND]
    data["attacks"] += [{**one, "target": "coalition"} for one in pooled]
    finished = Finished.read(made.folder(tmp_path, data, curves))
    assert finished.wheres == ["pooled", "mean", "worst", "coalition"]
    assert [row.attack for row in finished.rows("coalition")] == [BOUND]
    assert findings.where_name(finished, "coalition") == "in the data of a coalition, taken for one client"
    assert 'data-where="coalition"' in page(finished)
    assert "coalition" in set(everything(finished)["target"].astype(str))
