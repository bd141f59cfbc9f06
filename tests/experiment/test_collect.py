"""What of a run goes into sweep.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY

from fedsiege.experiment.collect import Outcome, defended, figures, partly, poisoned, row
from fedsiege.experiment.config import load
from fedsiege.experiment.grid import Cell
from fedsiege.registry import names
from fedsiege.report.grid.schema import Cell as Read


def test_defences_by_name_and_label_in_order() -> None:
    experiment = load({**TINY, "defences": [{"name": "perturb", "sigma": 0.5}, "sparsify"]})
    assert defended(experiment) == (["perturb", "sparsify"], ["perturb(sigma=0.5)", "sparsify"])
    assert defended(load(TINY)) == ([], [])


def test_a_coalition_that_does_nothing_defends_nobody() -> None:
    neutral = {"name": "cofedmid", "assignment": "none", "compensation": "none", "perturbation": "none"}
    assert defended(load({**TINY, "coalition": neutral})) == ([], [])
    assert defended(load({**TINY, "coalition": "cofedmid"})) == (["cofedmid"], ["cofedmid"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"defences": ["sparsify"]}, False),
        ({"defences": [{"name": "sparsify", "clients": [0, 1]}]}, True),
        ({"defences": [{"name": "sparsify", "clients": [0, 1]}], "targets": [0, 1]}, False),
        ({"defences": [{"name": "sparsify", "clients": [0, 1]}], "targets": [3]}, False),
        ({"coalition": "cofedmid"}, True),
        ({"coalition": {"name": "cofedmid", "members": "all"}}, False),
        ({"coalition": "cofedmid", "targets": 1}, False),
    ],
)
def test_a_sweep_knows_where_pooled_figures_mix_who_is_defended_and_who_is_not(
    changes: dict[str, Any], expected: bool
) -> None:
    assert partly(load({**TINY, **changes})) == expected


def test_a_sweep_knows_what_is_an_upper_bound(tmp_path: Path) -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    entry = {
        **{"attack": "a", "name": "a", "title": "A", "adapted": False, "target": "pooled", "against": "all"},
        **{"n_nonmembers": 5, "n_distinct_nonmembers": 5, "auc": figure, "tpr_at_fpr": {}},
    }
    attacks = [{**entry, "upper_bound": True}, {**entry, "upper_bound": False}, entry]
    content = {
        "task": {"accuracy": 0.5, "train_accuracy": 0.5, "loss": 1.0},
        "attacks": attacks,
        "components": [],
        "cost": {"wall_seconds": 1.0},
    }
    (tmp_path / "result.json").write_text(json.dumps(content), encoding="utf-8")
    assert [one["upper_bound"] for one in figures(tmp_path)["attacks"]] == [True, False, False]


def result(**part: Any) -> dict[str, Any]:
    """The parts of a result.json that a sweep reads, of a run without an audit of membership."""
    return {
        "experiment": {"config": {"start": None, "pretrain_rounds": 0}},
        "task": {"accuracy": 0.5, "train_accuracy": 0.5, "loss": 1.0},
        "attacks": [],
        "components": [],
        "cost": {"wall_seconds": 1.0},
        **part,
    }


def adversary(*rounds: int) -> dict[str, Any]:
    known = {"name": "dba", "label": "dba", "title": "DBA", "compromised": [0], "plants": True}
    return {**known, "attack_rounds": list(rounds)}


def test_a_sweep_has_what_a_run_says_of_poisoning_but_for_single_rounds(tmp_path: Path) -> None:
    part = {"adversary": adversary(5), "main": {"before": None}, "success": None, "attacks": [{"round": 5}]}
    (tmp_path / "result.json").write_text(json.dumps(result(poisoning=part)), encoding="utf-8")
    found = figures(tmp_path)
    assert found["poisoning"] == {
        "adversary": part["adversary"],
        "main": {"before": None},
        "success": None,
        "fresh": False,
    }
    assert found["attacks"] == []


@pytest.mark.parametrize(
    ("part", "config", "fresh"),
    [
        ({"adversary": adversary(1, 2)}, {}, True),
        ({"adversary": adversary(2)}, {}, False),
        ({"adversary": adversary(1)}, {"pretrain_rounds": 5}, False),
        ({"adversary": adversary(1)}, {"start": "model.safetensors"}, False),
        ({"adversary": None}, {}, False),
    ],
)
def test_a_sweep_knows_where_an_attack_began_on_an_untrained_model(
    part: dict[str, Any], config: dict[str, Any], fresh: bool
) -> None:
    found = poisoned(result(poisoning=part, experiment={"config": config}))
    assert found is not None
    assert found["fresh"] is fresh


def test_a_sweep_has_decisions_but_for_single_rounds_and_what_their_attack_counted() -> None:
    decisions = {"members": 2, "rounds": [1, 2], "accuracy": [0.5, 0.75], "last": {"value": 0.6}}
    part = {"adversary": adversary(5), "decisions": decisions}
    parts = [
        {"kind": "aggregator", "counters": {"rows": 3}, "acted": True, "label": "aggregator"},
        {"kind": "poisoning", "counters": {"feasible_share": 0.25}, "acted": True, "label": "fedpoisonmia"},
    ]
    found = poisoned(result(poisoning=part, components=parts))
    assert found is not None
    assert found["decisions"] == {"members": 2, "last": {"value": 0.6}}
    assert found["counters"] == {"feasible_share": 0.25}
    bare = poisoned(result(poisoning=part, components=[]))
    assert bare is not None
    assert bare["counters"] == {}
    without = poisoned(result(poisoning={**part, "decisions": None}, components=parts))
    assert without is not None
    assert without["decisions"] is None
    assert "counters" not in without


def test_a_run_that_says_nothing_of_poisoning(tmp_path: Path) -> None:
    assert poisoned(result()) is None
    assert poisoned(result(poisoning=None)) is None
    (tmp_path / "result.json").write_text(json.dumps(result()), encoding="utf-8")
    assert figures(tmp_path)["poisoning"] is None


def test_a_sweep_knows_the_aggregation_rule_and_whether_it_is_a_mean(tmp_path: Path) -> None:
    cell = Cell("c", {}, 3, "cells/c/seed3", load(TINY), {})
    found = row(tmp_path, cell, Outcome("missing"))
    assert (found["rule"], found["averages"], found["poisoning"]) == ("fedavg", True, None)
    read = Read.model_validate(found)
    assert (read.rule, read.averages, read.seed) == ("fedavg", True, 3)


@pytest.mark.parametrize("rule", [one for one in names("aggregator") if one != "fedavg"])
def test_a_rule_that_is_no_mean_is_told_apart(rule: str, tmp_path: Path) -> None:
    cell = Cell("c", {}, 0, "cells/c/seed0", load({**TINY, "aggregator": rule}), {})
    assert row(tmp_path, cell, Outcome("missing"))["averages"] is False
