"""The report of a sweep in a real browser: Chromium draws it, offline, without a complaint."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedsiege.report.grid.finished import FinishedSweep
from fedsiege.report.grid.html import page

from . import made, made_sweep
from .page import Node
from .test_browser import browse, chromium, parse_dom, traces

pytestmark = pytest.mark.browser

__all__ = ["chromium"]

FAMILIES = 3
STAIRCASE = 2  # its line and its rings


def opened(
    chromium: str, place: Path, data: dict[str, Any], script: str = "", *more: str
) -> tuple[Node, list[str]]:
    """The page of this sweep after its script (and one of the test's, which needs the policy lifted) has run."""
    text = page(FinishedSweep.read(made_sweep.folder(place, data)))
    if script:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        text = text.replace("</body>", f"<script>{script}</script></body>")
    file = place / "page.html"
    file.write_text(text, encoding="utf-8")
    dom, console = browse(chromium, file, *more, "--dump-dom")
    return parse_dom(dom), console


def test_every_panel_of_the_first_setting_is_drawn(chromium: str, tmp_path: Path) -> None:
    root, console = opened(chromium, tmp_path, made_sweep.troubled())
    assert console == []
    for measure in ("tpr", "auc"):
        drawn = [len(traces(root, f"chart-{measure}-0-{panel}", "scatter")) for panel in range(5)]
        assert drawn == [STAIRCASE + 1 + FAMILIES] * 4 + [STAIRCASE + 1]  # the adapted attack saw one family
        assert not traces(root, f"chart-{measure}-1-0", "scatter")
    bars = root.one("div", id="chart-tpr-0-0").all("path", class_="yerror")
    assert bars
    assert all(bar.attributes["d"].startswith("M") for bar in bars)


def test_setting_family_and_table_can_be_chosen(chromium: str, tmp_path: Path) -> None:
    root, console = opened(
        chromium,
        tmp_path,
        made_sweep.troubled(),
        """
        const select = document.getElementById("setting");
        select.value = "1";
        select.dispatchEvent(new Event("change"));
        document.querySelector(".legend button[data-family='0']").click();
        document.querySelector("input[value=auc]").click();
        document.body.dataset.chosen = [...document.querySelectorAll("select.setting")].map((one) => one.value);
        """,
    )
    assert console == []
    assert root.one("body").attributes["data-chosen"] == "1,1"
    shown = [n for n in root.all("div") if "data-setting" in n.attributes and "hidden" not in n.attributes]
    assert [node.attributes["data-setting"] for node in shown] == ["1", "1"]
    assert len(traces(root, "chart-tpr-1-0", "scatter")) == STAIRCASE + FAMILIES
    pressed = [b.text for b in root.all("button") if b.attributes["aria-pressed"] == "false"]
    assert pressed == ["perturb", "perturb"]  # above both sections
    tables = [n for n in root.all("div") if "data-measure" in n.attributes and "hidden" not in n.attributes]
    assert [node.attributes["data-measure"] for node in tables] == ["auc"]


def test_charts_hold_the_sweeps_values(chromium: str, tmp_path: Path) -> None:
    root, _ = opened(
        chromium,
        tmp_path,
        made_sweep.sweep(seeds=(0,)),
        """
        const held = document.getElementById("chart-tpr-0-1").data.map(({x, y}) => [Array.from(x), Array.from(y)]);
        document.body.dataset.held = JSON.stringify(held);
        """,
    )
    held = json.loads(root.one("body").attributes["data-held"])
    assert held[2] == [[pytest.approx(0.58)], [pytest.approx(0.67)]]
    assert held[3] == [[pytest.approx(0.584), pytest.approx(0.63)], [pytest.approx(0.536), pytest.approx(0.201)]]


def test_no_script_of_a_hostile_sweep_runs(chromium: str, tmp_path: Path) -> None:
    root, console = opened(chromium, tmp_path, made_sweep.hostile())
    assert console == []
    assert root.all("title")[0].text == f"{made.HOSTILE} · FedSiege report"
    assert not [node for node in root.all("img") if "onerror" in node.attributes]
    assert len(traces(root, "chart-tpr-0-0", "scatter")) == STAIRCASE + 1 + FAMILIES


def test_sweeps_with_little_in_them_draw_in_silence(chromium: str, tmp_path: Path) -> None:
    undefended = made_sweep.grid(made_sweep.run("none", 0, 0.5, {"x": 0.4}))
    failed = made_sweep.grid(made_sweep.run("p", 0, 0.5, {}, "p") | {"status": "failed", "accuracy": None})
    for name, data in {"undefended": undefended, "failed": failed}.items():
        root, console = opened(chromium, tmp_path / name, data)
        assert console == []
        assert root.all("h1")[0].text == "Sweep"


def test_the_report_of_a_sweep_prints(chromium: str, tmp_path: Path) -> None:
    file = made_sweep.folder(tmp_path, made_sweep.troubled()) / "page.html"
    file.write_text(page(FinishedSweep.read(tmp_path)), encoding="utf-8")
    pdf = tmp_path / "printed.pdf"
    _, console = browse(chromium, file, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")
    assert console == []
    pages = re.findall(rb"/Type\s*/Page[^s]", pdf.read_bytes())
    assert 4 <= len(pages) <= 12


def test_a_sweep_in_the_dark(chromium: str, tmp_path: Path) -> None:
    colours = []
    for preferred in (0, 1):
        root, _ = opened(
            chromium, tmp_path, made_sweep.sweep(), "", f"--blink-settings=preferredColorScheme={preferred}"
        )
        line = traces(root, "chart-tpr-0-0", "scatter")[3].all("path", class_="js-line")[0].attributes["style"]
        colours.append(re.findall(r"rgb\([^)]*\)", line)[0])
    assert colours == ["rgb(52, 128, 252)", "rgb(79, 66, 201)"]
