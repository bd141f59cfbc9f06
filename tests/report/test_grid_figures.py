"""The frontier's figures for a paper, and the report's files as a whole."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from numpy.typing import NDArray
from rich.console import Console

from fedsiege.errors import InputError
from fedsiege.report import grid
from fedsiege.report.canvas import encoded
from fedsiege.report.grid import SweepResult
from fedsiege.report.grid.charts import limits
from fedsiege.report.grid.figures import frontier_figure, write_figures
from fedsiege.report.grid.finished import FinishedSweep
from fedsiege.report.grid.html import page

from . import made_sweep
from .page import parse
from .written import read


def panels(sweep: FinishedSweep, measure: Any = "tpr") -> list[Axes]:
    chart = frontier_figure(sweep, measure)
    return [axes for part in chart.subfigs for axes in part.axes if axes.axison]


def joined(axes: Axes) -> list[NDArray[np.float64]]:
    """The places of each family's cells, as drawn."""
    lines = [one.lines[0] for one in axes.containers if isinstance(one, ErrorbarContainer)]
    return [np.asarray(line.get_xydata(), dtype=np.float64) for line in lines if line is not None]


def test_a_panel_per_setting_and_attack(tmp_path: Path) -> None:
    shown = panels(read(tmp_path, made_sweep.sweep(("alexnet", "resnet18"))))
    titles = [
        "Strongest on each cell",
        "FedMIA-II",
        "Avg-Cosine",
        "Loss-Series",
        "FedMIA-II (non-zero coordinates)",
    ]
    assert [axes.get_title() for axes in shown] == titles * 2
    assert len({axes.get_xlim() for axes in shown[:5]}) == 1
    assert {axes.get_ylim() for axes in shown[:5]} == {axes.get_ylim() for axes in shown[5:]}
    assert shown[0].get_xlim() != shown[5].get_xlim()


def test_lines_join_the_cells_of_a_family(tmp_path: Path) -> None:
    sweep = read(tmp_path, made_sweep.sweep(seeds=(0,)))
    axes = panels(sweep)[1]
    lines = joined(axes)
    assert [len(line) for line in lines] == [1, 2, 2, 1]
    np.testing.assert_allclose(lines[1], [[1 - 0.416, 0.67 * 0.8], [1 - 0.37, 0.67 * 0.3]])
    auc = joined(panels(sweep, "auc")[1])[1]
    np.testing.assert_allclose(auc[:, 1], [0.5 + 0.4 * 0.67 * 0.8, 0.5 + 0.4 * 0.67 * 0.3])


def test_the_staircase_is_the_front(tmp_path: Path) -> None:
    axes = panels(read(tmp_path, made_sweep.sweep(seeds=(0,))))[0]
    staircase, rings = axes.lines[:2]
    assert staircase.get_drawstyle() == "steps-post"
    # undefended, perturb 0.01, sparsify 0.9, half data, perturb 0.05 and sparsify 0.99 by rising error
    found = np.asarray(rings.get_xydata())
    np.testing.assert_allclose(found[:, 0], [0.58, 0.584, 0.592, 0.596, 0.63, 0.67])
    np.testing.assert_allclose(np.asarray(staircase.get_xydata())[1:-1], found)


def test_axes_leave_room_and_stay_near_the_shares() -> None:
    assert list(limits([0.5, 0.7])) == pytest.approx([0.484, 0.716])
    assert list(limits([0.0, 1.0])) == pytest.approx([-0.04, 1.04])
    assert list(limits([0.0, 0.004])) == pytest.approx([-0.0004, 0.0048])
    assert list(limits([0.3])) == pytest.approx([0.2992, 0.3008])


def test_a_sweep_gives_equal_bytes_twice(tmp_path: Path) -> None:
    sweep = read(tmp_path, made_sweep.sweep(seeds=(0,)))
    first, second = (encoded(frontier_figure(sweep), "pdf") for _ in range(2))
    assert first == second
    assert b"CreationDate" not in first


def test_hostile_names_in_the_frontiers_figures(tmp_path: Path) -> None:
    written = write_figures(read(tmp_path, made_sweep.hostile()), formats=("svg",))
    assert [path.name for path in written] == ["frontier_tpr.svg", "frontier_auc.svg"]
    assert "<script" not in written[0].read_text(encoding="utf-8")


def test_an_unknown_format_of_the_frontiers_figures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="formats: got 'exe'; expected some of pdf, png, svg"):
        grid.write(made_sweep.folder(tmp_path, made_sweep.sweep(seeds=(0,))), formats=("exe",))


def test_everything_that_is_written(tmp_path: Path) -> None:
    written = grid.write(made_sweep.folder(tmp_path, made_sweep.sweep(seeds=(0,))))
    names = ["report.html", "figures/frontier_tpr.pdf", "figures/frontier_auc.pdf"]
    names += ["frontier.csv", "table.csv", "table.tex"]
    assert written == [tmp_path / name for name in names]
    assert written[1].read_bytes().startswith(b"%PDF")
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in grid.write(tmp_path)] == before


def test_a_sweep_in_which_nothing_finished_is_written(tmp_path: Path) -> None:
    data = made_sweep.sweep(seeds=(0,))
    for one in data["cells"]:
        made_sweep.undo(one, "missing", None)
    assert len(grid.write(made_sweep.folder(tmp_path, data))) == 6


def test_a_sweep_in_a_notebook(tmp_path: Path) -> None:
    made_sweep.folder(tmp_path, made_sweep.hostile())
    result = SweepResult.read(tmp_path)
    text = result._repr_html_()
    assert "Hypervolume of (test error" in text
    assert "<script" not in text
    assert result.plot("auc")._repr_png_().startswith(b"\x89PNG")


def test_a_sweep_shows_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_sweep.folder(tmp_path, made_sweep.sweep())
    SweepResult.read(tmp_path).show()
    assert "The best defence within an accuracy budget" in capsys.readouterr().out


def printed(place: Path, data: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(grid.summary(made_sweep.folder(place, data), width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().replace("\u00a0", " ")


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_has_hypervolumes_and_strongest_attacks(tmp_path: Path, width: int) -> None:
    text = printed(tmp_path, made_sweep.sweep(), width)
    for one in (
        "augment + sample",
        "0.316",
        "0.312–0.319",
        "Strongest on each",
        "undefended",
        "half data",
        "[adapted]",
    ):
        assert one in text
    assert "undefended" in text.split("Attack", 1)[1].splitlines()[0]
    assert "The column undefended is that of the undefended cell" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_many_families_stand_below_each_other(tmp_path: Path) -> None:
    none = made_sweep.run("none", 0, 0.5, {"x": 0.3, "y": 0.1})
    cells = [
        made_sweep.run(f"f{k}", 0, 0.5 - 0.01 * k, {"x": 0.3 - 0.02 * k, "y": 0.1}, f"f{k}") for k in range(1, 10)
    ]
    text = printed(tmp_path, made_sweep.grid(none, *cells), 100)
    table = text.split("hypervolume", 1)[1].split("the strongest attack on each cell", 1)[0]
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.strip()}
    # Accuracy times what the attack misses, of the strongest attack and of each: (1 - 0.59) * (1 - 0.12).
    assert rows["f9"] == ["0.361", "0.361", "0.369"]
    assert rows["undefended"] == ["0.350", "0.350", "0.450"]
    assert [name for name in rows if name.startswith("f")] == [f"f{k}" for k in range(1, 10)]
    assert max(map(len, text.splitlines())) <= 100


def test_the_terminal_says_what_went_wrong(tmp_path: Path) -> None:
    text = printed(tmp_path, made_sweep.troubled(), 140)
    assert "! 1 run failed: what is said of its cell rests on the other seeds." in text
    assert "defences=perturb 0.05, model=alexnet, seed 1: failed: training diverged in round 3 & stopped" in text
    assert "! never acted: sparsify(share=0.9), in defences=sparsify 0.9, model=resnet18." in text
    unproven = made_sweep.troubled()
    for one in unproven["cells"]:
        one["unproven"] = dict.fromkeys(one["idle"], "counted")
    text = printed(tmp_path, unproven, 200)
    assert "! sparsify(share=0.9) counted nothing as `counted` in defences=sparsify 0.9, model=resnet18: wh" in text
    assert "never acted" not in text
    many = made_sweep.sweep(seeds=range(3))
    for one in many["cells"][:12]:
        made_sweep.undo(one, "failed", "out of memory")
    assert "and 4 more, see report.html" in printed(tmp_path, many, 140)


def test_a_cell_without_client_defences_has_a_name_everywhere(tmp_path: Path) -> None:
    cell = made_sweep.run("dp", 0, 0.5, {"x": 0.5}, "dp", labels=["dp(clients=(0, 1))"])
    cell |= {"name": "defences=[], server_defences=dp", "axes": {"defences": "[]", "server_defences": "dp"}}
    cell["privacy"] = [
        {"label": "dp", "unit": "client", "against": "server", "epsilon": 8.25, "delta": 1e-5, "accountant": "rdp",
         "note": ""}
    ]  # fmt: skip
    data = made_sweep.grid(cell)
    text = printed(tmp_path, data, 140)
    assert "defences=none, server_defences=dp: ε = 8.25" in text
    assert "Only some clients are defended in defences=none, server_defences=dp:" in text
    rows = parse(page(FinishedSweep.read(tmp_path))).one("section", id="privacy").one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == ["defences=none, server_defences=dp"]
