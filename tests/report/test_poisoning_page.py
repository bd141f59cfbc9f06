"""The page, the terminal's tables, the files and the figure of a run with compromised clients."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from rich.console import Console

from fedsiege import report
from fedsiege.errors import InputError
from fedsiege.report import Result
from fedsiege.report.finished import Finished
from fedsiege.report.html import page
from fedsiege.report.poisoning.charts import chart_data
from fedsiege.report.poisoning.figures import accuracy_figure
from fedsiege.report.poisoning.rows import SENT, lines, moments, sent
from fedsiege.report.poisoning.schema import Poisoning, Sent
from fedsiege.report.tables import latex
from fedsiege.report.terminal import summary

from . import made
from .made_poisoning import (
    HELD,
    SHOT,
    TRIGGERED,
    alone,
    fading,
    garbled,
    hostile,
    poisoned,
    repeated,
    share,
    unattacked,
    untargeted,
    voted,
)
from .page import Node, parse
from .written import sections

ALONE = ["hijack", "accuracy", "threat", "components", "data", "cost", "provenance", "config", "glossary"]


def data() -> dict[str, Any]:
    return made.result(targets=1)[0]


def lone_run(place: Path, content: dict[str, Any]) -> Finished:
    return Finished.read(made.folder(place, *alone(content)))


def tree(run: Finished) -> Node:
    return parse(page(run))


def cells(table: Node) -> dict[str, list[str]]:
    """The first column -> the first line of the others."""
    found = {}
    for row in table.one("tbody").all("tr"):
        values = [cell.all("span", class_="value") or [cell] for cell in row.all("td")]
        found[row.one("th").text] = [value[0].text for value in values]
    return found


def printed(run: Finished, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(summary(run, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().replace("\u00a0", " ")


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


# --- the page


def test_a_run_without_an_audit_has_no_section_on_membership(tmp_path: Path) -> None:
    root = tree(lone_run(tmp_path, poisoned(data())))
    assert sections(root) == ALONE
    assert [link.attributes["href"] for link in root.one("nav").all("a")] == [f"#{name}" for name in ALONE]
    text = page(lone_run(tmp_path, poisoned(data()))).partition("* plotly.js v")[0]
    for word in ("membership", "Candidates", "TPR", "non-member", "No attack was measured"):
        assert word not in text
    assert root.one("p", class_="overline").text == "Poisoning of a federation"


def test_an_audited_run_with_attackers_has_both_parts(tmp_path: Path) -> None:
    content, curves = made.result()
    root = tree(Finished.read(made.folder(tmp_path, poisoned(content), curves)))
    assert sections(root) == ["roc", "figures", "clients", "rounds", *ALONE]
    assert root.one("p", class_="overline").text == "Privacy audit and poisoning of a federation"
    statements = [node.text for node in root.all("p", class_="statement")]
    assert [text.split()[0] for text in statements] == ["FedMIA-II", "Model"]
    names = [node.attributes["aria-label"] for node in root.all("section") if "aria-label" in node.attributes]
    assert names == ["Headline finding", "Headline finding on poisoning", "Warnings"]
    words = [node.text for node in root.one("section", id="glossary").all("dt")]
    assert {"TPR at an FPR", "Persistence"} <= set(words)


def test_a_run_that_nobody_attacked_says_nothing_of_poisoning(folder: Path) -> None:
    root = tree(Finished.read(folder))
    assert "hijack" not in sections(root)
    assert root.one("p", class_="overline").text == "Privacy audit of a federation"
    assert "Persistence" not in root.one("section", id="glossary").text
    assert json.loads(root.one("script", id="chart-data").text)["hijack"] is None


def test_the_figures_stand_large_below_the_headline(tmp_path: Path) -> None:
    root = tree(lone_run(tmp_path, poisoned(data())))
    tiles = [[part.text for part in tile.all("dd")] for tile in root.one("dl", class_="tiles").all("div")]
    assert [[text.replace("\u00a0", " ") for text in tile] for tile in tiles] == [
        ["96.0 %", "after the attack, 86.5–98.9 %"],
        ["17", "at 50 % or above, after the last attack"],
        ["91.4 %", "at the end, 90.3 % before the attack"],
        ["0 %", "of 1 answer; 0 % of honest ones"],
    ]
    later = (
        tree(lone_run(tmp_path / "later", repeated(data()))).one("dl", class_="tiles").text.replace("\u00a0", " ")
    )
    assert "at the end, 48.2–74.1 %" in later
    assert "0 or more" in later
    nobody = tree(lone_run(tmp_path / "nobody", unattacked(data()))).one("dl", class_="tiles").text
    assert "rejected" not in nobody
    assert "before" not in nobody


def test_the_tables_of_the_section(tmp_path: Path) -> None:
    section = tree(lone_run(tmp_path, poisoned(data()))).one("section", id="hijack")
    accuracies, answers, submitted, by_round = section.all("table")
    heads = [head.text for head in accuracies.one("thead").all("th")]
    assert heads == ["Measure", "Before", "After the attack", "At the end", "Over the rounds"]
    assert cells(accuracies) == {
        "Main accuracy": ["90.3", "75.0", "91.4", "lowest 75.0"],
        "Backdoor accuracy": ["4.0", "96.0", "28.0", "mean 54.3"],
        "Clean images taken for bird": ["1.2", "3.1", "1.2", "–"],
    }
    intervals = [span.text for span in accuracies.all("span", class_="interval")]
    assert intervals[:5] == ["86.8–92.9", "70.3–79.2", "88.0–93.9", "70.3–79.2", "1.1–13.5"]
    assert "50 held-out triggered images" in accuracies.one("caption").text.replace("\u00a0", " ")
    assert cells(answers) == {
        "Attackers": ["1", "0", "1.000", "0.137"],
        "Honest clients": ["599", "0", "1.000", "0.988"],
    }
    assert cells(submitted) == {"30": ["1", "36.44", "12.3", "1 of 10", "0.012", "72.3", "98.0"]}
    table = cells(by_round)
    assert len(table) == 61
    assert table["0"] == ["10.0", "0", "5.0", ""]
    assert table["30"] == ["74.6", "96.0", "1.2", "1"]


def test_a_column_has_what_whoever_predicts_as_a_defence_asks_gets(tmp_path: Path) -> None:
    run = lone_run(tmp_path, voted(data()))
    table = tree(run).one("section", id="hijack").all("table")[0]
    heads = [head.text for head in table.one("thead").all("th")]
    assert heads[3:] == ["At the end", "At the end, predicted as crfl asks", "Over the rounds"]
    assert {name: row[2:] for name, row in cells(table).items()} == {
        "Main accuracy": ["91.4", "87.5", "lowest 75.0"],
        "Backdoor accuracy": ["28.0", "18.0", "mean 54.3"],
        "Clean images taken for bird": ["1.2", "1.9", "–"],
    }
    assert "The defence crfl(sigma=0.5) says how the final model is to be used" in table.one("caption").text
    found = latex(run)
    assert (
        "& Before & After the attack & At the end & At the end, predicted as crfl asks & Over the rounds" in found
    )
    report.write(run.folder)
    figures = {(row["measure"], row["of"]): row["value"] for row in rows(run.folder / "poisoning.csv")}
    used = [figures[name, "defended_use"] for name in ("main_accuracy", "backdoor_accuracy", "mistaken")]
    assert [float(value) for value in used] == pytest.approx([315 / 360, 9 / 50, 6 / 324])
    plain = tree(lone_run(tmp_path / "plain", poisoned(data()))).one("section", id="hijack").all("table")[0]
    assert "predicted" not in plain.text


def test_answers_that_nobody_could_use_have_a_column_where_there_are_any(tmp_path: Path) -> None:
    run = lone_run(tmp_path, garbled(data()))
    root = tree(run)
    section = root.one("section", id="hijack")
    table = section.all("table")[1]
    heads = [head.text for head in table.one("thead").all("th")]
    assert heads == ["Whose", "Answers", "Unusable", "Rejected", "Mean share kept", "Mean factor"]
    assert cells(table) == {
        "Attackers": ["80", "20", "75.0", "0.250", "1.000"],
        "Honest clients": ["520", "1", "2.5", "0.975", "1.000"],
    }
    assert "of those that could be used" in table.one("caption").text
    assert "In 5 of 45 planned rounds of attack there was none" in section.text.replace("\u00a0", " ")
    assert "of 60 answers" in root.one("dl", class_="tiles").text.replace("\u00a0", " ")
    report.write(run.folder)
    figures = {(row["measure"], row["of"]): row for row in rows(run.folder / "poisoning.csv")}
    assert [figures["unusable", "attackers"][side] for side in ("value", "n")] == ["20.0", "80"]
    assert [figures[name, "honest"]["n"] for name in ("rejected", "kept", "scale")] == ["519"] * 3
    honest = garbled(data())
    honest["poisoning"]["detection"]["attackers"]["unusable"] = 0
    assert (
        "Unusable" in tree(lone_run(tmp_path / "honest", honest)).one("section", id="hijack").all("table")[1].text
    )


def test_columns_and_tables_without_a_figure_are_left_out(tmp_path: Path) -> None:
    section = tree(lone_run(tmp_path, unattacked(data()))).one("section", id="hijack")
    assert "No client attacks in this run. What a model does with the trigger" in section.text
    tables = section.all("table")
    assert [head.text for head in tables[0].one("thead").all("th")] == ["Measure", "At the end", "Over the rounds"]
    content = unattacked(data())
    content["poisoning"]["success"]["before"] = share(1, TRIGGERED)
    measured = tree(lone_run(tmp_path / "measured", content)).one("section", id="hijack").all("table")[0]
    assert measured.one("thead").all("th")[1].text == "At the start"
    assert list(cells(tables[1])) == ["Honest clients"]
    assert len(tables) == 3  # nothing was submitted
    plain = tree(lone_run(tmp_path / "plain", untargeted(data()))).one("section", id="hijack")
    assert list(cells(plain.all("table")[0])) == ["Main accuracy"]
    assert cells(plain.all("table")[2])["30"][4:] == ["–", "72.3", "–"]
    assert [button.text for button in plain.all("button")] == ["Main accuracy"]


def test_many_submitted_updates_are_folded_away(tmp_path: Path) -> None:
    few = tree(lone_run(tmp_path / "few", poisoned(data()))).one("section", id="hijack")
    assert [one.text for one in few.all("summary")] == ["Accuracies round by round"]
    many = tree(lone_run(tmp_path / "many", repeated(data()))).one("section", id="hijack")
    assert [one.text.replace("\u00a0", " ") for one in many.all("summary")] == [
        "All 40 rounds of attack",
        "Accuracies round by round",
    ]
    assert "Triangles and dotted lines: rounds of attack." in few.one("figcaption").text
    assert "Strokes at the foot: rounds of attack." in many.one("figcaption").text


def test_secure_aggregation_rejects_nobody(tmp_path: Path) -> None:
    content = poisoned(data())
    content["threat_model"]["secure_aggregation"] = True
    text = tree(lone_run(tmp_path, content)).one("section", id="hijack").text
    assert "Under secure aggregation the server sees no single answer" in text


def test_the_clients_that_the_adversary_plays_are_marked(tmp_path: Path) -> None:
    table = tree(lone_run(tmp_path, poisoned(data()))).one("section", id="data").all("table")[0]
    assert [row.all("td")[-1].text for row in table.one("tbody").all("tr")] == [
        "the adversary" if client == 3 else "itself" for client in range(10)
    ]
    table = tree(lone_run(tmp_path, unattacked(data()))).one("section", id="data").all("table")[0]
    assert "Played by" not in table.text


def test_an_attack_that_never_acted_is_flagged(tmp_path: Path) -> None:
    content = poisoned(data())
    for one in content["components"]:
        if one["kind"] in ("poisoning", "server_defence"):
            one["acted"] = False
    warned = tree(lone_run(tmp_path, content)).one("section", class_="warnings").text
    assert "Never acted: model_replacement(gamma=10) and norm_bounding(bound=5.0)." in warned


def test_the_page_on_poisoning_is_accessible(tmp_path: Path) -> None:
    root = tree(lone_run(tmp_path, repeated(data())))
    for table in root.all("table"):
        assert table.one("caption").text
        assert all(cell.attributes["scope"] in {"col", "row"} for cell in table.all("th"))
        assert len({len(row.all("th") + row.all("td")) for row in table.all("tr")}) == 1
    chart = root.one("div", id="chart-hijack")
    assert chart.attributes["role"] == "img"
    assert chart.attributes["aria-label"].startswith(
        "Main accuracy, Backdoor accuracy, Clean images taken for bird of"
    )
    assert all(node.attributes["tabindex"] == "0" for node in root.all("div", class_="scroll"))


def test_hostile_names_of_attackers_stay_text(tmp_path: Path) -> None:
    run = lone_run(tmp_path, hostile(data()))
    text = page(run)
    assert "<script>document.title" not in text
    assert "<img" not in text.partition("* plotly.js v")[0]
    root = parse(text)
    assert made.HOSTILE in root.one("p", class_="statement").text
    assert made.HOSTILE in root.one("section", id="hijack").text
    assert len(root.all("script")) == 3
    chart = json.loads(root.one("script", id="chart-data").text)["hijack"]
    assert "<" not in json.dumps(chart)
    assert "&lt;/script&gt;" in chart["series"][2]["look"]["name"]


def test_chart_data_are_the_history_with_wilsons_limits(tmp_path: Path) -> None:
    chart = chart_data(lone_run(tmp_path, poisoned(data())))
    assert chart is not None
    main, backdoor, mistaken = chart["series"]
    assert [one["key"] for one in chart["series"]] == ["main", "backdoor", "mistaken"]
    assert list(backdoor["round"]) == list(range(61))
    assert list(backdoor["value"]) == [0.0, *(fading(number) for number in range(1, 61))]
    expected = share(48, TRIGGERED)
    assert (backdoor["low"][SHOT], backdoor["high"][SHOT]) == (
        pytest.approx(expected["low"]),
        pytest.approx(expected["high"]),
    )
    value = main["value"][10]
    assert main["low"][10] == pytest.approx(share(round(value * HELD), HELD)["low"])
    assert mistaken["high"][5] == pytest.approx(share(4, 324)["high"])
    assert chart["attacks"] == [(SHOT, 1)]
    assert len({one["look"]["dash"] for one in chart["series"]}) == 3


def test_rounds_that_were_not_measured_are_no_points(tmp_path: Path) -> None:
    content = poisoned(data())
    for one in content["task"]["history"]:
        if one["round"] % 10:
            one["backdoor"] = None
    chart = chart_data(lone_run(tmp_path, content))
    assert chart is not None
    assert list(chart["series"][1]["round"]) == list(range(0, 61, 10))
    later = poisoned(data())
    for one in later["task"]["history"]:
        one["attackers"] = 0  # what was submitted says it too
    assert chart_data(lone_run(tmp_path, later))["attacks"] == [(SHOT, 1)]  # type: ignore[index]
    content["poisoning"]["attacks"] = []  # and so does the history
    assert chart_data(lone_run(tmp_path, content))["attacks"] == [(SHOT, 1)]  # type: ignore[index]


# --- the terminal


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_has_every_figure(tmp_path: Path, width: int) -> None:
    text = printed(lone_run(tmp_path, poisoned(data())), width)
    for word in ("Model replacement plants its backdoor", "96.0", "86.5–98.9", "lowest 75.0", "mean 54.3", "0.137"):
        assert word in text
    assert "36.44" in text
    assert "what attackers submitted" in text
    assert max(map(len, text.splitlines())) <= width
    for word in ("TPR", "No attack was measured", "non-members"):
        assert word not in text


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_has_what_is_defended_and_what_was_unusable(tmp_path: Path, width: int) -> None:
    text = printed(lone_run(tmp_path / "voted", voted(data())), width)
    for word in ("Predicted as crfl(sigma=0.5) asks", "18.0", "87.5", "asks"):
        assert word in text
    assert "Unusable" not in text
    assert max(map(len, text.splitlines())) <= width
    text = printed(lone_run(tmp_path, garbled(data())), width)
    (row,) = [line.split() for line in text.splitlines() if line.strip().startswith("Attackers ")]
    assert row[:4] == ["Attackers", "80", "20", "75.0"]
    assert "Unusable" in text
    assert "In 5 of 45 planned" in " ".join(text.split())


def test_the_terminal_stops_after_some_rounds(tmp_path: Path) -> None:
    text = printed(lone_run(tmp_path, repeated(data())), 140)
    assert "what attackers submitted; 28 more rounds in report.html" in text
    assert text.count("2 of 10") == 12
    assert "An adversary (dba) plays clients 0 and 5 of 10 clients" in text


def test_the_terminal_of_a_plain_audit_is_as_it_was(folder: Path) -> None:
    text = printed(Finished.read(folder), 140)
    assert "The server" not in text
    assert "what became of answers" not in text


def test_markup_of_rich_in_names_of_attackers_is_text(tmp_path: Path) -> None:
    content = poisoned(data())
    content["poisoning"]["adversary"]["title"] = "[bold red]x[/bold red]"
    content["poisoning"]["backdoor"]["target_name"] = "[link=y]bird[/link]"
    text = printed(lone_run(tmp_path, content), 200)
    assert "[bold red]x[/bold red] plants" in text
    assert "Clean images taken for [link=y]bird[/link]" in text


# --- files


def test_the_files_of_a_run_without_an_audit(tmp_path: Path) -> None:
    run = lone_run(tmp_path, poisoned(data()))
    names = ["report.html", "figures/accuracy.pdf", "table.csv", "table.tex", "poisoning.csv", "rounds.csv"]
    assert report.write(run.folder) == [run.folder / name for name in names]
    assert (run.folder / "table.csv").read_text().startswith("attack,title,upper_bound,target,")
    assert rows(run.folder / "table.csv") == []


def test_the_files_of_a_run_with_both(tmp_path: Path) -> None:
    content, curves = made.result(targets=1)
    folder = made.folder(tmp_path, poisoned(content), curves)
    assert [str(path.relative_to(folder)) for path in report.write(folder)] == [
        *("report.html", "figures/roc.pdf", "figures/rounds.pdf", "figures/accuracy.pdf"),
        *("table.csv", "table.tex", "poisoning.csv", "rounds.csv"),
    ]
    text = (folder / "table.tex").read_text()
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 2


def test_every_figure_is_in_the_csv(tmp_path: Path) -> None:
    run = lone_run(tmp_path, poisoned(data()))
    report.write(run.folder)
    table = {(row["measure"], row["of"]): row for row in rows(run.folder / "poisoning.csv")}
    wanted = run.data["poisoning"]
    for measure, part in (("main_accuracy", "main"), ("backdoor_accuracy", "success"), ("mistaken", "mistaken")):
        for moment in ("before", "attacked", "last"):
            row = table[measure, moment]
            assert [float(row[side]) for side in ("value", "low", "high", "n")] == list(
                wanted[part][moment].values()
            )
    assert float(table["main_accuracy", "lowest"]["value"]) == 0.75
    assert float(table["backdoor_accuracy", "mean"]["value"]) == 0.5432
    assert (table["persistence", "rounds"]["value"], table["persistence", "rounds"]["low"]) == ("17.0", "")
    assert [table["scale", "attackers"]["value"], table["scale", "attackers"]["n"]] == ["0.1372", "1"]
    assert [table["rejected", "honest"][side] for side in ("value", "low", "n")] == ["0.0", "0.0", "599"]
    later = Result.read(made.folder(tmp_path / "later", *alone(repeated(data())))).poisoning_table()
    assert list(later[later["measure"] == "persistence"]["of"]) == ["run_ended"]


def test_rounds_and_what_was_submitted_in_them_are_in_a_csv(tmp_path: Path) -> None:
    run = lone_run(tmp_path, poisoned(data()))
    report.write(run.folder)
    table = rows(run.folder / "rounds.csv")
    assert [int(row["round"]) for row in table] == list(range(61))
    shot = table[SHOT]
    assert (shot["attackers"], shot["norm_rank"], shot["of"]) == ("1", "1", "10")
    assert [
        float(shot[name]) for name in ("backdoor", "norm_ratio", "submitted_accuracy", "submitted_backdoor")
    ] == [*(0.96, 12.34, 0.7234, 0.98)]
    assert table[0]["accuracy"] == "0.1"
    assert (table[5]["norm"], table[5]["attackers"]) == ("", "0")


def test_a_round_of_attack_that_was_not_measured_has_its_row(tmp_path: Path) -> None:
    content = poisoned(data())
    content["task"]["history"] = [one for one in content["task"]["history"] if one["round"] != SHOT]
    table = Result.read(made.folder(tmp_path, *alone(content))).rounds_table()
    row = table[table["round"] == SHOT].to_dict("records")[0]
    assert math.isnan(row["accuracy"])
    assert (row["norm"], row["attackers"]) == (36.441, 1)


def test_the_latex_table_of_an_attacked_run(tmp_path: Path) -> None:
    found = [line.strip() for line in latex(lone_run(tmp_path, poisoned(data()))).splitlines()]
    assert "& Before & After the attack & At the end & Over the rounds \\\\" in found
    assert "Backdoor accuracy (\\%) & 4.0 & 96.0 & 28.0 & mean 54.3 \\\\" in found
    assert (
        "& {\\scriptsize [1.1--13.5]} & {\\scriptsize [86.5--98.9]} & {\\scriptsize [17.5--41.7]} &  \\\\" in found
    )
    assert "\\begin{tabular}{lrrrr}" in found
    assert found.count("\\begin{table}") == 1
    caption = found[3]
    assert "accuracy of the global model under Model replacement; backdoor accuracy on 50~held-out" in caption
    unfound = latex(lone_run(tmp_path, unattacked(data())))
    assert "without an attack" in unfound
    assert "& At the end & Over the rounds \\\\" in unfound


def test_hostile_names_of_attackers_end_no_group_and_run_no_formula(tmp_path: Path) -> None:
    run = lone_run(tmp_path, hostile(data()))
    report.write(run.folder)
    text = (run.folder / "table.tex").read_text()
    assert text.count("\\end{table}") == 1
    assert text.count("$") == text.count(r"\$")
    assert r"=\_\$\textbackslash{}x" in text
    for name in ("poisoning.csv", "rounds.csv"):
        texts = [text for row in rows(run.folder / name) for text in row.values() if text]
        assert not [text for text in texts if text.startswith(("=", "+", "@"))]


def test_a_notebook_shows_both_parts(tmp_path: Path) -> None:
    run = Result.read(made.folder(tmp_path, *alone(hostile(data()))))
    shown = run._repr_html_()
    assert "<script>" not in shown
    assert shown.count("<tr") == 4
    assert "plants its backdoor" in shown
    content, curves = made.result(targets=1)
    both = Result.read(made.folder(tmp_path / "both", poisoned(content), curves))._repr_html_()
    assert both.count("<table") == 2
    assert run.plot().axes[0].get_ylabel() == "Accuracy on held-out data"


def test_tables_that_a_run_does_not_have_are_refused(tmp_path: Path, folder: Path) -> None:
    run = Result.read(made.folder(tmp_path, *alone(poisoned(data()))))
    with pytest.raises(InputError, match="no membership attack was made in this run; see poisoning_table"):
        run.table()
    for table in (Result.read(folder).poisoning_table, Result.read(folder).rounds_table):
        with pytest.raises(InputError, match="nothing about poisoning; expected a run with an adversary"):
            table()


# --- the figure


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata(), dtype=np.float64)]


def test_the_figure_has_the_history_and_the_rounds_of_attack(tmp_path: Path) -> None:
    axes = accuracy_figure(lone_run(tmp_path, poisoned(data()))).axes[0]
    drawn = {str(line.get_label()): line for line in axes.get_lines()}
    assert points(drawn["Backdoor accuracy"])[SHOT] == (SHOT, 0.96)
    assert len(points(drawn["Main accuracy"])) == 61
    assert points(drawn["round of attack"]) == [(SHOT, 0.0)]
    dotted = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert [points(line)[0][0] for line in dotted] == [SHOT]
    (band,) = [one for one in axes.collections if isinstance(one, PolyCollection)]
    heights = np.asarray(band.get_paths()[0].vertices)
    at_shot = heights[heights[:, 0] == SHOT][:, 1]
    expected = share(48, TRIGGERED)
    assert [at_shot.min(), at_shot.max()] == pytest.approx([expected["low"], expected["high"]])
    assert axes.get_ylim() == (0, 1.02)


def test_many_rounds_of_attack_are_strokes(tmp_path: Path) -> None:
    axes = accuracy_figure(lone_run(tmp_path, repeated(data()))).axes[0]
    assert not [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    (marks,) = [line for line in axes.get_lines() if line.get_label() == "round of attack"]
    assert marks.get_marker() == "|"
    assert len(points(marks)) == 40


def test_the_figure_of_a_run_without_history_says_so(tmp_path: Path) -> None:
    content = poisoned(data())
    content["task"]["history"] = []
    (text,) = accuracy_figure(lone_run(tmp_path, content)).axes[0].texts
    assert text.get_text() == "nothing was recorded"
    assert "chart-hijack" not in page(lone_run(tmp_path, content)).partition("* plotly.js v")[0]


# --- what a file may leave out


def test_an_audit_behind_a_server_that_rejects_answers_says_so(tmp_path: Path) -> None:
    content, curves = made.result(targets=1)
    part = unattacked(content)["poisoning"] | {"backdoor": None, "success": None, "mistaken": None}
    run = Finished.read(made.folder(tmp_path, content | {"poisoning": part}, curves))
    root = tree(run)
    assert root.one("section", id="hijack").one("h2").text == "Does the server reject honest clients?"
    assert root.one("p", class_="overline").text == "Privacy audit of a federation"
    assert len(root.all("p", class_="statement")) == 1
    assert "599" in root.one("section", id="hijack").text
    assert not (tmp_path / "figures" / "accuracy.pdf").exists()
    names = [path.name for path in report.write(run.folder)]
    assert names == [
        "report.html",
        "roc.pdf",
        "rounds.pdf",
        "table.csv",
        "table.tex",
        "poisoning.csv",
        "rounds.csv",
    ]


def test_a_run_in_which_nothing_is_asked_is_a_training(tmp_path: Path) -> None:
    root = tree(lone_run(tmp_path, data()))
    assert root.one("p", class_="overline").text == "Training of a federation"
    assert sections(root) == [name for name in ALONE if name not in ("hijack", "glossary")]


def test_a_bare_part_about_poisoning_is_read(tmp_path: Path) -> None:
    content = data() | {"poisoning": {}}
    run = lone_run(tmp_path, content)
    assert lines(run.poisoning or Poisoning()) == []
    assert moments(Poisoning()) == {}
    assert report.write(run.folder)
    assert "\\toprule" in latex(run)
    assert printed(run, 80)


def test_a_submitted_update_with_nothing_to_compare_it_with() -> None:
    assert sent(Sent(round=3, attackers=2)) == ["3", "2", *["–"] * 6]
    assert len(SENT) == 8
    assert sent(Sent(round=3, attackers=2, norm=1.0, norm_rank=2))[4] == "–"
