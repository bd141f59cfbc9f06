import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from fedsiege.report.charts import chart_data, embedded
from fedsiege.report.finished import Finished
from fedsiege.report.html import page

from . import made
from .page import Node, parse
from .written import sections

SECTIONS = [
    *("roc", "figures", "clients", "rounds", "accuracy", "null", "paper", "threat", "components", "data"),
    *("cost", "provenance", "config", "glossary"),
]


def tree(folder: Path) -> Node:
    return parse(page(Finished.read(folder)))


def shown_table(root: Node, where: str = "pooled", against: str = "all") -> dict[str, list[str]]:
    """Attack -> the first line of each cell, in one of the switchable tables."""
    table = root.one("div", data_where=where, data_against=against).one("table")
    body = table.one("tbody")
    return {
        row.one("th").text: [cell.all("span", class_="value")[0].text for cell in row.all("td")]
        for row in body.all("tr")
    }


def test_sections_of_a_full_run_in_order(tmp_path: Path) -> None:
    data, curves = made.result()
    root = tree(made.folder(tmp_path, made.with_null_test(made.with_paper(data)), curves))
    assert sections(root) == SECTIONS
    assert [link.attributes["href"] for link in root.one("nav").all("a")] == [f"#{name}" for name in SECTIONS]


def test_sections_that_have_nothing_to_say_are_absent(lone: Path) -> None:
    root = tree(lone)
    assert sections(root) == [name for name in SECTIONS if name not in {"clients", "rounds", "null", "paper"}]
    assert not root.all("section", class_="warnings")
    assert "None is listed." in root.one("section", id="components").text
    assert "chart-accuracy" not in {node.attributes.get("id") for node in root.all("div")}


def test_the_page_begins_with_title_what_was_done_and_the_finding(folder: Path) -> None:
    root = tree(folder)
    assert root.one("h1").text == "Handwritten digits, ten clients"
    assert "10 clients trained a model (mlp" in root.one("p", class_="lead").text
    statement = root.one("p", class_="statement").text
    assert statement.startswith("FedMIA-II recognises 66.1 % of the members at a false-positive rate of 0.1 %")
    assert "4 false positives among 4,000 non-members" in root.one("p", class_="support").text
    tiles = [[part.text for part in tile.all("dd")] for tile in root.one("dl", class_="tiles").all("div")]
    assert [tile[0] for tile in tiles] == ["66.1 %", "0.989", "83.0 %", "91.3 %"]
    assert tiles[2][1] == "client 3, same attack and FPR"
    assert "label_only reaches an AUC of 0.62" in root.one("section", class_="warnings").text


def test_tables_for_every_choice_and_only_the_first_is_shown(folder: Path) -> None:
    root = tree(folder)
    tables = [node for node in root.all("div") if "data-where" in node.attributes]
    choices = [(node.attributes["data-where"], node.attributes["data-against"]) for node in tables]
    assert choices == [(w, a) for w in ("pooled", "mean", "worst") for a in ("all", "ifl", "ofl")]
    assert ["hidden" in node.attributes for node in tables] == [False] + [True] * 8
    checked = [node.attributes["value"] for node in root.all("input") if "checked" in node.attributes]
    assert checked == ["all", "pooled"]


def test_table_figures_intervals_and_false_positives(folder: Path) -> None:
    root = tree(folder)
    run = Finished.read(folder)
    assert shown_table(root)["FedMIA-II"] == ["0.989", "97.4", "83.8", "66.1", "47.0"]
    for row in run.rows("pooled", "ifl"):
        value = row.rate("0.01").value
        assert value is not None
        assert float(shown_table(root, "pooled", "ifl")[row.name][2]) == pytest.approx(100 * value, abs=0.0501)
    table = root.one("div", data_where="pooled", data_against="all")
    best = table.one("tr", class_="best")
    assert [span.text for span in best.all("span", class_="interval")][3] == "63.7–68.4"
    assert "0.1 %† 4 FP" in table.one("thead").text.replace("%†4 FP", "%† 4 FP")
    assert "rests on at most 4 false positives." in table.one("p", class_="note").text
    assert "client 3" in root.one("div", data_where="worst", data_against="all").text


def test_a_cell_says_false_positives_that_differ_from_its_columns(tmp_path: Path) -> None:
    data, curves = made.result()
    for one in data["attacks"]:
        if one["attack"] == "grad_norm":
            one["tpr_at_fpr"]["0.01"]["false_positives"] = 7
    root = tree(made.folder(tmp_path, data, curves))
    rows = root.one("div", data_where="pooled", data_against="all").one("tbody").all("tr")
    noted = [row.one("th").text for row in rows if "7 FP" in row.text]
    assert noted == ["Grad-Norm"]


def test_null_test_verdicts(tmp_path: Path) -> None:
    data, curves = made.result()
    root = tree(made.folder(tmp_path, made.with_null_test(data), curves))
    assert root.one("p", class_="statement").text == "The null test is not passed by Grad-Norm."
    assert "14 of 16" in root.one("dl", class_="tiles").text
    rows = root.one("section", id="null").one("tbody").all("tr")
    assert len(rows) == 2 * len(made.ATTACKS)
    failed = [row for row in rows if row.all("span", class_="tag bad")]
    assert [row.one("th").text for row in failed] == ["Grad-Norm"] * 2
    assert "mean AUC 0.5410 is not within 0.5 +- 0.01" in failed[0].text
    assert "1.03" in failed[0].text
    assert "0.85–1.23" in failed[0].text


def test_paper_comparison(tmp_path: Path) -> None:
    data, curves = made.result()
    section = tree(made.folder(tmp_path, made.with_paper(data), curves)).one("section", id="paper")
    rows = [[cell.text for cell in row.all("td")] for row in section.one("tbody").all("tr")]
    assert rows[0] == ["TPR at 0.1 % FPR", "54.7± 1.22", "25.923.8–28.2", "lower than published"]
    assert rows[2] == ["AUC", "0.890", "–", "not measured"]
    assert section.one("a").attributes["href"] == "https://arxiv.org/abs/2402.06289"


def test_components_that_never_acted_are_flagged(tmp_path: Path) -> None:
    data, curves = made.result()
    data["components"][1] |= {"acted": False, "counters": {}}
    root = tree(made.folder(tmp_path, data, curves))
    assert "Never acted: perturb(sigma=0.1)." in root.one("section", class_="warnings").text
    (row,) = root.one("section", id="components").all("tr", class_="idle")
    assert "never acted" in row.text
    assert "updates 600" in root.one("section", id="components").one("tbody").all("tr")[0].text


def test_what_may_have_acted_is_not_said_to_be_idle(tmp_path: Path) -> None:
    data, curves = made.result()
    data["components"][1] |= {"acted": False, "counters": {"turns": 2}, "unproven": "poisoned_updates"}
    root = tree(made.folder(tmp_path, data, curves))
    warned = root.one("section", class_="warnings").text
    assert "counted nothing as `poisoned_updates`: whether it acted is not known." in warned
    components = root.one("section", id="components")
    assert not components.all("tr", class_="idle")
    assert "not known whether it acted" in components.text
    assert "never acted" not in components.one("tbody").text
    assert "Never acted" not in warned


def test_threat_model_data_cost_provenance_and_config(folder: Path) -> None:
    root = tree(folder)
    text = {name: root.one("section", id=name).text for name in sections(root)}
    assert "A curious server that follows the protocol" in text["threat"]
    assert "There is no secure aggregation" in text["threat"]
    assert "9f3c9f3c" in text["data"]
    assert "3 repeated in the training data, 1 held out but also in the training data" in text["data"]
    assert "Drawn once and frozen" in text["data"]
    for said in ("2 min 14 s", "40.5 s", "869.8 MiB"):
        assert said in text["cost"]
    for said in ("1c9d106", "3.11.7", "torch 2.13.0", "2026-03-01 09:30:00+00:00", "0a1b0a1b"):
        assert said in text["provenance"]
    assert "aggregator: name: fedavg" in text["config"]
    assert "True-positive rate at a false-positive rate" in text["glossary"]


def test_redrawn_candidates_are_not_called_frozen(tmp_path: Path) -> None:
    data, curves = made.result()
    data["data"]["candidates"]["compat"] = "fedmia"
    root = tree(made.folder(tmp_path, data, curves))
    assert "frozen" not in root.one("section", id="data").text
    assert "drawn anew for every client and round" in root.one("section", class_="warnings").text


def test_chart_data_are_the_curves(folder: Path) -> None:
    run = Finished.read(folder)
    data = json.loads(tree(folder).one("script", id="chart-data").text)
    assert data == json.loads(json.dumps(chart_data(run)))
    assert [attack["name"] for attack in data["attacks"]] == [title for title, _, _ in made.ATTACKS.values()]
    best = str(run.styles["fedmia_ii"])
    own = next(row for row in run.rows(2) if row.attack == "fedmia_ii").rate("0.001")
    assert data["clients"]["values"][best]["0.001"][2] == [own.value, own.low, own.high, own.false_positives]
    assert data["rounds"][-1]["kind"] == "multi"
    assert data["history"]["accuracy"][-1] == run.report.task.history[-1].accuracy


def test_figures_of_each_chart_are_there_without_a_script(folder: Path) -> None:
    root = tree(folder)
    run = Finished.read(folder)
    by_client = root.one("section", id="clients").one("table")
    own = next(row for row in run.rows(2) if row.attack == "fedmia_ii").rate("0.001").value
    assert own is not None
    assert by_client.one("tbody").all("tr")[2].all("td")[-1].text.startswith(f"{100 * own:.1f}")
    assert len(root.one("section", id="rounds").one("tbody").all("tr")) == len(made.ROUNDS)
    assert len(root.one("section", id="accuracy").one("tbody").all("tr")) == 60


def test_accessible(folder: Path) -> None:
    root = tree(folder)
    assert root.one("html").attributes["lang"] == "en"
    ids = [node.attributes["id"] for tag in ("section", "h2", "div", "select") for node in root.all(tag)
           if "id" in node.attributes]  # fmt: skip
    assert len(ids) == len(set(ids))
    for section in root.all("section"):
        named = section.attributes.get("aria-label") or section.attributes["aria-labelledby"]
        assert named in [*ids, "Headline finding", "Warnings"]
    for table in root.all("table"):
        assert table.one("caption").text
        assert all(cell.attributes["scope"] in {"col", "row", "colgroup"} for cell in table.all("th"))
    charts = [node for node in root.all("div") if "chart" in node.attributes.get("class", "").split()]
    assert len(charts) == 4
    assert all(node.attributes["role"] == "img" and len(node.attributes["aria-label"]) > 30 for node in charts)
    assert all(svg.attributes["aria-hidden"] == "true" for svg in root.all("svg"))
    labelled = [label for label in root.all("label") if label.all("input") + label.all("select")]
    assert len(labelled) == len(root.all("input")) + len(root.all("select"))
    assert all(node.attributes["tabindex"] == "0" for node in root.all("div", class_="scroll"))


def test_nothing_is_fetched(folder: Path) -> None:
    root = tree(folder)
    for tag in ("script", "img", "iframe", "object", "embed", "source", "audio", "video"):
        assert not any("src" in node.attributes for node in root.all(tag))
    assert [node.attributes["href"] for node in root.all("link")] == ["data:,"]
    assert all("@import" not in node.text and "url(" not in node.text for node in root.all("style"))
    assert all(link.attributes["href"].startswith("#") for link in root.all("a"))


def test_the_policy_allows_the_pages_own_scripts_and_nothing_else(folder: Path) -> None:
    text = page(Finished.read(folder))
    policy = parse(text).one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [f"'sha256-{one}'" for one in hashes]
    assert rules["base-uri"] == rules["form-action"] == "'none'"


def test_the_chart_library_is_there_once(folder: Path) -> None:
    assert page(Finished.read(folder)).count("* plotly.js v") == 1


def test_hostile_names_stay_text(hostile: Path) -> None:
    run = Finished.read(hostile)
    text = page(run)
    assert "<script>document.title" not in text
    assert "<img" not in text.replace("&lt;img", "").partition("* plotly.js v")[0]
    root = parse(text)
    assert root.one("h1").text == made.HOSTILE
    assert len(root.all("script")) == 3
    assert made.HOSTILE in root.one("section", id="threat").text
    assert made.HOSTILE in root.one("section", id="data").text
    assert "{{7*7}}" in root.one("section", id="config").text
    assert not root.one("section", id="paper").all("a")
    data = json.loads(root.one("script", id="chart-data").text)
    assert "&lt;/script&gt;" in data["attacks"][-1]["name"]


def test_embedded_json_ends_no_script_and_loses_nothing() -> None:
    value = {"</script>": "<!-- & \u2028 \u2029 \u00e9"}
    written = str(embedded(value))
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == value


def test_nan_is_never_embedded() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded({"value": float("nan")})
