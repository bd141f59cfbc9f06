"""Poisoning membership inference on Location30: stronger than looking on, and held back by the right rule."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fedsiege.experiment.run import run

SHORT = ["rounds=220", "root=100", "record_every=2", "evaluate_every=50", "checkpoint_every=220"]
MASK = 60  # of the attack that need not hide: fewer are quicker
POISON = json.dumps({"name": "fedpoisonmia", "fallback": "attack", "mask": MASK})
HIDDEN = json.dumps({"name": "fedpoisonmia", "mask": 150})
ATM = json.dumps({"name": "angular_trimmed_mean", "trim": 1})

Found = dict[str, Any]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Callable[..., Found]:
    """The result of an attack against a rule, run once."""
    if not (shared_data / "location30").is_dir():
        pytest.skip("Location30 is not there")

    @cache
    def result(adversary: str, rule: str | None = None) -> Found:
        out = tmp_path_factory.mktemp("location") / "run"
        changes = [f"adversary={adversary}", *([] if rule is None else [f"aggregator={rule}"])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDSIEGE_DATA", str(shared_data))
            run("fedpoisonmia/location_small", out, overrides=[*SHORT, *changes], progress=False)
        made: Found = json.loads((out / "result.json").read_text())
        return made

    return result


def best(result: Found) -> float:
    value: float = result["poisoning"]["decisions"]["best"]["value"]
    return value


def auc(result: Found) -> float:
    rows = [row for row in result["attacks"] if row["target"] == "any" and row["attack"] == "fedpoisonmia"]
    value: float = rows[0]["auc"]["value"]
    return value


def test_poison_decides_better_than_looking_on_and_than_gradient_ascent(found: Callable[..., Found]) -> None:
    poisoned = best(found(POISON))
    assert poisoned >= best(found("passive")) + 0.10
    assert poisoned >= best(found("gradient_ascent"))


def test_the_angular_trimmed_mean_takes_most_of_that_back(found: Callable[..., Found]) -> None:
    assert best(found(POISON, ATM)) <= best(found(POISON)) - 0.10


def test_the_angular_trimmed_mean_hardly_ever_keeps_a_raw_label_flip(found: Callable[..., Found]) -> None:
    attackers = found("label_flip_mia", ATM)["poisoning"]["detection"]["attackers"]
    assert attackers["rejected"]["value"] > 0.90
    assert attackers["rejected"]["n"] == 220


def test_hidden_poison_raises_what_the_median_leaks_and_spares_the_model(found: Callable[..., Found]) -> None:
    hidden, watched = found(HIDDEN, "median"), found("passive", "median")
    assert auc(hidden) >= auc(watched) + 0.02
    assert hidden["task"]["accuracy"] >= watched["task"]["accuracy"] - 0.06
    (attack,) = [one for one in hidden["components"] if one["kind"] == "poisoning"]
    assert 0.3 < attack["counters"]["feasible_share"] <= 1
