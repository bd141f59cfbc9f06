"""A sweep beside a paper: in words, on the page, in a terminal and as a table."""

import csv
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedsiege.errors import InputError
from fedsiege.report import grid
from fedsiege.report.grid import SweepResult, paper
from fedsiege.report.grid.findings import warnings
from fedsiege.report.grid.finished import FinishedSweep
from fedsiege.report.grid.html import page
from fedsiege.report.grid.schema import Paper

from . import made_sweep
from .made_sweep import figure_of
from .page import Node, parse

NONE, HALF = "defences=none, model=alexnet", "defences=half data, model=alexnet"


@pytest.fixture
def sweep(tmp_path: Path) -> FinishedSweep:
    return FinishedSweep.read(made_sweep.folder(tmp_path, made_sweep.with_paper(made_sweep.sweep())))


def stated(sweep: FinishedSweep) -> Paper:
    assert sweep.report.paper is not None
    return sweep.report.paper


def printed(sweep: FinishedSweep, width: int) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(grid.summary(sweep.folder, width))
    return captured.get().replace("\u00a0", " ")


def texts(row: Node) -> list[str]:
    return [cell.text.replace("\u00a0", " ") for cell in (*row.all("th"), *row.all("td"))]


def test_lines_are_grouped_by_cell_and_written_in_their_metrics_units(sweep: FinishedSweep) -> None:
    found = paper.lines(sweep, stated(sweep))
    assert list(found) == [NONE, HALF]
    auc, accuracy = found[NONE]
    tpr, missing, change = found[HALF]
    assert (auc.subject, auc.compared.metric, auc.seeds) == ("FedMIA-II", "AUC", "3")
    one = auc.compared
    assert (one.published, one.spread, one.ours, one.interval) == ("0.820", "± 0.020", "0.811", "0.800–0.822")
    one = tpr.compared
    assert one.metric.replace("\u00a0", " ") == "TPR at 0.1 % FPR"
    assert (one.published, one.spread, one.ours, one.interval) == ("1.2", "± 0.35", "24.2", "20.0–28.0")
    assert (missing.subject, missing.compared.ours, missing.seeds) == ("seqmia", "–", "")
    one = accuracy.compared
    assert (accuracy.subject, one.metric, one.published, one.ours) == ("Test accuracy", "accuracy", "46.0", "42.0")
    assert one.interval == ""
    one = change.compared
    assert one.metric == f"change from {NONE}, points"
    assert (one.published, one.ours, one.interval) == ("−1.0", "−1.6", "−2.0 to 0.4")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (["agrees"], "Of 1 published figure ours agrees with 1, is higher than 0 and lower than 0."),
        (
            ["agrees (profile small)", "ours is higher", "ours is higher (x)", "not measured", "ours is lower"],
            "Of 5 published figures ours agrees with 1, is higher than 2 and lower than 1; 1 is not compared.",
        ),
        (
            ["not measured", "not compared: a null test"],
            "Of 2 published figures ours agrees with 0, is higher than 0 and lower than 0; 2 are not compared.",
        ),
    ],
)
def test_verdicts_are_counted(said: list[str], sentence: str) -> None:
    figures = [figure_of("a", "auc", 0.5, one) for one in said]
    made = Paper.model_validate({"claim": "c", "source": "s", "figures": figures})
    assert paper.verdicts(made).replace("\u00a0", " ") == sentence


def test_another_setting_is_a_warning(sweep: FinishedSweep, tmp_path: Path) -> None:
    said = "The published figures were measured in another setting: rounds and model differ here."
    assert said in warnings(sweep)
    data = made_sweep.with_paper(made_sweep.sweep())
    data["paper"]["changed"] = ["rounds"]
    one = FinishedSweep.read(made_sweep.folder(tmp_path / "one", data))
    assert "The published figures were measured in another setting: rounds differs here." in warnings(one)
    data["paper"]["changed"] = []
    same = FinishedSweep.read(made_sweep.folder(tmp_path / "same", data))
    assert [text for text in warnings(same) if "published" in text] == []


def test_the_page_has_the_comparison_cell_by_cell(sweep: FinishedSweep) -> None:
    root = parse(page(sweep))
    section = root.one("section", id="paper")
    assert [node.attributes["href"] for node in root.one("nav").all("a")][-2:] == ["#paper", "#glossary"]
    assert section.one("a").attributes["href"] == "https://arxiv.org/abs/2601.06866"
    paragraphs = [node.text.replace("\u00a0", " ") for node in section.all("p")]
    assert paragraphs[0] == "Half the data is enough."
    assert paragraphs[1].startswith("Nobody et al., Table 4 · ")
    assert paragraphs[2].startswith("Of 5 published figures ours agrees with 2, is higher than 1 and lower than 1;")
    bodies = section.one("table").all("tbody")
    assert [texts(body.all("tr")[0]) for body in bodies] == [[NONE], [HALF]]
    rows = [texts(row) for body in bodies for row in body.all("tr")[1:]]
    assert [row[0] for row in rows] == ["FedMIA-II", "Test accuracy", "FedMIA-II", "seqmia", "Test accuracy"]
    assert rows[0] == ["FedMIA-II", "AUC", "0.820± 0.020", "0.8110.800–0.822", "3", "agrees"]
    assert rows[2][-1] == "ours is higher (profile small)"


def test_a_sweep_without_a_paper_has_nothing_of_it(tmp_path: Path) -> None:
    data = made_sweep.sweep()
    plain = FinishedSweep.read(made_sweep.folder(tmp_path, data))
    assert not parse(page(plain)).all("section", id="paper")
    assert "beside the paper" not in printed(plain, 100)
    assert "paper.csv" not in {path.name for path in grid.write(tmp_path)}
    with pytest.raises(InputError, match="has no `paper:` part with published figures to compare with"):
        SweepResult.read(tmp_path).published()
    data["paper"] = None
    assert FinishedSweep.read(made_sweep.folder(tmp_path, data)).report.paper is None


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_terminal_has_every_figure_at_any_width(sweep: FinishedSweep, width: int) -> None:
    text = printed(sweep, width)
    after = text[text.index("beside the paper: Table 4") :]
    lines = after.splitlines()
    assert max(map(len, lines)) <= width
    for figure in ("0.820", "0.811", "0.800–0.822", "24.2", "20.0–28.0", "46.0", "−1.6", "−2.0 to 0.4"):
        assert figure in after
    if width == 140:
        row = next(line for line in lines if line.strip().startswith("FedMIA-II") and "AUC" in line)
        assert row.split() == ["FedMIA-II", "AUC", "0.820", "0.811", "0.800–0.822", "3", "agrees"]


def test_the_table_of_figures_has_plain_numbers(sweep: FinishedSweep) -> None:
    grid.write(sweep.folder)
    with (sweep.folder / "paper.csv").open(encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == [NONE, HALF, HALF, NONE, HALF]
    assert rows[0] == {
        "cell": NONE,
        "attack": "fedmia_ii",
        "metric": "auc",
        "against": "",
        "published": "0.82",
        "spread": "0.02",
        "rounding": "0.005",
        "ours": "0.811",
        "ours_low": "0.8",
        "ours_high": "0.822",
        "seeds": "3",
        "verdict": "agrees",
    }
    assert (rows[2]["ours"], rows[2]["seeds"], rows[2]["verdict"]) == ("", "", "not measured")
    frame = SweepResult.read(sweep.folder).published()
    assert frame["ours"].dtype == "float64"
    assert frame["ours_low"].tolist()[1] == 0.2


def test_hostile_words_of_a_paper_are_only_shown(tmp_path: Path) -> None:
    place = made_sweep.folder(tmp_path, made_sweep.hostile())
    section = parse(page(FinishedSweep.read(place))).one("section", id="paper")
    assert not section.all("a")
    assert not section.all("script")
    grid.write(place)
    with (place / "paper.csv").open(encoding="utf-8") as file:
        assert all(row["cell"].startswith("'=") for row in csv.DictReader(file))
