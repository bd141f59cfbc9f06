import io
from pathlib import Path

import pytest
from rich.console import Console

from fedsiege.report.finished import Finished
from fedsiege.report.terminal import summary

from . import made


def printed(folder: Path, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(summary(Finished.read(folder), width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().replace("\u00a0", " ")


@pytest.mark.parametrize("width", [80, 140])
def test_every_figure_with_its_interval(folder: Path, width: int) -> None:
    text = printed(folder, width)
    assert all(title in text for title, _, _ in made.ATTACKS.values())
    for figure in ("0.989", "0.974–1.000", "97.4", "66.1", "63.7–68.4", "25.9", "23.8–28.2"):
        assert figure in text
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_the_best_attack_is_marked(folder: Path) -> None:
    (line,) = [line for line in printed(folder, 140).splitlines() if "▸" in line]
    assert "FedMIA-II" in line
    assert "66.1† [63.7–68.4]" in line


def test_footnotes_warnings_and_accuracy(folder: Path) -> None:
    text = printed(folder, 140)
    assert "† With 4,000 non-members 0.1 % FPR rests on at most 4 false positives." in text
    assert "! label_only reaches an AUC of 0.62" in text
    assert "Test accuracy 91.3 %, training accuracy 100 %." in text
    assert "never acted" not in text


def test_null_test_and_idle_components_are_shown_as_they_are_named(hostile: Path) -> None:
    text = printed(hostile, 200)
    assert text.count("passed") > len(made.ATTACKS)
    assert "not passed" in text
    assert "mean AUC 0.5410" in text
    assert "1.03 [0.85–1.23]" in text
    assert f"never acted: {made.HOSTILE}" in text


def test_what_may_have_acted_is_not_said_to_be_idle(tmp_path: Path) -> None:
    data, curves = made.result(targets=1)
    data["components"][1] |= {"acted": False, "unproven": "poisoned_updates", "label": "turned"}
    text = printed(made.folder(tmp_path, data, curves), 200)
    assert "! turned counted nothing as `poisoned_updates`: whether it acted is not known." in text
    assert "never acted" not in text


def test_markup_of_rich_is_text(tmp_path: Path) -> None:
    data, curves = made.result(targets=1)
    data["experiment"]["title"] = "[bold red]title[/bold red]"
    for one in (*data["attacks"], *curves["roc"], *curves["rounds"]):
        one["title"] = f"[link=x]{one['title']}[/link]"
    text = printed(made.folder(tmp_path, data, curves), 200)
    assert "[bold red]title[/bold red]" in text
    assert "[link=x]FedMIA-II[/link]" in text


def test_a_lone_client(lone: Path) -> None:
    text = printed(lone, 120)
    assert "client 0, against all non-members: 400 members and 1,000 non-members" in text


@pytest.mark.parametrize("width", [80, 140])
def test_published_figures_stand_beside_ours(tmp_path: Path, width: int) -> None:
    data, curves = made.result()
    text = printed(made.folder(tmp_path, made.with_paper(data), curves), width)
    assert "beside the paper: Table 1" in text
    assert "67.0" in text  # 0.6698 published, in per cent
    assert "not measured" in text
