"""CoFedMID's published tables as grids: figures typed from the paper, cells that can be built, its settings."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsiege import shipped
from fedsiege.experiment.config import Experiment, load
from fedsiege.experiment.grid import ACCURACIES, Cell, Figure, Grid
from fedsiege.experiment.prepare import Shelf, check, prepare
from fedsiege.experiment.published import Beside, attack_row
from fedsiege.registry import name_of

FOLDER = "cofedmid/"
GRIDS = [
    name
    for name in shipped.grids()
    if name.startswith(FOLDER) and "\npaper:\n" in shipped.find(name).read_text(encoding="utf-8")
]
BASES = [name for name in shipped.names() if name.startswith(FOLDER)]
MAIN = [name for name in GRIDS if name.startswith("cofedmid/defences_")]
SEVEN = {"loss_series", "avg_cosine", "fedmia_i", "fedmia_ii", "fta_c", "fta_l", "seqmia"}
DEFENCES = ["GradSparse", "GradNoise", "DP-SGD", "MixUp", "RelaxLoss", "HAMP", "CoFedMID"]
ADAPTIVE = "(updates=coalition)"

TYPED: list[tuple[str, str, str, str, float, float | None]] = [
    ("defences_cifar100_resnet18", "none", "fedmia_ii", "auc", 0.82, 0.0),
    ("defences_cifar100_resnet18", "none", "seqmia", "tpr@0.001", 0.1062, 0.0452),
    ("defences_cifar100_resnet18", "half GradNoise", "seqmia", "auc", 0.74, 0.2),
    ("defences_cifar100_resnet18", "pair HAMP", "fta_c", "tpr@0.001", 0.0, 0.0),
    ("defences_cifar100_resnet18", "pair CoFedMID", "fedmia_ii", "tpr@0.001", 0.0312, 0.008),
    ("defences_cifar100_resnet18", "half CoFedMID", "fta_l", "tpr@0.001", 0.0006, 0.0005),
    ("defences_cifar100_resnet18", "half GradNoise", "", "accuracy_change", -0.18, None),
    ("defences_cifar10_resnet18", "none", "", "accuracy", 0.75, None),
    ("defences_cifar10_resnet18", "pair MixUp", "fedmia_i", "auc", 0.71, 0.0),
    ("defences_cifar10_resnet18", "half CoFedMID", "loss_series", "tpr@0.001", 0.0316, 0.0098),
    ("defences_tinyimagenet_resnet18", "pair HAMP", "seqmia", "tpr@0.001", 0.3749, 0.1602),
    ("defences_tinyimagenet_resnet18", "half DP-SGD", "", "accuracy_change", -0.25, None),
    ("defences_cifar100_wrn", "none", "avg_cosine", "tpr@0.001", 0.3217, None),
    ("defences_cifar100_wrn", "pair RelaxLoss", "fedmia_ii", "auc", 0.78, None),
    ("defences_cifar10_wrn", "pair GradNoise", "fedmia_i", "auc", 0.34, None),
    ("defences_tinyimagenet_wrn", "half CoFedMID", "loss_series", "tpr@0.001", 0.099, None),
    ("defences_tinyimagenet_wrn", "none", "", "accuracy", 0.49, None),
    ("uniform_cifar100", "CoFedMID", "seqmia", "auc", 0.69, None),
    ("uniform_cifar100", "HAMP", "seqmia", "tpr@0.001", 0.597, None),
    ("uniform_cifar100", "MixUp", "", "accuracy_change", -0.21, None),
    ("noniid_cifar100", "beta 0.5, pair CoFedMID", "fedmia_ii", "tpr@0.001", 0.0021, None),
    ("noniid_cifar100", "beta 1.0, none", "seqmia", "tpr@0.001", 0.62, None),
    ("noniid_cifar10", "pair CoFedMID", "fedmia_ii", "auc", 0.73, None),
    ("ablation_cifar100", "partition and compensation", "seqmia", "auc", 0.64, None),
    ("ablation_cifar10", "all three", "seqmia", "tpr@0.001", 0.0174, None),
    ("assignment_cifar100", "bounded", "", "accuracy_change", -0.04, None),
    ("assignment_cifar10", "random", "", "accuracy_change", -0.11, None),
    ("schedule_cifar100", "constant most", "seqmia", "auc", 0.73, None),
    ("recycling_cifar100", "random", "", "accuracy_change", -0.03, None),
    ("recycling_cifar10", "sequential", "", "accuracy_change", -0.09, None),
    ("confidence_cifar100", "without", "seqmia", "auc", 0.8, None),
    ("confidence_cifar10", "with", "seqmia", "auc", 0.61, None),
    ("recycled_share_cifar100", "coalition.members=half, coalition.recycle=0.2", "seqmia", "auc", 0.68, None),
    ("adaptive_cifar100", "pair", f"fedmia_ii{ADAPTIVE}", "tpr@0.001", 0.0547, None),
    ("adaptive_cifar10", "half", f"loss_series{ADAPTIVE}", "tpr@0.001", 0.022, None),
]
"""Grid, cell, attack, metric, value and spread, as the paper prints them (per cent as shares)."""


def read(name: str, *overrides: str) -> tuple[Grid, list[Cell], list[Figure]]:
    made, where = Grid.load(name, overrides)
    assert made.paper is not None
    return made, made.cells_of(where), made.paper.figures


def by_name(cells: list[Cell]) -> dict[str, Experiment]:
    return {cell.name: cell.experiment for cell in cells if cell.seed == cells[0].seed}


def rows_of(experiment: Experiment) -> list[dict[str, Any]]:
    """What sweep.json would have of the attacks of a run."""
    return [{"attack": one.label, "name": name_of(one.attack)} for one in check(experiment).attacks]


def clients_of(experiment: Experiment) -> list[set[int]]:
    return [set(one.clients) for one in check(experiment).defences]


def coalitions_of(experiment: Experiment) -> list[dict[str, Any]]:
    found = experiment.model_dump(mode="json")["coalition"] or []
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize(("grid", "cell", "attack", "metric", "value", "spread"), TYPED)
def test_figures_typed_from_the_paper(
    grid: str, cell: str, attack: str, metric: str, value: float, spread: float | None
) -> None:
    _, _, figures = read(FOLDER + grid)
    (one,) = [f for f in figures if (f.cell, f.attack, f.metric) == (cell, attack, metric)]
    assert one.value == pytest.approx(value, abs=1e-12)
    assert one.spread == (None if spread is None else pytest.approx(spread, abs=1e-12))


def test_every_grid_of_the_paper_is_among_those_that_figures_were_typed_for() -> None:
    assert {FOLDER + grid for grid, *_ in TYPED} == set(GRIDS)
    assert len(MAIN) == len(BASES) == 6


@pytest.mark.parametrize("name", MAIN)
def test_the_main_tables_are_whole(name: str) -> None:
    """A figure for each of seven attacks and both metrics in every cell, and an accuracy; nothing averaged."""
    made, cells, figures = read(name)
    names = ["none", *(f"{who} {one}" for who in ("pair", "half") for one in DEFENCES)]
    assert list(by_name(cells)) == names
    assert len(figures) == 15 * 7 * 2 + 15
    for cell in names:
        for metric in ("auc", "tpr@0.001"):
            assert {f.attack for f in figures if (f.cell, f.metric) == (cell, metric)} == SEVEN
        kind = "accuracy" if cell == "none" else "accuracy_change"
        (accuracy,) = [f for f in figures if f.cell == cell and f.metric in ACCURACIES]
        assert (accuracy.metric, accuracy.against) == (kind, "" if cell == "none" else "none")
    assert made.seeds == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("profile", [None, "small"])
def test_every_cell_can_be_built_and_every_figure_is_measured(name: str, profile: str | None) -> None:
    """In full and small: no figure stands beside an attack that its cell does not run."""
    made, cells, figures = read(name, *([f"profile={profile}"] if profile else []))
    experiments = by_name(cells)
    measured = {cell: rows_of(experiment) for cell, experiment in experiments.items()}
    for figure in figures:
        assert 0 <= abs(figure.value) <= 1
        assert figure.metric in ("auc", "tpr@0.001", *ACCURACIES)
        if figure.attack:
            row = attack_row(measured[figure.cell], figure.attack)
            assert row is not None
            assert row["attack"] == figure.attack
    assert made.paper is not None
    assert {figure.metric for figure in figures} == set(made.paper.rounding)
    for experiment in experiments.values():
        assert all({0} <= clients for clients in clients_of(experiment)), "the target defends itself"


@pytest.mark.parametrize("name", GRIDS)
def test_only_the_profile_changes_the_published_setting(name: str) -> None:
    made, where = Grid.load(name)
    beside = Beside.of(made, where, made.cells_of(where))
    assert beside is not None
    assert beside.compared([])["changed"] == []
    made, where = Grid.load(name, ["profile=small"])
    beside = Beside.of(made, where, made.cells_of(where))
    assert beside is not None
    assert {"model", "rounds", "examples_per_client", "validation"} <= set(beside.compared([])["changed"])


@pytest.mark.parametrize("name", BASES)
def test_the_settings_of_the_paper(name: str) -> None:
    e = load(name)
    assert (e.clients, e.rounds, e.record_every, e.targets, e.validation) == (10, 100, 10, 0, 1000)
    assert (e.candidates.ifl, e.candidates.ofl, e.candidates.members) == (9000, 1000, None)
    t = e.training
    assert (t.epochs, t.batch, t.lr, t.momentum, t.weight_decay, t.schedule) == (1, 128, 0.1, 0.9, 5e-4, "cosine")
    assert e.model == ("wrn16_4" if name.endswith("wrn") else "resnet18")
    (spec,) = coalitions_of(e)
    numbers = {
        "cifar100": (50, 20, 0.1, 0.2),
        "cifar10": (10, 2, 0.01, 0.01),
        "tinyimagenet": (200, 40, 0.1, 0.3),
    }[name.removeprefix(FOLDER).partition("_")[0]]
    assert tuple(spec[key] for key in ("m_max", "m_min", "sigma", "tail")) == numbers
    assert (spec["members"], spec["start"], spec["recycle"]) == ("pair", 10, 0.05)
    assert "Reconstruction" in e.description


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("profile", [None, "small"])
def test_pair_and_half_are_two_and_five_clients_and_nobody_else_defends(name: str, profile: str | None) -> None:
    experiments = by_name(read(name, *([f"profile={profile}"] if profile else []))[1])
    assert clients_of(experiments.pop("none")) == []
    for cell, experiment in experiments.items():
        assert clients_of(experiment) == [{0, 1} if cell.startswith("pair") else {0, 1, 2, 3, 4}]


@pytest.mark.parametrize("name", MAIN)
def test_small_relaxloss_leaves_something_to_learn(name: str) -> None:
    """Guessing among 20 classes has a loss of 3.0: with the alpha for CIFAR-100 nothing is learnt."""
    for cell, experiment in by_name(read(name, "profile=small")[1]).items():
        if cell.endswith("RelaxLoss"):
            assert isinstance(experiment.defences[0], dict)
            assert experiment.defences[0]["alpha"] == 1.0


def test_the_schedules_small_constants_are_its_small_range() -> None:
    found = by_name(read("cofedmid/schedule_cifar100", "profile=small")[1])
    ranges = {
        name: tuple(spec[key] for key in ("m_max", "m_min"))
        for name, experiment in found.items()
        for spec in coalitions_of(experiment)
    }
    assert ranges["constant fewest"] == (4, 4)
    assert ranges["constant between"] == (7, 7)
    assert ranges["constant most"] == (10, 10)
    assert ranges["linear"] == ranges["cosine"] == (10, 4)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["cifar100", "cifar10", "tinyimagenet"])
def test_small_grids_can_begin_on_the_real_data(
    data: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every different cell of the grids of one data set; the wide network's are those of the ResNet18."""
    monkeypatch.setenv("FEDSIEGE_DATA", str(shared_data))
    different: dict[str, Experiment] = {}
    for name in GRIDS:
        if data in name.split("_") and not name.endswith("_wrn"):
            for experiment in by_name(read(name, "profile=small")[1]).values():
                told = experiment.model_dump(mode="json", exclude={"name", "title", "description", "changed"})
                different.setdefault(json.dumps(told), experiment)
    assert len(different) > 10
    shelf = Shelf()
    for experiment in different.values():
        prepare(experiment, shelf)


def page(name: str) -> str:
    return (Path(__file__).parents[1] / "docs" / name).read_text(encoding="utf-8")


def test_the_page_about_reproductions_lists_every_grid() -> None:
    assert set(re.findall(r"`(cofedmid/\w+)`", page("reproductions.md"))) == set(GRIDS)


def test_the_published_table_on_the_page_about_sweeps_is_one() -> None:
    section = page("sweeps.md").partition("## Published tables")[2]
    (code,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    made, where = Grid.load(yaml.safe_load(code))
    for experiment in by_name(made.cells_of(where)).values():
        check(experiment)
    assert made.paper is not None
    assert [one.metric for one in made.paper.figures] == ["auc", "tpr@0.001", "accuracy", "accuracy_change"]
