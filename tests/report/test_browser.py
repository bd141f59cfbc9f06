"""The report in a real browser: Chromium draws it, offline, without a complaint."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedsiege.report.figures import floor, shown
from fedsiege.report.finished import Finished
from fedsiege.report.html import page

from . import made
from .page import Node, parse

pytestmark = pytest.mark.browser

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000", "--enable-logging=stderr", "--v=0"),
]


@pytest.fixture
def chromium() -> str:
    """The browser's path."""
    found = next((p for p in ("/usr/bin/chromium", shutil.which("chromium")) if p and Path(p).is_file()), None)
    if found is None:
        pytest.skip("no Chromium at /usr/bin/chromium or in PATH")
    return found


def browse(chromium: str, file: Path, *more: str) -> tuple[str, list[str]]:
    """What the browser wrote (the DOM with --dump-dom) and what the page's console said."""
    profile = f"--user-data-dir={file.parent / 'profile'}"
    command = [chromium, *FLAGS, profile, *more, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def opened(chromium: str, folder: Path, script: str = "", *more: str) -> tuple[Node, list[str]]:
    """The page of this run after its script (and one of the test's, which needs the policy lifted) has run."""
    text = page(Finished.read(folder))
    if script:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        text = text.replace("</body>", f"<script>{script}</script></body>")
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    dom, console = browse(chromium, file, *more, "--dump-dom")
    return parse_dom(dom), console


def parse_dom(dom: str) -> Node:
    # The library is megabytes of text in which nothing is asked for.
    return parse(re.sub(r"(<script>).*?(</script>)", r"\1\2", dom, flags=re.DOTALL))


def traces(root: Node, chart: str, kind: str) -> list[Node]:
    """The lines or groups of bars that the browser drew in a chart."""
    place = root.one("div", id=chart)
    return [g for g in place.all("g") if g.attributes.get("class", "").startswith(f"trace {kind}")]


def test_all_charts_are_drawn_and_the_console_is_silent(chromium: str, folder: Path) -> None:
    root, console = opened(chromium, folder)
    assert console == []
    attacks = len(made.ATTACKS)
    assert len(traces(root, "chart-roc", "scatter")) == attacks + 1
    assert len(traces(root, "chart-rounds", "scatter")) == 2 * attacks  # a line and a whisker
    assert len(traces(root, "chart-accuracy", "scatter")) == 2
    bars = [g for trace in traces(root, "chart-clients", "bars") for g in trace.all("g", class_="point")]
    assert len(bars) == 4
    drawn = [path for trace in traces(root, "chart-roc", "scatter") for path in trace.all("path", class_="js-line")]
    assert len(drawn) == attacks + 1
    assert all(path.attributes["d"].startswith("M") for path in drawn)


def test_a_full_run_and_a_minimal_one(chromium: str, lone: Path, tmp_path: Path) -> None:
    data, curves = made.result(targets=2)
    full = made.folder(tmp_path / "full", made.with_null_test(made.with_paper(data)), curves)
    for folder in (full, lone):
        root, console = opened(chromium, folder)
        assert console == []
        assert len(traces(root, "chart-roc", "scatter")) == len(made.ATTACKS) + 1


def test_no_script_of_hostile_names_runs(chromium: str, hostile: Path) -> None:
    root, console = opened(chromium, hostile)
    assert console == []
    assert root.all("title")[0].text == f"{made.HOSTILE} · FedSiege report"
    assert not [node for node in root.all("img") if "onerror" in node.attributes]
    assert len(traces(root, "chart-roc", "scatter")) == len(made.ATTACKS) + 1


def test_the_policy_stops_a_script_that_got_in(chromium: str, folder: Path) -> None:
    """The other half of the test above, and the proof that it would hear a complaint."""
    text = page(Finished.read(folder)).replace("</h1>", "</h1><script>document.title='owned'</script>")
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    dom, console = browse(chromium, file, "--dump-dom")
    assert "<title>owned" not in dom
    assert any("Content Security Policy" in line for line in console)


def test_tables_charts_and_legend_answer(chromium: str, folder: Path) -> None:
    root, console = opened(
        chromium,
        folder,
        """
        document.querySelector("input[value=ofl]").click();
        document.querySelector("input[value=worst]").click();
        document.querySelector(".legend button[data-chart=roc]").click();
        const attack = document.getElementById("client-attack");
        attack.value = "1";
        attack.dispatchEvent(new Event("change"));
        """,
    )
    assert console == []
    shown = [
        node for node in root.all("div") if "data-where" in node.attributes and "hidden" not in node.attributes
    ]
    assert [(node.attributes["data-where"], node.attributes["data-against"]) for node in shown] == [
        ("worst", "ofl")
    ]
    assert len(traces(root, "chart-roc", "scatter")) == len(made.ATTACKS)
    buttons = [b for b in root.all("button") if b.attributes["aria-pressed"] == "false"]
    assert [button.text for button in buttons] == ["Blackbox-Loss"]
    bar = traces(root, "chart-clients", "bars")[0].all("path")[0]
    assert "rgb(184, 137, 45)" in bar.attributes["style"]  # Grad-Cosine's colour


def test_dark_and_light(chromium: str, folder: Path) -> None:
    script = "document.body.dataset.ground = getComputedStyle(document.body).backgroundColor;"
    grounds = []
    for preferred in (0, 1):
        root, _ = opened(chromium, folder, script, f"--blink-settings=preferredColorScheme={preferred}")
        line = traces(root, "chart-roc", "scatter")[1].all("path", class_="js-line")[0].attributes["style"]
        grounds.append((root.one("body").attributes["data-ground"], re.findall(r"rgb\([^)]*\)", line)[0]))
    assert grounds == [("rgb(20, 23, 28)", "rgb(52, 128, 252)"), ("rgb(255, 255, 255)", "rgb(79, 66, 201)")]


def test_it_prints(chromium: str, folder: Path) -> None:
    file = folder / "page.html"
    file.write_text(page(Finished.read(folder)), encoding="utf-8")
    pdf = folder / "printed.pdf"
    _, console = browse(chromium, file, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")
    assert console == []
    pages = re.findall(rb"/Type\s*/Page[^s]", pdf.read_bytes())
    assert 4 <= len(pages) <= 12


def test_a_screenshot_is_not_blank(chromium: str, folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    file = folder / "page.html"
    file.write_text(page(Finished.read(folder)), encoding="utf-8")
    shot = folder / "shot.png"
    browse(chromium, file, "--window-size=1280,2400", f"--screenshot={shot}")
    with image.open(shot) as picture:
        assert picture.size == (1280, 2400)
        colours = picture.convert("RGB").getcolors(maxcolors=2**24)
    present = {colour for _, colour in colours}
    assert {(79, 66, 201), (201, 37, 22)} <= present  # the curves of the first and the last attack


def test_charts_hold_the_values_of_the_files(chromium: str, folder: Path) -> None:
    root, _ = opened(
        chromium,
        folder,
        """
        const held = (id) => document.getElementById(id).data.map(({x, y}) => [Array.from(x), Array.from(y)]);
        document.body.dataset.held = JSON.stringify(["chart-roc", "chart-clients", "chart-rounds"].map(held));
        """,
    )
    run = Finished.read(folder)
    roc, clients, rounds = json.loads(root.one("body").attributes["data-held"])
    for curve, (x, y) in zip(run.curves.roc, roc[1:], strict=True):
        assert (x, y) == tuple(map(list, shown(curve, floor(run.curves.roc))))
    own = [row.rate("0.001").value for target in run.targets for row in run.rows(target) if row.name == "FedMIA-II"]
    assert clients == [[["0", "1", "2", "3"], [pytest.approx(100 * value) for value in own if value is not None]]]
    single, multi = run.curves.rounds[1], run.curves.rounds[-1]
    assert rounds[2 * 1] == [single.round, [pytest.approx(100 * value) for value in single.tpr if value]]
    assert rounds[-2] == [made.ROUNDS, [pytest.approx(100 * (multi.tpr[-1] or 0))] * len(made.ROUNDS)]
