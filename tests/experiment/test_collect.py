"""What of a run goes into sweep.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY

from fedsiege.experiment.collect import defended, figures, partly
from fedsiege.experiment.config import load


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
