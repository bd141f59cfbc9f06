from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from fedsiege.errors import InputError
from fedsiege.report.figures import figures, floor, roc_figure, rounds_figure, shown
from fedsiege.report.finished import Finished
from fedsiege.report.schema import Curve
from fedsiege.report.style import DARK, LIGHT, style

from . import made


def curve(fpr: list[float], tpr: list[float]) -> Curve:
    return Curve(attack="a", title="A", against="all", target="pooled", fpr=fpr, tpr=tpr)


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata(), dtype=np.float64)]


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def test_files_by_format(folder: Path) -> None:
    written = figures(folder, formats=("pdf", "png"))
    assert [path.name for path in written] == ["roc.pdf", "roc.png", "rounds.pdf", "rounds.png"]
    assert all(path.read_bytes().startswith((b"%PDF", b"\x89PNG")) for path in written)
    assert sorted((folder / "figures").iterdir()) == sorted(written)


def test_unknown_format(folder: Path) -> None:
    with pytest.raises(InputError, match="formats: got 'exe'; expected some of pdf, png, svg"):
        figures(folder, formats=("exe",))


def test_no_date_in_the_pdf(folder: Path) -> None:
    assert b"CreationDate" not in figures(folder)[0].read_bytes()


def test_curves_begin_with_what_they_have_at_the_axis() -> None:
    fpr, tpr = shown(curve([0, 0, 0.0005, 0.001, 0.01, 1], [0, 0.2, 0.3, 0.4, 0.5, 1]), low=0.001)
    assert (fpr, tpr) == ([0.001, 0.01, 1], [0.4, 0.5, 1])
    fpr, tpr = shown(curve([0, 0.01, 0.1, 1], [0, 0.0001, 0.002, 1]), low=0.001)
    assert (fpr, tpr) == ([0.1, 1], [0.002, 1])


@pytest.mark.parametrize(("smallest", "power"), [(0.5, -3), (0.001, -3), (0.0009, -4), (0.0001, -4), (1e-9, -5)])
def test_the_axis_begins_at_a_power_of_ten(smallest: float, power: int) -> None:
    assert floor([curve([0, smallest, 1], [0, 0.5, 1])]) == pytest.approx(10.0**power)
    assert floor([]) == 1e-3


def test_roc_lines_are_the_curves(folder: Path) -> None:
    run = Finished.read(folder)
    lines = {line.get_label(): line for line in roc_figure(run).axes[0].get_lines()}
    for one in run.curves.roc:
        assert lines[one.title].get_drawstyle() == "steps-post"
        assert points(lines[one.title])[-1][1] == one.tpr[-1]
    assert all(fpr == tpr for fpr, tpr in points(lines["guessing"]))


def test_rounds_have_lines_for_single_and_level_lines_for_all_rounds(folder: Path) -> None:
    run = Finished.read(folder)
    axes = rounds_figure(run).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")}
    assert len(lines) == len(made.ATTACKS)
    single, multi = lines["Grad-Cosine"], lines["FedMIA-II"]
    assert [number for number, _ in points(single)] == made.ROUNDS
    assert single.get_marker() != "None"
    assert [number for number, _ in points(multi)] == [made.ROUNDS[0], made.ROUNDS[-1]]
    assert len({value for _, value in points(multi)}) == 1
    whisker = axes.containers[-1].get_children()[-1]
    assert isinstance(whisker, LineCollection)
    (low, high) = whisker.get_segments()[0][:, 1]
    curve = run.curves.rounds[-1]
    assert (low, high) == (pytest.approx(curve.low[-1]), pytest.approx(curve.high[-1]))


def test_attacks_differ_without_colour(folder: Path) -> None:
    lines = roc_figure(Finished.read(folder)).axes[0].get_lines()[1:]
    looks = {(style(i).dash, style(i).marker) for i in range(len(lines))}
    assert len(looks) == len(lines)
    assert len({line.get_marker() for line in lines}) == len(lines)
    assert len({(style(i).light, style(i).dash, style(i).marker) for i in range(70)}) == 70


def test_colours_stand_out_from_their_ground() -> None:
    dark_ground = luminance("#14171c") + 0.05
    assert len(set(LIGHT)) == len(LIGHT) == len(set(DARK)) == len(DARK)
    assert min(1.05 / (luminance(colour) + 0.05) for colour in LIGHT) > 3
    assert min((luminance(colour) + 0.05) / dark_ground for colour in DARK) > 3


def test_names_with_dollars_underscores_and_markup(tmp_path: Path) -> None:
    data, curves = made.result(targets=1)
    for one in (*data["attacks"], *curves["roc"], *curves["rounds"]):
        if one["attack"] == "fedmia_ii":
            one["title"] = "_$\\frac{" + made.HOSTILE
    written = figures(made.folder(tmp_path, data, curves), formats=("pdf", "svg"))
    svg = written[1].read_text()
    assert "<script>" not in svg
    labels = [text.get_text() for text in roc_figure(Finished.read(tmp_path)).legends[0].get_texts()]
    assert labels[-1].startswith(" _$\\frac{</script>")
    assert len(labels) == len(made.ATTACKS) + 1


def test_nothing_recorded_is_said(lone: Path) -> None:
    (text,) = rounds_figure(Finished.read(lone)).axes[0].texts
    assert text.get_text() == "nothing was recorded"
    assert len(figures(lone)) == 2
