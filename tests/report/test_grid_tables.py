"""frontier.csv, table.csv and table.tex of a sweep."""

import csv
import io
from pathlib import Path

import pytest

from fedsiege.report.grid import SweepResult
from fedsiege.report.grid.finished import FinishedSweep
from fedsiege.report.grid.tables import FRONTIER, extremes, latex, write_tables

from . import made_sweep
from .made_sweep import grid, run
from .written import is_number, read

CELL = "defences=sparsify 0.9, model=alexnet"


def rows(sweep: FinishedSweep, number: int) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(write_tables(sweep)[number].read_text(encoding="utf-8"))))


def test_frontier_has_a_row_per_cell_and_attack(tmp_path: Path) -> None:
    sweep = read(tmp_path, made_sweep.sweep(("alexnet", "resnet18")))
    table = rows(sweep, 0)
    assert list(table[0]) == list(FRONTIER)
    assert len(table) == 2 * (6 * 3 + 2)  # the adapted attack was run on the two sparsified cells alone
    (row,) = [one for one in table if (one["cell"], one["attack"]) == (CELL, "fedmia_ii(coordinates=nonzero)")]
    # TPR 0.6 * 1.2 * 0.5 times 1, 1.03 and 1.06
    assert float(row["tpr@0.001"]) == pytest.approx(0.36 * 1.03)
    assert float(row["tpr@0.001_low"]) == pytest.approx(0.36 * (1.03 - 4.302653 * 0.03 / 3**0.5), abs=1e-6)
    assert (row["setting"], row["family"], row["labels"]) == ("model=alexnet", "sparsify", "sparsify(share=0.9)")
    assert (row["seeds"], row["interval"], row["adapted"], row["strongest"]) == ("3", "over seeds", "True", "True")
    assert (row["on_front_tpr"], row["on_front_auc"]) == ("True", "True")
    assert float(row["test_error"]) == pytest.approx(1 - (0.42 - 0.012 + 0.002))
    (plain,) = [one for one in table if (one["cell"], one["attack"]) == (CELL, "loss_series")]
    assert plain["strongest"] == "False"
    assert plain["warning"] == made_sweep.FEW
    undefended = [one for one in table if one["family"] == "none"]
    assert {one["cost"] for one in undefended} == {""}


def test_every_run_is_in_the_table_and_says_why_it_failed(tmp_path: Path) -> None:
    table = rows(read(tmp_path, made_sweep.troubled()), 1)
    assert len({(row["cell"], row["seed"]) for row in table}) == 36
    (failed,) = [row for row in table if row["status"] == "failed"]
    assert failed["failure"] == "training diverged in round 3 & stopped"
    assert (failed["attack"], failed["accuracy"]) == ("", "")
    found = [row for row in table if (row["cell"], row["seed"]) == (CELL, "2")]
    assert [row["attack"] for row in found] == list(made_sweep.ATTACKS)
    # the strength halved by the defence, and 6 % more with seed 2
    assert float(found[0]["tpr@0.001"]) == pytest.approx(0.25 * 0.5 * 1.06)
    assert float(found[0]["tpr@0.01"]) == pytest.approx(0.25 * 0.5 * 1.06 + 0.1)
    assert found[0]["tpr@0.001_warning"] == made_sweep.FEW


def test_no_cell_of_the_sweeps_tables_is_a_formula(tmp_path: Path) -> None:
    sweep = read(tmp_path, made_sweep.hostile())
    for number in (0, 1):
        table = rows(sweep, number)
        texts = [text for row in table for text in row.values() if text and not is_number(text)]
        assert any(text.startswith("'=") for text in texts)
        assert not [text for text in texts if text.startswith(("=", "+", "-", "@"))]


def test_latex_has_the_layout_of_the_papers_second_table(tmp_path: Path) -> None:
    cells = [
        run("none", 0, 0.56, {"x": 0.5, "y": 0.0}),
        run("p1", 0, 0.5, {"x": 0.5, "y": 0.1}, "p"), run("p2", 0, 0.6, {"x": 0.8, "y": 0.3}, "p"),
        run("q1", 0, 0.5, {"x": 0.4, "y": 0.2}, "q"),
    ]  # fmt: skip
    lines = [line.strip() for line in latex(read(tmp_path, grid(*cells, title="A & B"))).splitlines()]
    # p under x: 0.1 * 0.2 + 0.5 * 0.5; q under x: 0.5 * 0.6; p under y: 0.1 * 0.7 + 0.5 * 0.9; q under y: 0.5 * 0.8
    # undefended: 0.56 * 0.5 and 0.56 * 1, which no defence reaches
    start = lines.index("& undefended & p & q \\\\")
    assert lines[start : start + 6] == [
        "& undefended & p & q \\\\",
        "\\midrule",
        "X & \\underline{0.2800} & \\underline{0.2700} & \\underline{\\textbf{0.3000}} \\\\",
        "Y & 0.5600 & 0.5200 & 0.4000 \\\\",
        "Strongest on each cell & 0.2800 & 0.2700 & \\textbf{0.3000} \\\\",
        "\\bottomrule",
    ]
    assert "\\begin{tabular}{lrrr}" in lines
    assert "a defence below it loses more accuracy than it saves in TPR" in lines[3]
    assert lines[3].startswith("\\caption{A \\& B: hypervolume between")
    assert not [line for line in lines if "multicolumn" in line]


def test_a_defence_as_good_as_none_is_the_best_and_none_is_not(tmp_path: Path) -> None:
    cells = [run("none", 0, 0.5, {"x": 0.5}), run("p", 0, 0.5, {"x": 0.5}, "p"), run("q", 0, 0.4, {"x": 0.5}, "q")]
    largest, _ = extremes(read(tmp_path, grid(*cells)), "")
    assert largest == {("x", "p"), (None, "p")}


def test_latex_has_a_block_per_setting_with_intervals_below(tmp_path: Path) -> None:
    text = latex(read(tmp_path, made_sweep.sweep(("alexnet", "resnet18"))))
    assert text.count("\\multicolumn{5}{l}{\\itshape model=") == 2
    assert text.count("& undefended & perturb & sparsify & augment + sample \\\\") == 2
    assert text.count("\\scriptsize [") == 2 * (4 * 4 + 1)
    cells = {line.count("&") for line in text.splitlines() if line.endswith("\\\\") and "multicolumn" not in line}
    assert cells == {4}


def test_more_families_than_fit_go_below(tmp_path: Path) -> None:
    cells = [run(f"d{i}", 0, 0.5, {"x": 0.1 * i}, f"d{i}") for i in range(8)]
    text = latex(read(tmp_path, grid(*cells)))
    assert "\\begin{tabular}{lrrrrrr}" in text
    assert "& d0 & d1 & d2 & d3 & d4 & d5 \\\\" in text
    assert "& d6 & d7 \\\\" in text
    text = latex(read(tmp_path, grid(run("none", 0, 0.5, {"x": 0.5}), *cells)))
    assert "\\begin{tabular}{lrrrrrrr}" in text
    assert "& undefended & d6 & d7 \\\\" in text


def test_hostile_names_of_a_sweep_end_no_group(tmp_path: Path) -> None:
    text = latex(read(tmp_path, made_sweep.hostile()))
    assert text.count("\\end{table}") == 1
    assert "</script>" not in text
    assert r"\%\_\$\textbackslash{}perturb" in text
    assert text.count("$") == text.count(r"\$")


def test_a_sweep_without_figures_has_tables_without_rows(tmp_path: Path) -> None:
    cell = run("p", 0, 0.5, {}, "p") | {"status": "failed", "error": "no", "accuracy": None}
    sweep = read(tmp_path, grid(cell))
    assert rows(sweep, 0) == []
    assert [row["failure"] for row in rows(sweep, 1)] == ["no"]
    assert "no defence was measured" in latex(sweep)


def test_a_sweep_as_a_frame(tmp_path: Path) -> None:
    made_sweep.folder(tmp_path, made_sweep.sweep())
    table = SweepResult.read(tmp_path).table()
    assert list(table.columns) == list(FRONTIER)
    assert table["cost"].dtype == table["tpr@0.001"].dtype == "float64"
    best = table[table["strongest"]].set_index("cell")["tpr@0.001"]
    assert best.idxmin() == "defences=sparsify 0.99, model=alexnet"
    assert SweepResult.read(tmp_path).failed == []
    assert len(SweepResult.read(tmp_path).runs()) == 3 * (6 * 3 + 2)


def test_the_failed_runs_of_a_sweep(tmp_path: Path) -> None:
    made_sweep.folder(tmp_path, made_sweep.troubled())
    (failed,) = SweepResult.read(tmp_path).failed  # the missing run is none of them
    assert (failed["name"], failed["seed"]) == ("defences=perturb 0.05, model=alexnet", 1)
    assert failed["error"] == "training diverged in round 3 & stopped"
