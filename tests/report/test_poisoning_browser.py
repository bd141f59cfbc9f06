"""The chart of main and backdoor accuracy in a real browser."""

import json
from pathlib import Path

import pytest

from . import made, made_poisoning
from .test_browser import chromium, opened, traces

pytestmark = pytest.mark.browser

__all__ = ["chromium"]

HELD = """
const chart = document.getElementById("chart-hijack");
document.body.dataset.held = JSON.stringify(chart.data.map(({name, x, y}) => [name, Array.from(x), Array.from(y)]));
document.body.dataset.lines = chart.layout.shapes.length;
"""


def test_both_accuracies_and_the_round_of_attack_are_drawn(chromium: str, tmp_path: Path) -> None:
    content, curves = made_poisoning.alone(made_poisoning.poisoned(made.result(targets=1)[0]))
    root, console = opened(chromium, made.folder(tmp_path, content, curves), HELD)
    assert console == []
    assert len(traces(root, "chart-hijack", "scatter")) == 4
    held = json.loads(root.one("body").attributes["data-held"])
    assert [name for name, _, _ in held] == [
        "Main accuracy", "Backdoor accuracy", "Clean images taken for bird", "attackers"
    ]  # fmt: skip
    history = content["task"]["history"]
    assert held[0][2] == [pytest.approx(100 * one["accuracy"]) for one in history]
    assert held[1][2] == [pytest.approx(100 * one["backdoor"]) for one in history]
    assert held[3][1:] == [[30], [0]]
    assert root.one("body").attributes["data-lines"] == "1"
    assert len(traces(root, "chart-accuracy", "scatter")) == 2


def test_a_line_can_be_switched_off_and_many_attacks_are_strokes(chromium: str, tmp_path: Path) -> None:
    content, curves = made.result(targets=1)
    script = 'document.querySelector(".legend button[data-chart=hijack]").click();' + HELD
    root, console = opened(chromium, made.folder(tmp_path, made_poisoning.repeated(content), curves), script)
    assert console == []
    assert len(traces(root, "chart-hijack", "scatter")) == 3
    assert root.one("body").attributes["data-lines"] == "0"
    pressed = [button.text for button in root.all("button") if button.attributes["aria-pressed"] == "false"]
    assert pressed == ["Main accuracy"]
    assert len(traces(root, "chart-roc", "scatter")) == len(made.ATTACKS) + 1


def test_decisions_their_mean_and_the_best_round_are_drawn(chromium: str, tmp_path: Path) -> None:
    content = made_poisoning.of_anybody(made_poisoning.probed(made.result()[0]))
    script = HELD.replace("chart-hijack", "chart-decided")
    root, console = opened(chromium, made.folder(tmp_path, content, made.result()[1]), script)
    assert console == []
    held = json.loads(root.one("body").attributes["data-held"])
    rounds = content["poisoning"]["decisions"]["rounds"]
    assert [(name, x) for name, x, _ in held] == [
        ("right decisions", rounds), ("mean over the last rounds", [41, 60]), ("best round", [35])
    ]  # fmt: skip
    assert held[0][2][:2] == [50, pytest.approx(50.5)]
    assert held[1][2] == [pytest.approx(100 * 217 / 306)] * 2
    assert held[2][2] == [pytest.approx(100 * 254 / 306)]
    assert root.one("body").attributes["data-lines"] == "1"
    assert "chosen with the truth" in root.one("div", id="chart-decided").text


def test_runs_with_little_to_draw_are_drawn_in_silence(chromium: str, tmp_path: Path) -> None:
    bare = made.result(targets=1)[0] | {"poisoning": {}}
    hostile = made_poisoning.hostile(made.result(targets=1)[0])
    unattacked = made_poisoning.unattacked(made.result(targets=1)[0])
    for name, content in {"bare": bare, "hostile": hostile, "unattacked": unattacked}.items():
        root, console = opened(chromium, made.folder(tmp_path / name, *made_poisoning.alone(content)))
        assert console == []
        lines = {"bare": 1, "hostile": 4, "unattacked": 3}[name]
        assert len(traces(root, "chart-hijack", "scatter")) == lines
        assert "owned" not in root.all("title")[0].text
