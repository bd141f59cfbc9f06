"""What every registered membership attack must do, whatever its idea is."""

from dataclasses import fields, replace
from typing import Any, cast, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fedsiege.attacks.membership.base import MembershipAttack, vantages
from fedsiege.registry import build, load, names
from fedsiege.streams import stream
from fedsiege.view import (
    OF_THE_GLOBAL_MODEL,
    ArrayEvidence,
    Background,
    Evidence,
    Known,
    Shadow,
    Signal,
    Vantage,
    View,
)

T, K, CLASSES, TARGET = 5, 6, 4, 2
TOLD: dict[str, dict[str, Any]] = {
    f"{name}({', '.join(f'{field}={value}' for field, value in told.items())})": {"name": name, **told}
    for name in ("grad_cosine", "avg_cosine", "loss_series", "fedmia_i", "fedmia_ii", "fta_c", "fta_l")
    for told in (
        {"coordinates": "nonzero"},
        {"coordinates": "unshifted"},
        {"average": "trained"},
        {"coordinates": "nonzero", "average": "trained"},
    )
    if told.keys() <= {field.name for field in fields(load("membership", name))}
}
"""Attacks that are told of a defence, by label; they need the server's vantage."""
CASES: list[tuple[str, Vantage]] = [
    *((name, vantage) for name in names("membership") for vantage in vantages(build("membership", name, "test"))),
    *((label, "server") for label in TOLD),
]
QUICK: dict[str, dict[str, Any]] = {
    "lira": {"shadows": 2},
    "rmia": {"shadows": 2, "population": 20},
    "seqmia": {"epochs": 10, "sequences": 200},
}
"""Fields of attacks that would take long with their defaults."""
OUTPUTS = ("top", "spread", "entropy", "modified_entropy")
PER_CLIENT = ("loss", "cosine", "cosine_nonzero", "cosine_unshifted", "diff", "head", "rise", *OUTPUTS)
OF_NO_CANDIDATE = ("head", "rise", "present")

Arrays = dict[str, Any]


def attack_of(name: str, vantage: Vantage) -> MembershipAttack:
    spec = {**TOLD.get(name, {"name": name}), **QUICK.get(name, {}), "vantage": vantage}
    attack: MembershipAttack = build("membership", spec, "test")
    return attack


def exchangeable(seed: int, m: int) -> Arrays:
    """Evidence in which the target is one client like any other and no candidate is special.

    Candidates differ in difficulty and clients in level, as real ones do; client sampling leaves holes.
    """
    rng = stream(seed, "exchangeable evidence")
    hard = rng.normal(size=m)
    level = rng.normal(size=(T, K, 1))
    present = rng.random((T, K)) < 0.8
    present[:3, [0, 1, TARGET]] = True
    present[4, TARGET] = False
    arrays = {
        "loss": np.exp(hard + 0.3 * level + 0.5 * rng.normal(size=(T, K, m))),
        "cosine": 0.1 * np.tanh(hard + level + rng.normal(size=(T, K, m))),
        "diff": hard + level + rng.normal(size=(T, K, m)),
        "norm2": np.exp(hard + rng.normal(size=(T, m))),
        "head": rng.normal(size=(T, K, CLASSES)),
        "labels": rng.integers(0, CLASSES, size=m),
        "present": present,
        "global_loss": np.exp(hard + rng.normal(size=(T, m))),
        "aggregate_cosine": 0.1 * np.tanh(hard + rng.normal(size=(T, m))),
        "aggregate_diff": hard + rng.normal(size=(T, m)),
        "cosine_nonzero": 0.2 * np.tanh(hard + level + rng.normal(size=(T, K, m))),
        "cosine_unshifted": 0.3 * np.tanh(hard + level + rng.normal(size=(T, K, m))),
        "rise": rng.uniform(size=(T, K, CLASSES)),
    }
    for output in OUTPUTS:
        arrays[output] = hard + 0.3 * level + 0.5 * rng.normal(size=(T, K, m))
        arrays[f"global_{output}"] = hard + rng.normal(size=(T, m))
    return with_absent_rows(arrays, np.nan)


def with_absent_rows(arrays: Arrays, value: float) -> Arrays:
    filled = {name: np.array(arrays[name]) for name in arrays}
    for name in PER_CLIENT:
        filled[name][~arrays["present"]] = value
    return filled


def leak(arrays: Arrays, target: int, members: NDArray[np.int64]) -> None:
    """Let these columns stand out as the target's members, more from round to round; they are all of class 3."""
    falling = np.geomspace(1.0, 0.05, T)[:, None]
    arrays["loss"][:, target, members] *= falling
    arrays["global_loss"][:, members] *= falling
    for key in ("cosine", "diff"):
        arrays[key][:, target, members] += arrays[key][0, target].std()
        arrays[f"aggregate_{key}"][:, members] += arrays[f"aggregate_{key}"][0].std()
    for key in ("cosine_nonzero", "cosine_unshifted"):
        arrays[key][:, target, members] += arrays[key][0, target].std()
    for key in OUTPUTS:
        arrays[key][:, target, members] -= 1.0
        arrays[f"global_{key}"][:, members] -= 1.0
    arrays["norm2"][:, members] *= 0.3
    arrays["labels"][members] = 3
    arrays["head"][:, target, 3] += 2.0
    arrays["rise"][:, target, 3] = 0.9


def background(seed: int, m: int, shadows: int) -> Background:
    """Shadow federations that asked about m real candidates and 100 of their own, half of them members of 0."""
    made = []
    for number in range(shadows):
        arrays = exchangeable(1000 * seed + number + 1, m + 100)
        order = stream(seed, "columns", number).permutation(m + 100)
        leak(arrays, 0, order[m : m + 50])
        known = Known(0, order[m:], np.arange(100) < 50)
        made.append(Shadow(ArrayEvidence(arrays), order[:m], (known,)))
    return Background(tuple(made), population=np.arange(m - 20, m))


def view_of(name: str, vantage: Vantage, arrays: Arrays, seed: int = 0) -> View:
    """A view with the background that the attack wants."""
    m = len(arrays["labels"])
    return View(ArrayEvidence(arrays), vantage, background(seed, m, attack_of(name, vantage).shadows_wanted))


def scored(name: str, vantage: Vantage, arrays: Arrays, seed: int = 0) -> NDArray[np.float64]:
    return attack_of(name, vantage).score(view_of(name, vantage, arrays, seed), TARGET)


@pytest.mark.parametrize("name", names("membership"))
def test_says_what_it_is(name: str) -> None:
    attack = build("membership", name, "test")
    assert isinstance(attack, MembershipAttack)
    assert attack.title
    assert attack.needs
    assert attack.needs <= set(get_args(Signal))
    assert attack.vantage == vantages(attack)[0]
    assert attack.min_rounds == (2 if attack.multi_round else 1)
    assert hasattr(attack, "round") != attack.multi_round
    assert attack.min_clients == (3 if attack.needs_others else 1)


@pytest.mark.parametrize(("name", "vantage"), CASES)
def test_one_finite_float64_per_candidate_and_the_same_again(name: str, vantage: Vantage) -> None:
    arrays = exchangeable(0, 50)
    scores = scored(name, vantage, arrays)
    assert scores.shape == (50,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scored(name, vantage, arrays), scores)


@pytest.mark.parametrize(("name", "vantage"), CASES)
def test_evidence_is_left_as_it_was(name: str, vantage: Vantage) -> None:
    arrays = exchangeable(1, 30)
    before = {key: np.array(value) for key, value in arrays.items()}
    scored(name, vantage, arrays)[:] = 0
    for key, value in before.items():
        np.testing.assert_array_equal(arrays[key], value)


@pytest.mark.parametrize(("name", "vantage"), CASES)
def test_the_order_of_candidates_says_nothing(name: str, vantage: Vantage) -> None:
    arrays = exchangeable(2, 60)
    order = stream(2, "order").permutation(60)
    permuted = {key: value if key in OF_NO_CANDIDATE else value[..., order] for key, value in arrays.items()}
    view = view_of(name, vantage, arrays)
    shadows = tuple(replace(shadow, asked=shadow.asked[order]) for shadow in view.background.shadows)
    population = np.argsort(order)[view.background.population]
    moved = View(ArrayEvidence(permuted), vantage, Background(shadows, population))
    attack = attack_of(name, vantage)
    np.testing.assert_allclose(attack.score(moved, TARGET), attack.score(view, TARGET)[order], rtol=1e-12)


@pytest.mark.parametrize(("name", "vantage"), CASES)
def test_the_numbering_of_the_other_clients_says_nothing(name: str, vantage: Vantage) -> None:
    arrays = exchangeable(3, 60)
    others = [5, 3, TARGET, 0, 4, 1]
    permuted = {
        key: value[:, others] if key in (*PER_CLIENT, "present") else value for key, value in arrays.items()
    }
    np.testing.assert_allclose(
        scored(name, vantage, permuted), scored(name, vantage, arrays), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("name", "vantage"), CASES)
def test_rows_of_absent_clients_never_leak(name: str, vantage: Vantage) -> None:
    arrays = exchangeable(4, 40)
    assert not arrays["present"].all()
    np.testing.assert_array_equal(
        scored(name, vantage, with_absent_rows(arrays, 1e6)), scored(name, vantage, arrays)
    )


class Recorder:
    """Evidence that notes what is asked of it."""

    def __init__(self, evidence: Evidence) -> None:
        self.asked: set[str] = set()
        self._evidence = evidence

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._evidence, name)


@pytest.mark.parametrize(("name", "vantage"), CASES)
def test_needs_are_the_signals_that_are_read(name: str, vantage: Vantage) -> None:
    attack = attack_of(name, vantage)
    recorder = Recorder(ArrayEvidence(exchangeable(5, 30)))
    view = View(cast(Evidence, recorder), vantage, background(5, 30, attack.shadows_wanted))
    attack.score(view, TARGET)
    if not view.sees_updates:
        expected = {OF_THE_GLOBAL_MODEL.get(signal, signal) for signal in attack.signals}
    else:
        expected = set(attack.signals)
    assert recorder.asked - {"rounds", "clients", "present"} == expected


@pytest.mark.parametrize(("name", "vantage"), CASES)
def test_several_targets_get_what_each_gets_alone(name: str, vantage: Vantage) -> None:
    arrays, targets = exchangeable(9, 40), [TARGET, 0, 1]
    view = view_of(name, vantage, arrays)
    scores = attack_of(name, vantage).score_targets(view, targets)
    assert scores.dtype == np.float64
    total: dict[str, float] = {}
    for row, target in zip(scores, targets, strict=True):
        alone = view_of(name, vantage, arrays)
        np.testing.assert_array_equal(row, attack_of(name, vantage).score(alone, target))
        assert view.of(target).counters == alone.counters
        total = {key: total.get(key, 0) + n for key, n in alone.counters.items()}
    assert view.counters == total


@pytest.mark.parametrize("name", names("membership"))
def test_only_those_that_say_so_read_the_other_clients(name: str) -> None:
    attack = build("membership", name, "test")
    arrays = exchangeable(6, 40)
    changed = {key: np.array(value) for key, value in arrays.items()}
    for key in PER_CLIENT:
        changed[key][:, [k for k in range(K) if k != TARGET]] *= stream(6, key).uniform(0.5, 2.0)
    changed["head"][:, 0] = np.roll(changed["head"][:, 0], 1, axis=-1)
    same = np.array_equal(scored(name, attack.vantage, changed), scored(name, attack.vantage, arrays))
    assert same != attack.needs_others


@pytest.mark.parametrize("name", names("membership"))
def test_counts_the_rounds_it_read(name: str) -> None:
    attack = attack_of(name, build("membership", name, "test").vantage)
    view = view_of(name, attack.vantage, exchangeable(7, 30))
    attack.score(view, TARGET)
    expected = len(view.rounds(TARGET)) - view.counters.get("rounds_skipped", 0) if attack.multi_round else 1
    assert view.counters["rounds_used"] == expected


def auc_of(name: str, vantage: Vantage, arrays: Arrays, members: int, seed: int = 0) -> float:
    scores = scored(name, vantage, arrays, seed)
    return float(roc_auc_score(np.arange(len(scores)) < members, scores))


@pytest.mark.parametrize(("name", "vantage"), CASES)
def test_null_nothing_is_found_where_nothing_is(name: str, vantage: Vantage) -> None:
    half, nulls = 500, 20
    aucs = [auc_of(name, vantage, exchangeable(100 + seed, 2 * half), half, seed) for seed in range(nulls)]
    # Standard deviation of the AUC of two equal samples (Mann-Whitney).
    deviation = np.sqrt((2 * half + 1) / (12 * half * half))
    assert abs(np.mean(aucs) - 0.5) < 4 * deviation / np.sqrt(nulls)
    assert np.abs(np.array(aucs) - 0.5).max() < 4 * deviation


@pytest.mark.parametrize(("name", "vantage"), CASES)
def test_members_score_higher_where_there_is_a_leak(name: str, vantage: Vantage) -> None:
    half = 500
    arrays = exchangeable(8, 2 * half)
    leak(arrays, TARGET, np.arange(half))
    assert auc_of(name, vantage, arrays, half) > 0.65
