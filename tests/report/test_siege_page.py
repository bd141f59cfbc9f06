"""The page, the terminal's table and the files of a sweep with attackers."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedsiege.errors import InputError
from fedsiege.report import grid
from fedsiege.report.grid import SweepResult, summary
from fedsiege.report.grid.finished import FinishedSweep
from fedsiege.report.grid.html import heat, page
from fedsiege.report.grid.poisoning.measures import MEASURES, Siege
from fedsiege.report.grid.tables import latex
from fedsiege.report.measured import Measured

from . import made, made_siege, made_sweep
from .made_poisoning import TRIGGERED, share
from .made_siege import siege
from .page import Node, parse
from .written import is_number, read, sections, tree

KEYS = [
    *("backdoor_attacked", "backdoor_mean", "backdoor_last", "main_last", "main_dip", "main_lost"),
    *("attackers_rejected", "honest_rejected"),
]


def values(row: Node) -> list[str]:
    return [(cell.all("span", class_="value") or [cell])[0].text for cell in row.all("td")]


def printed(place: Path, data: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(summary(made_sweep.folder(place, data), width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().replace("\u00a0", " ")


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


# --- the page


def test_a_siege_without_an_audit_has_no_section_on_membership(tmp_path: Path) -> None:
    root = tree(tmp_path, siege())
    assert sections(root) == ["hijack", "besieged", "glossary"]
    assert root.one("p", class_="overline").text == "Who is kept out, and what it costs"
    assert root.one("p", class_="byline").text.replace("\u00a0", " ") == (
        "9 cells, 3 seeds and 2 poisoning attacks; 27 of 27 runs finished."
    )
    assert root.one("p", class_="statement").text.startswith("norm bound keeps backdoors out within an accuracy")
    assert "calm" in root.one("section", aria_label="Headline finding").attributes["class"].split()
    text = page(read(tmp_path, siege())).partition("* plotly.js v")[0]
    assert "was measured in" not in text
    for word in ("TPR", "AUC", "membership", "No cell of this grid has a defence", "undefended cell"):
        assert word not in text
    words = [node.text for node in root.one("section", id="glossary").all("dt")]
    assert words[-3:] == ["Kept out", "Main accuracy lost", "Interval over seeds"]


def test_an_audited_siege_has_both_parts(tmp_path: Path) -> None:
    root = tree(tmp_path, made_siege.audited(siege()))
    assert sections(root) == [
        *("settings", "tpr", "auc", "hypervolume", "strongest", "cells", "hijack", "besieged", "glossary")
    ]
    statements = [node.text for node in root.all("p", class_="statement")]
    assert statements[0].startswith("In none of 3 settings does a defence demonstrably bring the strongest attack")
    assert statements[1].startswith("norm bound keeps backdoors out")
    assert "1 attack and 2 poisoning attacks" in root.one("p", class_="byline").text.replace("\u00a0", " ")
    heads = root.one("section", id="hypervolume").all("table")[0].one("thead").text.replace("\u00a0", " ")
    assert heads == "Attackundefended1 cellnorm_bounding1 cellkrum1 cell"  # a rule that is no mean is a defence
    labels = [node.attributes["aria-label"] for node in root.all("section") if "aria-label" in node.attributes]
    assert labels[:2] == ["Headline finding", "Headline finding on poisoning"]


def test_a_plain_sweep_says_nothing_of_poisoning(tmp_path: Path) -> None:
    root = tree(tmp_path, made_sweep.sweep())
    assert "hijack" not in sections(root)
    assert "besieged" not in sections(root)
    assert "Kept out" not in root.one("section", id="glossary").text


def test_settings_have_verdicts_of_their_own(tmp_path: Path) -> None:
    root = tree(tmp_path, siege(models=("mlp", "cnn")))
    assert sections(root) == ["sieges", "hijack", "besieged", "glossary"]
    items = root.one("section", id="sieges").all("li")
    assert [item.one("h3").text for item in items] == ["model=mlp", "model=cnn"]
    assert all(item.attributes["class"] == "calm" for item in items)
    tables = root.one("section", id="hijack").all("table")
    assert len(tables) == 2 * len(KEYS)
    assert [row.text for row in root.one("section", id="besieged").all("tr", class_="setting")] == [
        "model=mlp",
        "model=cnn",
    ]


def test_a_table_for_every_measure_of_which_the_first_is_shown(tmp_path: Path) -> None:
    section = tree(tmp_path, siege()).one("section", id="hijack")
    shown = [node for node in section.all("div") if "data-siege" in node.attributes]
    assert [node.attributes["data-siege"] for node in shown] == KEYS
    assert ["hidden" in node.attributes for node in shown] == [False] + [True] * 7
    assert [node.attributes["value"] for node in section.all("input") if "checked" in node.attributes] == KEYS[:1]
    table = shown[0].one("table")
    assert [head.text for head in table.one("thead").all("th")] == ["Attack", "fedavg", "norm bound", "krum"]
    body = {row.one("th").text: row for row in table.one("tbody").all("tr")}
    assert values(body["replacement"]) == ["94.0", "6.0", "84.0"]
    assert "no attack" not in body  # nothing was planted there
    cells = body["replacement"].all("td")
    assert [cell.attributes["style"] for cell in cells] == ["--heat:0.940", "--heat:0.060", "--heat:0.840"]
    assert {cell.attributes["class"] for cell in cells} == {"number ill"}
    main = {row.one("th").text: row for row in shown[3].one("tbody").all("tr")}
    assert values(main["no attack"]) == ["81.0", "80.5", "75.0"]
    assert {cell.attributes["class"] for cell in main["no attack"].all("td")} == {"number well"}
    lost = {row.one("th").text: row for row in shown[5].one("tbody").all("tr")}
    assert values(lost["replacement"]) == ["6.0", "6.0", "6.0"]
    assert "beside the cell with the same defence in which nobody attacks" in shown[5].one("caption").text
    assert "in points" in shown[5].one("caption").text


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("share", 0.25, 0.25),
        ("share", None, 0.0),
        ("points", 0.25, 0.5),
        ("points", 0.9, 1.0),
        ("points", -0.1, 0.0),
    ],
)
def test_how_strongly_a_cell_is_coloured(unit: str, value: float | None, expected: float) -> None:
    measure = next(one for one in MEASURES if one.unit == unit and not one.floor)
    assert heat(measure, Measured(value=value, low=None, high=None)) == expected


def test_every_cell_with_every_measure_and_its_reports(tmp_path: Path) -> None:
    data = siege()
    made_sweep.undo(data["cells"][-1], "failed", "out of memory")
    data["cells"][-1]["poisoning"] = None
    section = tree(tmp_path, data).one("section", id="besieged")
    heads = [head.text for head in section.one("thead").all("th")]
    assert heads[:4] == ["Attack", "Defence", "Backdoor, first attack", "Backdoor, mean"]
    found = section.one("tbody").all("tr")
    assert len(found) == 9
    krum = next(row for row in found if row.one("th").text == "replacement" and row.all("td")[0].text == "krum")
    assert values(krum)[1:9] == ["84.0", "60.5", "41.3", "69.0", "12.0", "6.0", "50.0", "30.0"]
    assert [link.attributes["href"] for link in krum.all("a")] == [
        f"./cells/replacement-krum-None/seed{seed}/report.html" for seed in range(3)
    ]
    assert "failed" in found[-1].text
    assert found[0].attributes["class"] == "undefended"  # nobody attacks there
    assert "class" not in krum.attributes


def test_a_sweep_with_neither_lists_its_cells(tmp_path: Path) -> None:
    root = tree(tmp_path, siege(attacks=("none",)))
    assert sections(root) == ["besieged", "glossary"]
    assert root.one("p", class_="statement").text == "Nobody attacks in this grid."
    (row,) = [row for row in root.one("section", id="besieged").one("tbody").all("tr") if "krum" in row.text]
    assert values(row)[1] == "75.0"


def test_the_page_of_a_siege_is_accessible(tmp_path: Path) -> None:
    root = tree(tmp_path, siege(models=("mlp", "cnn")))
    for table in root.all("table"):
        assert table.one("caption").text
        assert all(cell.attributes["scope"] in {"col", "row", "rowgroup"} for cell in table.all("th"))
        widths = {
            sum(int(cell.attributes.get("colspan", 1)) for cell in row.all("th") + row.all("td"))
            for row in table.all("tr")
        }
        assert len(widths) == 1
    assert all(node.attributes["tabindex"] == "0" for node in root.all("div", class_="scroll"))
    labelled = [label for label in root.all("label") if label.all("input")]
    assert len(labelled) == len(root.all("input")) == len(KEYS)


def test_hostile_names_of_a_siege_stay_text(tmp_path: Path) -> None:
    text = page(read(tmp_path, made_siege.hostile()))
    assert "<script>document.title" not in text
    assert "<img" not in text.partition("* plotly.js v")[0]
    root = parse(text)
    assert made.HOSTILE in root.one("section", id="hijack").text
    assert len(root.all("script")) == 3
    assert all(link.attributes["href"].startswith(("#", "./")) for link in root.all("a"))


def test_no_figure_of_a_siege_is_written_as_code(tmp_path: Path) -> None:
    data = siege()
    for one in data["cells"]:
        if one["rule"] == "krum" and one["poisoning"]:
            one["poisoning"] |= {"success": None, "mistaken": None, "main": {}, "detection": {}}
    text = page(read(tmp_path, data)).partition('<script type="application/json"')[0]
    assert not re.findall(r">\s*(nan|None|inf|True|False)\b", text)
    assert "nan" not in summary_text(tmp_path, data)


def summary_text(place: Path, data: dict[str, Any]) -> str:
    return printed(place, data, 120)


# --- the terminal


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_has_a_line_for_every_cell(tmp_path: Path, width: int) -> None:
    text = printed(tmp_path, siege(), width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("norm bound keeps backdoors out", "94.0", "88.1–99.0", "no attack", "81.0", "34.8–65.2"):
        assert word in text
    assert ("12.0" in text) is (width == 120)  # a narrow terminal has the most important measures
    assert "TPR" not in text
    assert "No cell" not in text
    assert "Means over seeds with Student’s 95 % interval, no narrower" in text


def test_names_in_the_terminal_are_not_broken(tmp_path: Path) -> None:
    lines = [line.strip() for line in printed(tmp_path, siege(), 120).splitlines()]
    assert len([line for line in lines if line.startswith("data poisoning  norm bound")]) == 1
    assert len([line for line in lines if line.startswith("replacement     krum")]) == 1


def test_the_terminal_says_each_setting_and_both_parts(tmp_path: Path) -> None:
    text = printed(tmp_path / "models", siege(models=("mlp", "cnn")), 120)
    assert "In 2 of 2 settings the attackers are demonstrably kept out." in text
    assert "model=cnn: accuracies and rejected answers" in text
    both = printed(tmp_path / "both", made_siege.audited(siege()), 120)
    assert "hypervolume of (test error, TPR)" in both
    assert "norm bound keeps backdoors out" in both
    assert "accuracies and rejected answers in per cent" in both


def test_markup_of_rich_in_a_siege_is_text(tmp_path: Path) -> None:
    data = siege(attacks=("replacement",), defences=("fedavg",))
    for one in data["cells"]:
        one["poisoning"]["adversary"]["title"] = "[bold]x[/bold]"
        one["axes"] = {"adversary": "[red]a[/red]", "aggregator": "fedavg"}
    text = printed(tmp_path, data, 120)
    assert "[bold]x[/bold] plants its backdoor" in text
    assert "[red]a[/red]" in text


# --- files


def test_the_files_of_a_siege(tmp_path: Path) -> None:
    folder = made_sweep.folder(tmp_path / "alone", siege())
    names = ["report.html", "table.csv", "table.tex", "poisoning.csv", "poisoning_runs.csv"]
    assert grid.write(folder) == [folder / name for name in names]
    folder = made_sweep.folder(tmp_path / "both", made_siege.audited(siege()))
    assert [str(path.relative_to(folder)) for path in grid.write(folder)] == [
        *("report.html", "figures/frontier_tpr.pdf", "figures/frontier_auc.pdf", "frontier.csv"),
        *("table.csv", "table.tex", "poisoning.csv", "poisoning_runs.csv"),
    ]


def test_a_row_for_every_cell_with_every_measure(tmp_path: Path) -> None:
    folder = made_sweep.folder(tmp_path, siege())
    grid.write(folder)
    table = {(row["attack"], row["defence"]): row for row in rows(folder / "poisoning.csv")}
    assert len(table) == 9
    one = Siege.of(FinishedSweep.read(folder))
    points = {(one.places.attack(point), one.places.defence(point)): point for point in one.sweep.points}
    assert len(one.measures()) == 8
    for place, row in table.items():
        for measure in one.measures():
            found = measure.figure(one, points[place])
            sides = [row[f"{measure.key}{side}"] for side in ("", "_low", "_high")]
            assert [float(side) if side else None for side in sides] == [found.value, found.low, found.high]
    row = table["replacement", "fedavg"]
    assert (row["plants"], row["planted"], row["seeds"], row["rule"]) == ("True", "True", "3", "fedavg")
    assert (row["adversary"], row["cell"]) == (
        "replacement(gamma=10)",
        "adversary=replacement, aggregator=fedavg",
    )
    assert table["replacement", "norm bound"]["planted"] == "False"
    assert table["replacement", "norm bound"]["labels"] == "norm_bounding(bound=2.0)"
    assert (table["no attack", "krum"]["planted"], table["no attack", "krum"]["adversary"]) == ("", "")


def test_a_row_for_every_run_with_its_own_figures(tmp_path: Path) -> None:
    data = siege()
    made_sweep.undo(data["cells"][-1], "failed", "out of memory")
    data["cells"][-1]["poisoning"] = None
    folder = made_sweep.folder(tmp_path, data)
    grid.write(folder)
    table = rows(folder / "poisoning_runs.csv")
    assert len(table) == 27
    (row,) = [one for one in table if (one["cell"], one["seed"]) == ("adversary=replacement, aggregator=krum", "1")]
    expected = share(42, TRIGGERED)
    found = [float(row[f"backdoor_attacked{side}"]) for side in ("", "_low", "_high")]
    assert found == [expected["value"], expected["low"], expected["high"]]
    assert [row[name] for name in ("attackers_answers", "attackers_rejected", "honest_kept", "persistence")] == [
        *("10.0", "0.5", "0.9", "9.0")
    ]
    assert (row["persistence_censored"], row["fresh"], row["main_lowest"]) == ("False", "False", "0.5")
    assert (table[-1]["status"], table[-1]["failure"], table[-1]["backdoor_last"]) == (
        "failed",
        "out of memory",
        "",
    )
    assert table[0]["adversary"] == ""


def test_no_cell_of_the_sieges_tables_is_a_formula(tmp_path: Path) -> None:
    folder = made_sweep.folder(tmp_path, made_siege.hostile())
    grid.write(folder)
    for name in ("poisoning.csv", "poisoning_runs.csv"):
        texts = [text for row in rows(folder / name) for text in row.values() if text and not is_number(text)]
        assert any(text.startswith("'=") for text in texts)
        assert not [text for text in texts if text.startswith(("=", "+", "-", "@"))]


def test_latex_tables_of_attacks_by_defences(tmp_path: Path) -> None:
    text = latex(read(tmp_path, siege()))
    lines = [line.strip() for line in text.splitlines()]
    assert text.count("\\begin{table}") == 4
    assert lines.count("& fedavg & norm bound & krum \\\\") == 4
    assert "replacement & 94.0 & 6.0 & 84.0 \\\\" in lines
    assert "& {\\scriptsize [88.1--99.0]} & {\\scriptsize [1.0--11.9]} & {\\scriptsize [76.8--89.0]} \\\\" in lines
    assert "no attack & 81.0 & 80.5 & 75.0 \\\\" in lines
    assert "no attack & -- & -- & -- \\\\" not in lines
    captions = [line for line in lines if line.startswith("\\caption")]
    assert captions[0] == (
        "\\caption{Three defences against two attackers: backdoor accuracy after the first attack (\\%), attacks "
        "by defences.}"
    )
    assert {line.count("&") for line in lines if line.endswith("\\\\")} == {3}


def test_latex_tables_have_a_block_per_setting_and_wrap(tmp_path: Path) -> None:
    text = latex(read(tmp_path, siege(models=("mlp", "cnn"), seeds=(0,))))
    assert text.count("\\multicolumn{4}{l}{\\itshape model=mlp}") == 4
    data = siege(seeds=(0,), attacks=("replacement",), defences=("fedavg",))
    data["cells"] = [
        one | {"name": f"d{i}", "axes": {"aggregator": f"d{i}"}} for i in range(8) for one in data["cells"]
    ]
    text = latex(read(tmp_path, data))
    assert "& d0 & d1 & d2 & d3 & d4 & d5 \\\\" in text
    assert "& d6 & d7 \\\\" in text


def test_hostile_names_of_a_siege_end_no_group(tmp_path: Path) -> None:
    text = latex(read(tmp_path, made_siege.hostile()))
    assert text.count("\\end{table}") == text.count("\\begin{table}") == 4
    assert "</script>" not in text
    assert text.count("$") == text.count(r"\$")


def test_a_notebook_shows_the_first_table(tmp_path: Path) -> None:
    made_sweep.folder(tmp_path, siege())
    sweep = SweepResult.read(tmp_path)
    shown = sweep._repr_html_()
    assert shown.count("<table") == 1
    assert "norm bound keeps backdoors out" in shown
    assert list(sweep.poisoning()["defence"].unique()) == ["fedavg", "norm bound", "krum"]
    assert len(sweep.poisoning_runs()) == 27
    made_sweep.folder(tmp_path / "plain", made_sweep.sweep())
    plain = SweepResult.read(tmp_path / "plain")
    for table in (plain.poisoning, plain.poisoning_runs):
        with pytest.raises(InputError, match="nothing about poisoning; expected cells with an adversary"):
            table()


def test_equal_sieges_give_equal_bytes(tmp_path: Path) -> None:
    written = [grid.write(made_sweep.folder(tmp_path / name, siege())) for name in ("a", "b")]
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]
