"""Settings, families, figures over seeds and hypervolumes of a sweep, by hand."""

from pathlib import Path
from typing import Any

import pytest

from fedsiege.errors import InputError
from fedsiege.report.grid.finished import FinishedSweep, Point
from fedsiege.report.schema import Measured

from . import made_sweep
from .made_sweep import grid, run
from .written import read


def point(sweep: FinishedSweep, short: str, setting: str | None = None) -> Point:
    (found,) = [p for p in sweep.points if p.short == short and setting in (None, p.setting)]
    return found


def sides(figure: Measured) -> list[Any]:
    return [
        side if side is None else pytest.approx(side, abs=1e-4) for side in (figure.value, figure.low, figure.high)
    ]


def test_settings_families_and_short_names(tmp_path: Path) -> None:
    sweep = read(tmp_path, made_sweep.sweep(("alexnet", "resnet18")))
    assert sweep.settings == ["model=alexnet", "model=resnet18"]
    assert sweep.families("model=alexnet") == ["perturb", "sparsify", "augment + sample"]
    assert sweep.styles == {"perturb": 0, "sparsify": 1, "augment + sample": 2}
    assert [p.short for p in sweep.by_setting["model=resnet18"]] == list(made_sweep.LEVELS)
    assert [p.defended for p in sweep.by_setting["model=resnet18"]] == [False] + [True] * 5
    baseline = sweep.baseline("model=resnet18")
    assert baseline is not None
    assert baseline.name == "defences=none, model=resnet18"


def test_axes_about_defences_make_no_setting(tmp_path: Path) -> None:
    data = grid(run("a", 0, 0.5, {"x": 0.1}, "perturb"))
    data["axes"] = {
        "defences.0.sigma": ["1"],
        "coalition": ["on"],
        "server_defences": ["clip"],
        "training.lr": ["0.1"],
    }
    data["cells"][0]["axes"] = {"defences.0.sigma": "1", "coalition": "on", "server_defences": "clip"}
    sweep = read(tmp_path, data)
    assert sweep.settings == ["training.lr=-"]  # an axis that the cell lacks keeps its base value
    assert sweep.points[0].short == "defences.0.sigma=1, coalition=on, server_defences=clip"


def test_a_named_cell_outside_the_product_is_a_setting_of_its_own(tmp_path: Path) -> None:
    data = made_sweep.sweep(seeds=(0,))
    data["cells"].append({**data["cells"][1], "name": "both", "axes": {}})
    sweep = read(tmp_path, data)
    assert sweep.settings == ["model=alexnet", ""]
    assert sweep.by_setting[""][0].short == "both"
    assert sweep.baseline("") is None


def test_a_named_cell_joins_a_grid_that_has_axes_of_defences_alone(tmp_path: Path) -> None:
    cells = [run("none", 0, 0.5, {"x": 0.5}), run("p", 0, 0.49, {"x": 0.2}, "perturb")]
    sweep = read(tmp_path, grid(*cells, run("both", 0, 0.48, {"x": 0.1}, "a", "b", axes={})))
    assert sweep.settings == [""]
    assert sweep.cost(point(sweep, "both")).value == pytest.approx(0.02)


def test_what_a_cell_outside_the_product_changes_is_its_setting(tmp_path: Path) -> None:
    data = made_sweep.sweep(("alexnet", "resnet18"), seeds=(0,))
    for name, changes in {
        "same": {"defences": "[a]", "model": "resnet18"},
        "longer": {"rounds": "300"},
        "base": {"defences": "[a]"},
    }.items():
        data["cells"].append({**data["cells"][1], "name": name, "axes": {}, "changes": changes})
    sweep = read(tmp_path, data)
    assert sweep.settings == ["model=alexnet", "model=resnet18", "model=-, rounds=300", ""]
    assert sweep.by_setting["model=resnet18"][-1].name == "same"


def test_equal_short_names_are_written_in_full(tmp_path: Path) -> None:
    cells = [run("one", 0, 0.5, {"x": 0.5}), run("two", 0, 0.5, {"x": 0.5})]
    cells[1]["axes"] = {"defences": "one"}
    assert [p.short for p in read(tmp_path, grid(*cells)).points] == ["one", "two"]
    cells[1]["name"] = "other name"
    assert [p.short for p in read(tmp_path, grid(*cells)).points] == ["one", "other name"]


def test_figures_over_seeds_and_a_single_seeds_own_interval(tmp_path: Path) -> None:
    cells = [run("none", s, 0.5, {"x": tpr}) for s, tpr in enumerate((0.2, 0.3, 0.4))]
    sweep = read(tmp_path, grid(*cells, run("p", 1, 0.46, {"x": 0.1}, "perturb")))
    # 0.3 +- 4.302653 * 0.1 / sqrt(3)
    assert sides(point(sweep, "none").figures["x"].tpr) == [0.3, 0.0516, 0.5484]
    assert sides(point(sweep, "none").error) == [0.5, None, None]
    assert sides(point(sweep, "none").accuracy) == [0.5, None, None]
    alone = point(sweep, "p")
    assert sides(alone.figures["x"].tpr) == [0.1, 0.05, 0.2]
    assert sides(alone.figures["x"].auc) == [0.55, 0.4, 0.9]
    assert sides(alone.error) == [0.54, None, None]
    assert alone.figures["x"].by_seed == {1: 0.1}


def test_seeds_that_agree_are_as_uncertain_as_their_runs(tmp_path: Path) -> None:
    sweep = read(tmp_path, grid(*[run("none", s, 0.5, {"x": 0.05, "y": 0.0}) for s in (0, 1)]))
    figures = point(sweep, "none").figures
    # the runs have 0.025-0.1, and AUCs of 0.525 with 0.4-0.9
    assert sides(figures["x"].tpr) == [0.05, 0.05 - 0.025 / 2**0.5, 0.05 + 0.05 / 2**0.5]
    assert sides(figures["x"].auc) == [0.525, 0.525 - 0.125 / 2**0.5, 0.525 + 0.375 / 2**0.5]
    assert sides(figures["y"].tpr) == [0.0, None, None]  # its runs' intervals are 0-0: they say nothing


def test_cost_is_paired_by_seed(tmp_path: Path) -> None:
    cells = [run("none", s, accuracy, {"x": 0.5}) for s, accuracy in enumerate((0.5, 0.6, 0.9))]
    cells += [run("p", s, accuracy, {"x": 0.5}, "perturb") for s, accuracy in ((0, 0.49), (1, 0.57), (7, 0.1))]
    sweep = read(tmp_path, grid(*cells))
    # differences 0.01 and 0.03: 0.02 +- 12.7062 * 0.01
    assert sides(sweep.cost(point(sweep, "p"))) == [0.02, -0.1071, 0.1471]
    assert sweep.cost(point(sweep, "p")).n == 2


def test_cost_without_a_pair_is_unknown(tmp_path: Path) -> None:
    sweep = read(tmp_path, grid(run("none", 0, 0.5, {"x": 0.5}), run("p", 1, 0.5, {"x": 0.5}, "perturb")))
    assert sweep.cost(point(sweep, "p")) == Measured(value=None, low=None, high=None, n=0)


def test_the_hypervolume_of_a_family_seed_by_seed(tmp_path: Path) -> None:
    cells = [run("none", s, 0.9, {"x": 0.1 * (s + 1)}) for s in (0, 1)]  # in no family's hypervolume
    cells += [run("p1", 0, 0.5, {"x": 0.5}, "perturb"), run("p2", 0, 0.4, {"x": 0.2}, "perturb")]
    cells += [run("p1", 1, 0.5, {"x": 0.4}, "perturb"), run("p2", 1, 0.4, {"x": 0.2}, "perturb")]
    sweep = read(tmp_path, grid(*cells))
    # seed 0: 0.1 * 0.5 + 0.4 * 0.8 = 0.37; seed 1: 0.1 * 0.6 + 0.4 * 0.8 = 0.38; 0.375 +- 12.7062 * 0.005
    assert sides(sweep.hypervolume("", "perturb", "x")) == [0.375, 0.3115, 0.4385]
    # the undefended cell alone: 0.9 * 0.9 and 0.9 * 0.8, 0.765 +- 12.7062 * 0.045
    assert sides(sweep.hypervolume("", "none", "x")) == [0.765, 0.1932, 1.0]
    assert sweep.hypervolume("", "none of these", "x").value is None


def test_a_hypervolume_needs_every_cell_of_the_family(tmp_path: Path) -> None:
    cells = [run("p1", s, 0.5, {"x": 0.5}, "perturb") for s in (0, 1)]
    cells.append(run("p2", 1, 0.4, {"x": 0.2}, "perturb"))
    cells.append(run("never", 0, 0.4, {}, "perturb") | {"status": "failed", "accuracy": None})
    sweep = read(tmp_path, grid(*cells))
    found = sweep.hypervolume("", "perturb", "x")
    assert (found.n, found.low) == (1, None)
    assert found.value == pytest.approx(0.37)
    apart = [run("p1", 0, 0.5, {"x": 0.5}, "perturb"), run("p2", 1, 0.5, {"x": 0.5}, "perturb")]
    assert read(tmp_path, grid(*apart)).hypervolume("", "perturb", "x").value is None


def test_the_hypervolume_under_the_strongest_attacks(tmp_path: Path) -> None:
    cells = [run("p1", 0, 0.5, {"x": 0.5, "y": 0.3}, "p"), run("p2", 0, 0.4, {"x": 0.1, "y": 0.2}, "p")]
    sweep = read(tmp_path, grid(*cells))
    assert sweep.columns("") == ["p"]
    assert sweep.hypervolume("", "none", "x").value is None
    assert sweep.hypervolume("", "p", "x").value == pytest.approx(0.1 * 0.5 + 0.4 * 0.9)
    assert sweep.hypervolume("", "p", "y").value == pytest.approx(0.1 * 0.7 + 0.4 * 0.8)
    assert sweep.hypervolume("", "p", None).value == pytest.approx(0.1 * 0.5 + 0.4 * 0.8)


def test_a_second_undefended_cell_is_in_no_hypervolume(tmp_path: Path) -> None:
    cells = [run("none", 0, 0.5, {"x": 0.5, "y": 0.6}), run("again", 0, 0.9, {"x": 0.0, "y": 0.0})]
    sweep = read(tmp_path, grid(*cells))
    assert sweep.columns("") == ["none"]
    assert sweep.hypervolume("", "none", "x").value == pytest.approx(0.25)
    assert sweep.hypervolume("", "none", None).value == pytest.approx(0.5 * 0.4)


def test_the_strongest_attack_is_that_of_the_mean(tmp_path: Path) -> None:
    cells = [run("none", 0, 0.5, {"x": 0.9, "y": 0.5}), run("none", 1, 0.5, {"x": 0.1, "y": 0.6})]
    sweep = read(tmp_path, grid(*cells))
    strongest = point(sweep, "none").strongest
    assert strongest is not None
    assert strongest.attack == "y"  # 0.55 on average against 0.5
    assert strongest.by_seed == {0: 0.5, 1: 0.6}


def test_attacks_strongest_first_on_what_is_defended(tmp_path: Path) -> None:
    cells = [run("none", 0, 0.5, {"x": 0.9, "y": 0.1}), run("p", 0, 0.5, {"x": 0.1, "y": 0.3, "z": 0.2}, "p")]
    assert read(tmp_path, grid(*cells)).attacks("") == ["y", "z", "x"]
    assert read(tmp_path, grid(cells[0])).attacks("") == ["x", "y"]


def test_the_front_holds_the_undefended_and_measures_differ(tmp_path: Path) -> None:
    cells = [
        run("none", 0, 0.6, {"x": 0.5}), run("good", 0, 0.5, {"x": 0.1}, "p"), run("bad", 0, 0.4, {"x": 0.2}, "p"),
        run("blind", 0, 0.3, {}, "p"),
    ]  # fmt: skip
    cells[2]["attacks"][0]["auc"]["value"] = 0.5
    sweep = read(tmp_path, grid(*cells))
    assert sweep.front("", "x", "tpr") == {"none", "good"}
    assert sweep.front("", "x", "auc") == {"none", "good", "bad"}
    assert sweep.front("", None, "tpr") == {"none", "good"}
    assert [p.short for p, _ in sweep.drawn("", "x", "tpr")] == ["none", "good", "bad"]


def test_two_attacks_with_one_title_are_told_apart(tmp_path: Path) -> None:
    cell = run("none", 0, 0.5, {"x": 0.1, "y": 0.2})
    cell["attacks"][1]["title"] = "X"
    assert read(tmp_path, grid(cell)).names == {"x": "X · x", "y": "X · y"}


def test_null_figures_are_left_out(tmp_path: Path) -> None:
    cells = [run("none", s, 0.5, {"x": 0.4}) for s in (0, 1)]
    cells[0]["attacks"][0]["tpr_at_fpr"]["0.001"] |= {"value": None, "low": None, "high": None}
    del cells[1]["attacks"][0]["tpr_at_fpr"]["0.001"]
    sweep = read(tmp_path, grid(*cells))
    assert point(sweep, "none").figures["x"].tpr.value is None
    assert point(sweep, "none").strongest is None
    assert sweep.attacks("") == ["x"]


def broken(**more: Any) -> dict[str, Any]:
    return grid(run("none", 0, 0.5, {"x": 0.4}), **more)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (broken(schema=2), "schema is 2; this version reads schema 1"),
        (broken(budget=2), "budget: got 2; Input should be less than or equal to 1"),
        (broken(cells=[run("a", 0, 41.0, {})]), r"cells\.0\.accuracy: got 41\.0; Input should be less than"),
        (
            broken(cells=[run("a", 0, 0.4, {}, status="well")]),
            r"cells\.0\.status: got 'well'; Input should be 'done'",
        ),
        (broken(cells=[run("a", 0, 0.4, {})] * 2), "the cell 'a' is there twice with seed 0"),
    ],
)
def test_a_file_that_cannot_be_shown(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"sweep\.json: .*{said}"):
        read(tmp_path, data)


def test_a_folder_that_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a sweep folder; expected the file sweep\.json in it"):
        FinishedSweep.read(tmp_path)
    (tmp_path / "sweep.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"sweep\.json: cannot be read as JSON"):
        FinishedSweep.read(tmp_path)
    (tmp_path / "sweep.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"sweep\.json: got a JSON list; expected an object"):
        FinishedSweep.read(tmp_path)
