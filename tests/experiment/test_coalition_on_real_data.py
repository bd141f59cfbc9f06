"""What a coalition is for, on real images: acceptance check 7, as far as minutes on a CPU reach.

The order of the modules among themselves takes more clients, rounds and seeds: `cofedmid/modules_small`.
"""

from pathlib import Path
from typing import Any

import pytest

from fedsiege.experiment import run

pytestmark = pytest.mark.slow

HALF: dict[str, Any] = {"name": "cofedmid", "members": "half", "start": 3}
CELLS: dict[str, dict[str, Any]] = {
    "none": {**HALF, "assignment": "none", "compensation": "none", "perturbation": "none"},
    "partition": {**HALF, "compensation": "none", "perturbation": "none"},
    "all three": HALF,
}


@pytest.fixture(scope="module")
def aucs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """The AUC of every attack in every cell, pooled over the members that are asked about."""
    base: dict[str, Any] = {
        "data": {
            "name": "huggingface",
            "path": str(shared_data / "cifar100"),
            "label": "coarse_label",
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.2023, 0.1994, 0.2010],
        },
        "model": "cnn",
        "clients": 6,
        "examples_per_client": 120,
        "rounds": 15,
        "training": {"epochs": 3, "batch": 15, "lr": 0.03, "schedule": "factor"},
        "validation": 200,
        "targets": [0, 1, 2],
        "candidates": {"ifl": 360, "ofl": 360},
        "record_every": 3,
        "evaluate_every": 15,
        "attacks": [
            "loss_series",
            "fedmia_ii",
            {"name": "fedmia_ii", "updates": "coalition"},
            {"name": "fedmia_ii", "average": "trained"},
        ],
        "threads": 1,
    }
    found = {}
    for name, coalition in CELLS.items():
        place = tmp_path_factory.mktemp("cell") / "run"
        result = run({**base, "coalition": coalition}, place, progress=False)
        rows = [row for row in result.data["attacks"] if (row["target"], row["against"]) == ("pooled", "all")]
        found[name] = {row["attack"]: row["auc"]["value"] for row in rows}
    return found


@pytest.mark.parametrize("attack", ["loss_series", "fedmia_ii"])
@pytest.mark.parametrize("cell", ["partition", "all three"])
def test_a_coalition_takes_much_of_what_attacks_see(aucs: dict[str, Any], cell: str, attack: str) -> None:
    assert aucs["none"][attack] > 0.8
    assert aucs[cell][attack] < aucs["none"][attack] - 0.1


def test_an_attack_that_knows_the_assignment_gets_some_of_it_back(aucs: dict[str, Any]) -> None:
    trained = "fedmia_ii(average=trained)"
    assert aucs["partition"][trained] > aucs["partition"]["fedmia_ii"] + 0.03
    assert aucs["none"][trained] == pytest.approx(aucs["none"]["fedmia_ii"], abs=0.03), "there nothing is left out"
