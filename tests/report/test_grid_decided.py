"""What a sweep says of decisions on membership that poisoning made possible."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from fedsiege.report import grid
from fedsiege.report.grid import summary
from fedsiege.report.grid.finished import FinishedSweep
from fedsiege.report.grid.html import heat, page
from fedsiege.report.grid.paper import lines
from fedsiege.report.grid.poisoning import findings
from fedsiege.report.grid.poisoning.measures import MEASURES, Siege
from fedsiege.report.grid.tables import latex
from fedsiege.report.measured import Measured

from . import made_siege, made_sweep
from .made_poisoning import share
from .made_siege import probed, siege
from .written import tree

OWN = {"decision_last", "decision_best", "attackers_kept", "feasible_share"}
DEAREST = "adversary=replacement, aggregator=fedavg"


def read(place: Path, data: dict[str, Any]) -> Siege:
    return Siege.of(FinishedSweep.read(made_sweep.folder(place, data)))


def measured(one: Siege, key: str, cell: str) -> Measured:
    (measure,) = [measure for measure in MEASURES if measure.key == key]
    (point,) = [point for point in one.sweep.points if point.name == cell]
    return measure.figure(one, point)


def said(place: Path, data: dict[str, Any]) -> tuple[str, list[str], bool | None]:
    found = findings.headline(read(place, data))
    assert found is not None
    support = [line.replace("\u00a0", " ") for line in found.support]
    return found.statement.replace("\u00a0", " "), support, found.helps


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def dear(data: dict[str, Any], loss: float) -> dict[str, Any]:
    """The same where the norm bound costs main accuracy."""
    for one in data["cells"]:
        if one["axes"]["aggregator"] == "norm bound":
            one["accuracy"] -= loss
    return data


def test_decisions_are_means_over_seeds_with_students_interval(tmp_path: Path) -> None:
    one = read(tmp_path, probed(siege()))
    # 306 (0.5 + 0.4 * 0.96) = 271 in seed 0, one less in each following seed; 15 more in the best round
    for key, more in (("decision_last", 0), ("decision_best", 15)):
        found = measured(one, key, DEAREST)
        assert found.value == pytest.approx((270 + more) / 306)
        assert found.low is not None
        assert (
            found.low < (270 + more) / 306 - stats.t.ppf(0.975, 2) * np.std([271, 270, 269], ddof=1) / 306 / 3**0.5
        )
    assert measured(one, "decision_last", "adversary=none, aggregator=fedavg".replace("none", "null")).value is None


def test_one_seed_has_the_runs_own_interval(tmp_path: Path) -> None:
    found = measured(read(tmp_path, probed(siege(seeds=[0]))), "decision_last", DEAREST)
    assert found.value == 271 / 306
    assert found.low == pytest.approx(share(271, 306)["low"])


def test_the_kept_share_and_the_feasible_share_are_means_of_runs_that_have_them(tmp_path: Path) -> None:
    data = probed(siege())
    for one in data["cells"]:
        if one["poisoning"]:
            one["poisoning"]["detection"]["attackers"]["kept"] = 0.2 * one["seed"]
    found = read(tmp_path, data)
    assert measured(found, "attackers_kept", DEAREST).value == pytest.approx(0.2)
    assert measured(found, "feasible_share", DEAREST).value == pytest.approx(0.3)
    assert measured(found, "feasible_share", "adversary=data poisoning, aggregator=fedavg").value is None


def test_sweeps_without_decisions_have_none_of_these_columns(tmp_path: Path) -> None:
    for name, data in {"a": siege(), "b": made_siege.untargeted(siege())}.items():
        assert OWN.isdisjoint(one.key for one in read(tmp_path / name, data).measures())
    keys = [one.key for one in read(tmp_path / "c", probed(siege())).measures()]
    assert keys[:2] == ["decision_last", "decision_best"]
    assert set(keys) >= OWN | {"main_last"}


def test_the_defence_that_gives_least_away(tmp_path: Path) -> None:
    statement, support, helps = said(tmp_path, probed(siege()))
    # replacement is strongest: 162, 161 and 160 of 306 with the norm bound, 271, 270 and 269 without a defence
    assert statement.startswith(
        "norm bound gives least of membership away within an accuracy budget of 2 points: decisions by the "
        "strongest of 2 attacks are right for 52.6 % (95 % interval "
    )
    assert statement.endswith("of the examples over the last rounds, and 88.2 % with fedavg.")
    assert helps is True
    assert support[0] == (
        "An example is called a member where the model gets it right; guessing is right for 50.0 %."
    )
    assert support[1] == "It costs 0.5 points of main accuracy where nobody attacks."
    assert "main accuracy is kept best" not in statement.lower()


def test_a_defence_beyond_the_budget_does_not_give_least_away(tmp_path: Path) -> None:
    statement, support, helps = said(tmp_path, dear(probed(siege()), 0.2))
    assert statement.startswith(
        "No defence gives less of membership away than fedavg within an accuracy budget of 2 points: decisions by "
        "the strongest of 2 attacks are right for 88.2 %"
    )
    assert helps is False
    assert support[-1].startswith("Which attack is strongest")


def test_a_defence_that_is_not_demonstrably_better_is_not_said_to_help(tmp_path: Path) -> None:
    data = probed(siege())
    for one in data["cells"]:
        if one["poisoning"] and one["axes"]["aggregator"] == "norm bound":
            one["poisoning"]["decisions"]["last"] = {"rounds": 20, **share(265 - one["seed"], 306)}
    statement, _, helps = said(tmp_path, data)
    assert statement.startswith(
        "No defence demonstrably gives less of membership away than fedavg within an accuracy budget of 2 points. "
        "norm bound does best: decisions by the strongest of 2 attacks are right for 86.3 %"
    )
    assert helps is None


def test_guessing_is_left_out_where_cells_differ_in_it(tmp_path: Path) -> None:
    data = probed(siege())
    next(one for one in data["cells"] if one["poisoning"])["poisoning"]["decisions"]["chance"] = 0.6
    assert said(tmp_path, data)[1][0] == "An example is called a member where the model gets it right."


def test_without_a_defence_beside_it_there_is_only_the_figure(tmp_path: Path) -> None:
    statement, _, helps = said(tmp_path, probed(siege(attacks=["replacement"], defences=["krum"])))
    assert statement.startswith("Decisions by Model replacement are right for ")
    assert helps is None


def test_without_an_undefended_cell_nothing_is_demonstrable(tmp_path: Path) -> None:
    statement, _, helps = said(tmp_path, probed(siege(defences=["norm bound", "krum"])))
    assert statement.startswith("norm bound gives least of membership away: ")
    assert helps is None


def test_runs_that_looked_for_no_decisions(tmp_path: Path) -> None:
    data = probed(siege())
    for one in data["cells"]:
        if one["poisoning"]:
            del one["poisoning"]["decisions"]
    statement, _, helps = said(tmp_path, data)
    assert statement == "No decision on membership was measured under an attack that makes it visible."
    assert helps is None


def test_the_page_has_a_table_of_decisions_first(tmp_path: Path) -> None:
    root = tree(tmp_path, probed(siege()))
    own = root.one("section", id="hijack")
    assert own.one("h2").text == "Does poisoning make membership visible?"
    first, second = own.all("table")[:2]
    assert "over the last recorded rounds" in first.one("caption").text
    assert "chosen with the truth" in second.one("caption").text
    values = [[cell.text for cell in row.all("span", class_="value")] for row in first.one("tbody").all("tr")]
    assert [row[:2] for row in values] == [["88.2", "52.6"], ["61.8", "50.7"]]
    assert "Decision" in [term.text for term in root.one("section", id="glossary").all("dt")]
    other = tree(tmp_path / "other", siege())
    assert other.one("section", id="hijack").one("h2").text == "Can the model be hijacked?"
    assert "Decision" not in [term.text for term in other.one("section", id="glossary").all("dt")]


@pytest.mark.parametrize(("value", "expected"), [(0.5, 0.0), (0.75, 0.5), (1.0, 1.0), (0.3, 0.0), (None, 0.0)])
def test_a_decision_has_colour_from_guessing_on(value: float | None, expected: float) -> None:
    measure = next(one for one in MEASURES if one.key == "decision_last")
    assert heat(measure, Measured(value=value, low=None, high=None)) == expected


@pytest.mark.parametrize(("width", "all_of_them"), [(80, False), (200, True)])
def test_the_terminal_has_decisions_in_any_width(tmp_path: Path, width: int, all_of_them: bool) -> None:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=False)
    console.print(summary(made_sweep.folder(tmp_path, probed(siege())), width))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "88.2" in text
    assert "Decisions" in text
    assert ("Within its bound" in text) is all_of_them


def test_the_files_have_decisions(tmp_path: Path) -> None:
    folder = made_sweep.folder(tmp_path, probed(siege()))
    grid.write(folder)
    cell = next(one for one in rows(folder / "poisoning.csv") if one["cell"] == DEAREST)
    assert [float(cell[key]) for key in ("decision_last", "decision_best", "feasible_share", "attackers_kept")] == [
        pytest.approx(value) for value in (270 / 306, 285 / 306, 0.3, 0.5)
    ]
    runs = [one for one in rows(folder / "poisoning_runs.csv") if one["cell"] == DEAREST]
    assert [float(one["decision_last"]) for one in runs] == [271 / 306, 270 / 306, 269 / 306]
    assert {(float(one["decision_best_round"]), one["decision_chance"]) for one in runs} == {(35, "0.5")}
    assert [float(one["feasible_share"]) for one in runs] == [pytest.approx(one) for one in (0.25, 0.3, 0.35)]
    tex = latex(FinishedSweep.read(folder))
    assert "right decisions on membership, over the last recorded rounds" in tex


def test_published_decisions_have_readable_names(tmp_path: Path) -> None:
    figures = [
        {"cell": DEAREST, "metric": metric, "published": 0.897, "rounding": 0.0005, "verdict": "ours is lower",
         "ours": {"value": 0.8824, "low": 0.87, "high": 0.89, "n": 3}}
        for metric in ("best_decision", "last_decision")
    ]  # fmt: skip
    paper = {"claim": "c", "source": "s", "figures": figures}
    sweep = FinishedSweep.read(made_sweep.folder(tmp_path, probed(siege(paper=paper))))
    assert sweep.report.paper is not None
    best, last = lines(sweep, sweep.report.paper)[DEAREST]
    assert {best.subject, last.subject} == {"Decisions on membership"}
    assert best.compared.metric == "right in the best round, chosen with the truth"
    assert last.compared.metric == "right over the last rounds"
    one = best.compared
    assert (one.published, one.ours, one.interval) == ("89.7", "88.2", "87.0–89.0")
    assert "right in the best round, chosen with the truth" in page(sweep)
