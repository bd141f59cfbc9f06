"""report.html of a sweep, without a browser."""

import json
import re
from pathlib import Path

import pytest

from fedsiege.report.grid.charts import chart_data
from fedsiege.report.grid.html import page, report_of

from . import made, made_sweep
from .made_sweep import grid, run
from .page import Node, parse
from .written import read, sections, tree


def cells(row: Node) -> list[str]:
    """The first line of each cell."""
    found = []
    for cell in row.all("td"):
        values = [one for one in cell.all("span") if one.attributes.get("class", "").split()[:1] == ["value"]]
        found.append((values or [cell])[0].text)
    return found


def test_sections_of_a_sweep_in_order(tmp_path: Path) -> None:
    root = tree(tmp_path / "full", made_sweep.troubled())
    everything = [
        "settings",
        "tpr",
        "auc",
        "hypervolume",
        "strongest",
        "cells",
        "privacy",
        "unfinished",
        "glossary",
    ]
    assert sections(root) == everything
    assert [link.attributes["href"] for link in root.one("nav").all("a")] == [f"#{name}" for name in everything]
    plain = tree(tmp_path / "plain", made_sweep.sweep())
    assert sections(plain) == ["tpr", "auc", "hypervolume", "strongest", "cells", "glossary"]
    assert not plain.all("section", class_="warnings")
    undefended = tree(tmp_path / "undefended", grid(run("none", 0, 0.5, {"x": 0.4})))
    assert sections(undefended) == ["tpr", "auc", "strongest", "cells", "glossary"]
    failed = run("p", 0, 0.5, {}, "p") | {"status": "failed", "accuracy": None}
    assert sections(tree(tmp_path / "failed", grid(failed))) == ["unfinished", "glossary"]


def test_the_page_of_a_sweep_begins_with_its_verdict(tmp_path: Path) -> None:
    root = tree(tmp_path, made_sweep.sweep())
    assert root.one("h1").text == "Six defences on CIFAR-100"
    assert root.one("p", class_="statement").text.startswith(
        "The best defence within an accuracy budget of 2 points is half data: it brings the strongest attack’s TPR "
        "at 0.1 % FPR from 69.0 % to 24.2 % (FedMIA-II), and costs 1.7 points"
    )
    tiles = [[part.text for part in tile.all("dd")] for tile in root.one("dl", class_="tiles").all("div")]
    assert [tile[0] for tile in tiles] == ["69.0 %", "24.2 %", "1.7 points", "40.5 %"]
    assert tiles[0][1] == "TPR at 0.1 % FPR, FedMIA-II, 64.0–74.0 %"
    assert "calm" in root.one("section", aria_label="Headline finding").attributes["class"].split()


def test_hypervolumes_with_their_marks(tmp_path: Path) -> None:
    table = tree(tmp_path, made_sweep.sweep()).one("section", id="hypervolume").one("table")
    assert [head.text.replace("\u00a0", " ") for head in table.one("thead").all("th")][1:] == [
        "undefended1 cell",
        "perturb2 cells",
        "sparsify2 cells",
        "augment + sample1 cell",
    ]
    body = {row.one("th").text: row for row in table.one("tbody").all("tr")}
    assert list(body) == [
        *("FedMIA-II", "Avg-Cosine", "Loss-Series", "FedMIA-II (non-zero coordinates) adapted"),
        "Strongest on each cell",
    ]
    assert cells(body["FedMIA-II"]) == ["0.131", "0.316", "0.326", "0.307"]
    assert cells(body["FedMIA-II (non-zero coordinates) adapted"]) == ["–", "–", "0.319", "–"]
    assert [span.text for span in table.all("span", class_="value smallest")] == [
        "0.131",
        "0.316",
        "0.307",
        "0.319",
    ]
    assert [span.text for span in table.all("span", class_="value largest")] == ["0.326", "0.341", "0.380", "0.319"]


def test_a_hypervolume_below_the_undefended_is_not_the_best(tmp_path: Path) -> None:
    data = grid(
        run("none", 0, 0.5, {"x": 0.5}), *(run(p, 0, 0.4, {"x": t}, p) for p, t in (("p", 0.5), ("q", 0.6)))
    )
    table = tree(tmp_path, data).one("section", id="hypervolume").one("table")
    assert cells(table.one("tbody").all("tr")[0]) == ["0.250", "0.200", "0.160"]
    assert not table.all("span", class_="value largest")
    caption = table.one("caption").text
    assert "The column undefended is that of the undefended cell, with its one point" in caption
    assert "unless it is below the undefended" in caption


def test_the_strongest_attack_is_said_to_be_chosen_with_the_truth(tmp_path: Path) -> None:
    section = tree(tmp_path, made_sweep.sweep()).one("section", id="strongest")
    assert "chosen with the truth in hand" in section.text
    rows = {row.all("th")[0].text: row for row in section.one("tbody").all("tr")}
    assert cells(rows["sparsify 0.9sparsify"])[0] == "FedMIA-II (non-zero coordinates) adapted"
    assert cells(rows["perturb 0.05perturb"]) == ["FedMIA-II", "20.7", "0.583", "37.2", "5.0"]
    assert rows["noneundefended"].attributes["class"] == "undefended"


def test_all_cells_by_tpr_and_by_auc(tmp_path: Path) -> None:
    section = tree(tmp_path, made_sweep.troubled()).one("section", id="cells")
    shown = [node for node in section.all("div") if "data-measure" in node.attributes]
    assert [(node.attributes["data-measure"], "hidden" in node.attributes) for node in shown] == [
        ("tpr", False),
        ("auc", True),
    ]
    assert [row.text for row in shown[0].all("tr", class_="setting")] == ["model=alexnet", "model=resnet18"]
    rows = [row for row in shown[0].all("tr") if row.all("td")]
    assert len(rows) == 12
    assert cells(rows[0])[:5] == ["42.2", "25.8†", "56.7", "69.0", "–"]
    assert cells(next(row for row in shown[1].all("tr") if row.all("td")))[2] == "0.727"
    assert "2,000 non-members are too few for 0.1 % FPR" in shown[0].one("p", class_="note").text
    failed = next(row for row in rows if row.one("th").text.startswith("perturb 0.05"))
    assert failed.one("span", class_="tag bad").text == "failed"
    assert [link.attributes["href"] for link in failed.all("a")] == [
        "./cells/perturb-0.05-alexnet/seed0/report.html",
        "./cells/perturb-0.05-alexnet/seed2/report.html",
    ]


def test_a_single_seed_is_said(tmp_path: Path) -> None:
    root = tree(tmp_path, made_sweep.sweep(seeds=(0,)))
    assert "One seed: the intervals of TPR and AUC are the run’s own" in root.one("section", id="cells").text
    first = root.one("section", id="strongest").one("tbody").all("tr")[0]
    assert [one.text for one in first.all("span", class_="interval")] == ["65.0–69.0", "0.748–0.788"]


def test_what_went_wrong_is_read_first(tmp_path: Path) -> None:
    root = tree(tmp_path, made_sweep.troubled())
    text = root.one("section", class_="warnings").text
    assert "Never acted: sparsify(share=0.9), in defences=sparsify 0.9, model=resnet18." in text
    assert "1 run failed" in text
    rows = root.one("section", id="unfinished").one("tbody").all("tr")
    assert [[cell.text for cell in row.all("td")] for row in rows] == [
        ["1", "failed", "training diverged in round 3 & stopped"],
        ["2", "missing", "not made yet; go on with --resume"],
    ]
    assert "ε = 8.25 at δ = 1e-05" in root.one("section", id="privacy").text


def test_verdicts_setting_by_setting(tmp_path: Path) -> None:
    items = tree(tmp_path, made_sweep.troubled()).one("section", id="settings").all("li")
    assert [item.one("h3").text for item in items] == ["model=alexnet", "model=resnet18"]
    assert all("is half data: it brings" in item.text for item in items)


def test_chart_data_are_the_figures(tmp_path: Path) -> None:
    sweep = read(tmp_path, made_sweep.sweep())
    data = json.loads(parse(page(sweep)).one("script", id="chart-data").text)
    assert data == json.loads(json.dumps(chart_data(sweep)))
    (setting,) = data["settings"]
    assert setting["budget"] == pytest.approx(1 - 0.422 + 0.02)
    assert len(setting["panels"]) == 5
    strongest, second = setting["panels"][:2]
    assert [point["name"] for point in strongest["tpr"]["points"]] == list(made_sweep.LEVELS)
    assert [point["family"] for point in strongest["tpr"]["points"]] == [-1, 0, 0, 1, 1, 2]
    assert strongest["tpr"]["points"][3]["attack"] == "FedMIA-II (non-zero coordinates)"
    figure = sweep.points[3].figures["fedmia_ii"]
    assert second["tpr"]["points"][3]["value"] == [figure.tpr.value, figure.tpr.low, figure.tpr.high]
    assert second["auc"]["points"][3]["value"][0] == figure.auc.value
    front = [strongest["tpr"]["points"][i]["name"] for i in strongest["tpr"]["front"]]
    assert front == ["none", "perturb 0.01", "sparsify 0.9", "half data", "perturb 0.05", "sparsify 0.99"]


def test_a_chart_for_every_setting_attack_and_measure(tmp_path: Path) -> None:
    root = tree(tmp_path, made_sweep.sweep(("alexnet", "resnet18")))
    charts = [n for n in root.all("div") if n.attributes.get("class", "").split()[:1] == ["chart"]]
    assert [chart.attributes["id"] for chart in charts] == [
        f"chart-{measure}-{setting}-{panel}"
        for measure in ("tpr", "auc")
        for setting in (0, 1)
        for panel in range(5)
    ]
    assert all(chart.attributes["role"] == "img" for chart in charts)
    panels = [node for node in root.all("div") if "data-setting" in node.attributes]
    assert ["hidden" in node.attributes for node in panels] == [False, True] * 2
    assert [option.text for option in root.one("select", id="setting").all("option")] == [
        "model=alexnet",
        "model=resnet18",
    ]


def test_the_page_of_a_sweep_is_accessible(tmp_path: Path) -> None:
    root = tree(tmp_path, made_sweep.troubled())
    ids = [
        n.attributes["id"]
        for tag in ("section", "h2", "div", "select")
        for n in root.all(tag)
        if "id" in n.attributes
    ]
    assert len(ids) == len(set(ids))
    for section in root.all("section"):
        named = section.attributes.get("aria-label") or section.attributes["aria-labelledby"]
        assert named in [*ids, "Headline finding", "Warnings"]
    for table in root.all("table"):
        assert table.one("caption").text
        assert all(cell.attributes["scope"] in {"col", "row", "rowgroup"} for cell in table.all("th"))
        widths = {sum(int(cell.attributes.get("colspan", 1)) for cell in row.all("th") + row.all("td"))
                  for row in table.all("tr")}  # fmt: skip
        assert len(widths) == 1
    assert all(svg.attributes["aria-hidden"] == "true" for svg in root.all("svg"))
    assert all(node.attributes["tabindex"] == "0" for node in root.all("div", class_="scroll"))


def test_the_page_of_a_sweep_fetches_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path, made_sweep.sweep())
    for tag in ("script", "img", "iframe", "object", "embed", "source", "audio", "video"):
        assert not any("src" in node.attributes for node in root.all(tag))
    assert [node.attributes["href"] for node in root.all("link")] == ["data:,"]
    assert all("@import" not in node.text and "url(" not in node.text for node in root.all("style"))
    assert all(link.attributes["href"].startswith(("#", "./cells/")) for link in root.all("a"))
    policy = root.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


def test_hostile_names_of_a_sweep_stay_text(tmp_path: Path) -> None:
    text = page(read(tmp_path, made_sweep.hostile()))
    assert "<script>document.title" not in text
    assert "<img" not in text.partition("* plotly.js v")[0]
    root = parse(text)
    assert root.one("h1").text == made.HOSTILE
    assert "{{7*7}}" in root.one("p", class_="lead").text
    assert len(root.all("script")) == 3
    assert all(link.attributes["href"].startswith(("#", "./")) for link in root.all("a"))
    data = json.loads(root.one("script", id="chart-data").text)
    assert "<" not in json.dumps(data)


@pytest.mark.parametrize(
    ("folder", "address"),
    [
        ("cells/a b/seed0", "./cells/a%20b/seed0/report.html"),
        ("cells/a#b?c/seed0", "./cells/a%23b%3Fc/seed0/report.html"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29/report.html"),
        ("/etc", ""),
        ("../elsewhere", ""),
        ("", ""),
    ],
)
def test_addresses_of_the_runs_reports(folder: str, address: str) -> None:
    assert report_of(folder) == address


def test_no_number_is_written_without_a_figure(tmp_path: Path) -> None:
    text = page(read(tmp_path, made_sweep.troubled())).partition('<script type="application/json"')[0]
    assert not re.findall(r">\s*(nan|None|inf)\b", text)
