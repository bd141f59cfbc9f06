"""The shipped experiments of FedPoisonMIA: figures typed from its table, settings, cells that can be built."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedsiege import shipped
from fedsiege.experiment.config import Experiment, load
from fedsiege.experiment.grid import Cell, Grid
from fedsiege.experiment.prepare import check, prepare
from fedsiege.registry import build, name_of

FOLDER = "fedpoisonmia/"
GRIDS = [name for name in shipped.grids() if name.startswith(FOLDER)]
PUBLISHED = ["cifar10", "purchase100", "texas100"]
RULES = ["mean", "median", "trimmed mean", "ATM"]
TABLE = {
    "texas100": {
        "passive": (0.643, 0.583, 0.630, 0.600),
        "gradient ascent": (0.826, 0.820, 0.810, 0.766),
        "AGREvader": (0.804, 0.761, 0.756, 0.741),
        "FedPoisonMIA": (0.897, 0.913, 0.880, 0.803),
    },
    "cifar10": {"FedPoisonMIA": (0.913, 0.753, 0.857, 0.713)},
}
"""Attack accuracy, by attack, under FedAvg, the median, the trimmed mean and the angular trimmed mean."""
CODE: dict[str, Any] = {"greedy": "norm", "feasible_first": False, "fallback": "attack"}
SMALL_ATTACKS = {"passive", "gradient_ascent", "agrevader", "agrevader_euclidean", "fedpoisonmia"}
FURTHER_ATTACKS = {"label_flip_mia", "agrevader_gray", "adaptive_atm"}
SMALL_RULES = {
    *("fedavg", "median", "trimmed_mean", "krum", "multi_krum", "flame", "deepsight", "angular_trimmed_mean"),
    "fang_lrr_err",
}


def cells_of(name: str, *overrides: str) -> list[Cell]:
    grid, where = Grid.load(FOLDER + name, overrides)
    return grid.cells_of(where)


def poisoner(experiment: Experiment) -> Any:
    return build("poisoning", experiment.adversary, "adversary")


def rule(experiment: Experiment) -> Any:
    return build("aggregator", experiment.aggregator, "aggregator")


def asked(experiment: Experiment) -> tuple[int | None, int, int]:
    """Members of each target, and the two kinds of non-members."""
    return experiment.candidates.members, experiment.candidates.ifl, experiment.candidates.ofl


def test_these_are_the_shipped_ones() -> None:
    assert [name.removeprefix(FOLDER) for name in GRIDS] == [
        *("cifar10", "coupling_small", "location_more", "location_table", "purchase100", "texas100")
    ]
    assert [name for name in shipped.names() if name.startswith(FOLDER)] == [f"{FOLDER}location_small"]


@pytest.mark.parametrize("name", GRIDS)
def test_every_cell_can_be_built_in_full_and_small(name: str) -> None:
    for cell in cells_of(name.removeprefix(FOLDER), "seeds=[0]"):
        check(cell.experiment)
    if name.removeprefix(FOLDER) in PUBLISHED:
        for cell in cells_of(name.removeprefix(FOLDER), "profile=small", "seeds=[0]"):
            check(cell.experiment)


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_are_those_of_the_paper_and_nothing_else_is_claimed(name: str) -> None:
    grid, _ = Grid.load(FOLDER + name)
    typed = {
        f"adversary={attack}, aggregator={column}": value
        for attack, values in TABLE.get(name, {}).items()
        for column, value in zip(RULES, values, strict=True)
    }
    # Which of its two forms the paper measured is not known: both stand beside its figures.
    typed |= {
        cell.replace("FedPoisonMIA", "FedPoisonMIA as coded"): value
        for cell, value in typed.items()
        if "FedPoisonMIA" in cell
    }
    figures = [] if grid.paper is None else grid.paper.figures
    assert {figure.cell: figure.value for figure in figures} == typed
    assert all(figure.metric == "best_decision" and figure.spread is None for figure in figures)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_setting_of_the_published_table(name: str) -> None:
    cells = cells_of(name)
    assert len(cells) == 5 * 4 * 3
    for cell in cells:
        e, t = cell.experiment, cell.experiment.training
        assert (e.clients, e.rounds, e.participation, e.delay, e.partition) == (10, 500, 0.8, 5, "iid")
        assert (t.algorithm, t.epochs, t.batch, t.optimiser, t.lr, t.weight_decay) == (
            *("fedavg", 1, 64, "adam", 0.001, 0.0),
        )
        assert (e.compromised.clients, e.compromised.invited, e.compromised.first) == ((0,), False, 1)
        assert (asked(e), e.record_every) == ((17, 0, 153), 1)
        assert e.model == ("resnet20" if name == "cifar10" else {"name": "mlp", "hidden": [512, 128]})


@pytest.mark.parametrize("name", PUBLISHED)
def test_attacks_and_rules_of_the_published_table(name: str) -> None:
    cells = {cell.name: cell.experiment for cell in cells_of(name, "seeds=[0]")}
    names = {"passive": "passive", "gradient ascent": "gradient_ascent", "AGREvader": "agrevader_euclidean"}
    for attack, registered in names.items():
        assert name_of(poisoner(cells[f"adversary={attack}, aggregator=mean"])) == registered
    ours, code = (
        poisoner(cells[f"adversary={attack}, aggregator=mean"])
        for attack in ("FedPoisonMIA", "FedPoisonMIA as coded")
    )
    assert (ours.fallback, ours.greedy, ours.feasible_first) == ("mask", "angle", True)
    assert {field: getattr(code, field) for field in CODE} == CODE
    assert ours.step == code.step == "optimiser"
    assert ours.knowledge == code.knowledge == "full"
    mean, median, trimmed, atm = (rule(cells[f"adversary=passive, aggregator={column}"]) for column in RULES)
    assert (name_of(mean), mean.weighted) == ("fedavg", False)
    assert name_of(median) == "median"
    assert (name_of(trimmed), trimmed.f) == ("trimmed_mean", 1)
    assert (name_of(atm), atm.trim) == ("angular_trimmed_mean", 2)


def test_the_table_of_location30_has_each_attack_against_each_rule_once() -> None:
    pairs: Counter[tuple[str, str, str]] = Counter()
    for cell in cells_of("location_table"):
        e = cell.experiment
        attack, guard = poisoner(e), [str(spec) for spec in e.server_defences]
        pairs[name_of(attack), getattr(attack, "fallback", ""), guard[0] if guard else name_of(rule(e))] += 1
        assert getattr(attack, "mask", 150) == 150
        if guard:
            assert (name_of(rule(e)), rule(e).weighted) == ("fedavg", False)
    attacks = {(name, fallback) for name, fallback, _ in pairs}
    assert {name for name, _ in attacks} == SMALL_ATTACKS
    assert {fallback for name, fallback in attacks if name == "fedpoisonmia"} == {"mask", "attack"}
    assert {against for *_, against in pairs} == SMALL_RULES
    assert len(pairs) == 6 * 9
    assert set(pairs.values()) == {3}, "three seeds"


def test_fang_is_one_more_rule_in_words_of_the_axes() -> None:
    """A cell outside the product stands in the row of its attack."""
    axes = Grid.load(f"{FOLDER}location_table")[0].axes
    for cell in cells_of("location_table", "seeds=[0]"):
        if not cell.axes:
            assert cell.changes["adversary"] in axes["adversary"]
            assert cell.changes["aggregator"] == "mean"
            assert cell.name == f"{cell.changes['adversary']}, Fang"


def test_the_attacks_that_the_table_leaves_out_are_in_the_other_one() -> None:
    found = {name_of(poisoner(cell.experiment)) for cell in cells_of("location_more", "seeds=[0]")}
    assert found == FURTHER_ATTACKS | {"fedpoisonmia"}


@pytest.mark.parametrize("name", ["location_table", "location_more"])
def test_the_setting_of_the_prototype(name: str) -> None:
    for cell in cells_of(name, "seeds=[0]"):
        e = cell.experiment
        assert (e.clients, e.rounds, e.training.algorithm, e.training.lr) == (10, 220, "fedsgd", 1.0)
        assert (asked(e), e.compromised.clients) == ((17, 0, 153), (0,))
        assert e.root == 100, "the same for all cells, so that all have the same held-out examples"


def test_the_coupling_asks_a_curious_server_about_honest_clients() -> None:
    cells = cells_of("coupling_small")
    assert len(cells) == 5 * 4 * 3
    for cell in cells:
        e = cell.experiment
        assert e.targets == [1, 2, 3]
        assert e.compromised.clients == (0,)
        assert e.attacks == ["fedmia_i", "fedmia_ii", "loss_series", "avg_cosine", "fedpoisonmia"]
    assert {name_of(poisoner(cell.experiment)) for cell in cells} == {
        *("passive", "label_flip_mia", "fedpoisonmia", "gradient_ascent")
    }
    assert {name_of(rule(cell.experiment)) for cell in cells} == {
        "fedavg",
        "median",
        "krum",
        "angular_trimmed_mean",
    }


def test_what_is_asked_about_on_location30(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine clients' 17 members each, as many of nobody's; the attacker has none of them, and more than its mask."""
    monkeypatch.setenv("FEDSIEGE_DATA", str(shared_data))
    made = prepare(load(f"{FOLDER}location_small"))
    audits = made.candidates.audits
    assert [audit.target for audit in audits] == list(range(1, 10))
    assert [int(audit.members.sum()) for audit in audits] == [17] * 9
    assert len(made.candidates.asked) == 9 * 17 + 153
    assert not set(made.data.train.ids[made.shards[0]]) & set(made.candidates.asked.ids)
    assert len(made.shards[0]) > poisoner(made.experiment).mask
