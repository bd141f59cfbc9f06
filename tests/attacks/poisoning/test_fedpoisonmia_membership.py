"""The decision after FedPoisonMIA: by hand, with ties, over the last rounds, and where nobody is a member."""

from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fedsiege.attacks.membership.base import MembershipAttack, recordings, resolve_vantage
from fedsiege.attacks.poisoning.fedpoisonmia import PoisonedConfidence
from fedsiege.attacks.poisoning.probing import correct
from fedsiege.errors import InputError, ThreatModelError
from fedsiege.registry import build
from fedsiege.view import ArrayEvidence, Vantage, View

Array = NDArray[np.float64]

# Four examples and three models: the label's probability, and the largest one.
OWN = np.array([[0.9, 0.4, 0.2, 0.5], [0.8, 0.6, 0.1, 0.5], [0.7, 0.3, 0.3, 0.5]])
TOP = np.array([[0.9, 0.5, 0.7, 0.5], [0.8, 0.6, 0.7, 0.5], [0.7, 0.5, 0.3, 0.5]])


def attack_of(**fields: Any) -> MembershipAttack:
    made: MembershipAttack = build("membership", {"name": "fedpoisonmia", **fields}, "attacks")
    return made


def view_of(own: Array = OWN, top: Array = TOP, vantage: Vantage = "malicious_clients", clients: int = 3) -> View:
    """What is seen of global models; single clients' columns are there, and nobody may look at them."""
    arrays = {
        "global_loss": -np.log(own).astype(np.float32),
        "global_top": top.astype(np.float32),
        "labels": np.zeros(own.shape[1], dtype=np.int64),
        "loss": np.full((len(own), clients, own.shape[1]), np.nan),
    }
    return View(ArrayEvidence(arrays, rounds=range(2, 2 + 3 * len(own), 3)), vantage)


@pytest.mark.parametrize(
    ("rule", "last", "expected"),
    [
        ("confidence", None, [0.8, 1.3 / 3, 0.2, 0.5]),
        ("confidence", 3, [0.8, 1.3 / 3, 0.2, 0.5]),
        ("confidence", 2, [0.75, 0.45, 0.2, 0.5]),
        ("confidence", 1, [0.7, 0.3, 0.3, 0.5]),
        ("correct", None, [1, 1 / 3, 1 / 3, 1]),
        ("correct", 20, [1, 1 / 3, 1 / 3, 1]),
        ("correct", 2, [1, 0.5, 0.5, 1]),
        ("correct", 1, [1, 0, 1, 1]),
    ],
)
def test_the_scores_are_those_by_hand(rule: str, last: int | None, expected: list[float]) -> None:
    view = view_of()
    scores = attack_of(rule=rule, last=last).score_targets(view, [1, 2])
    assert scores.shape == (2, 4)
    np.testing.assert_allclose(scores, [expected, expected], rtol=1e-6)
    counted = {None: (8, 3), 20: (8, 3), 3: (8, 3), 2: (6, 2), 1: (3, 1)}[last]
    assert view.of(1).counters == {"right_answers": counted[0], "rounds_used": counted[1]}
    assert view.counters == {"right_answers": 2 * counted[0], "rounds_used": 2 * counted[1]}


def test_member_if_correct_has_the_accuracy_by_hand() -> None:
    # Members are the first and the third: of four answers, three are what they should be in the last round.
    called = attack_of(rule="correct", last=1).score(view_of(), 0) > 0.5
    assert (called == np.array([True, False, True, False])).mean() == 0.75


def test_by_default_the_last_twenty_rounds_count() -> None:
    rng = np.random.default_rng(0)
    own = rng.uniform(0.1, 0.9, size=(30, 5))
    view = view_of(own, np.maximum(own, 0.5))
    assert isinstance(attack_of(), PoisonedConfidence)
    np.testing.assert_allclose(attack_of().score(view, 0), own[10:].mean(0), rtol=1e-6)
    assert view.counters["rounds_used"] == 20
    assert view.rounds_read == set(range(10, 30))


def test_a_tie_counts_as_right_and_rounding_breaks_none() -> None:
    probability = np.linspace(0.01, 1.0, 500)
    loss, top = -np.log(probability).astype(np.float32), probability.astype(np.float32)
    assert correct(loss, top).all()
    assert not correct(loss, top * np.float32(1.001)).any()
    assert correct(np.array([0.0, 50.0]), np.array([1.0, 1.0])).tolist() == [True, False]
    # Logits of a hundred: their float32 loss is off by some 1e-6.
    assert correct(np.array([np.log(2) + 5e-6]), np.array([0.5])).all()
    assert correct(np.zeros((2, 3)), np.ones((2, 3))).shape == (2, 3)


def test_sure_models_leave_no_score_that_is_not_a_number() -> None:
    own = np.array([[1e-38, 1.0], [1e-38, 1.0]])
    for rule in ("confidence", "correct"):
        scores = attack_of(rule=rule).score(view_of(own, np.ones_like(own)), 0)
        np.testing.assert_allclose(scores, [0, 1], atol=1e-12)


def test_it_reads_global_models_alone_from_wherever_it_sits() -> None:
    scores = [attack_of(vantage=v).score(view_of(vantage=v), 0) for v in ("malicious_clients", "client")]
    np.testing.assert_array_equal(scores[0], scores[1])
    attack = attack_of()
    assert attack.vantage == "malicious_clients"
    assert resolve_vantage(attack, secure_aggregation=True) == "malicious_clients"
    assert recordings([attack]) == {"outputs"}
    with pytest.raises(ThreatModelError):
        view_of().everyone("loss", 0)


def test_other_vantages_and_too_few_rounds_are_refused() -> None:
    assert "server" in get_args(Vantage)
    with pytest.raises(InputError, match=r"attacks\.vantage: got 'server'"):
        attack_of(vantage="server")
    with pytest.raises(InputError, match=r"attacks\.last: got 0"):
        attack_of(last=0)
    with pytest.raises(InputError, match=r"attacks\.rule: got 'best'"):
        attack_of(rule="best")
    with pytest.raises(InputError, match="got 1 recorded round"):
        attack_of().score(view_of(OWN[:1], TOP[:1]), 0)


@pytest.mark.parametrize("rule", ["confidence", "correct"])
def test_where_nobody_is_a_member_nothing_is_found(rule: str) -> None:
    half, found = 400, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        hard = rng.normal(size=2 * half)
        own = 1 / (1 + np.exp(hard + rng.normal(size=(6, 2 * half))))
        scores = attack_of(rule=rule).score(view_of(own, np.maximum(own, 1 - own)), 0)
        found.append(roc_auc_score(np.arange(2 * half) < half, scores))
    # Standard deviation of the AUC of two equal samples (Mann-Whitney); ties make it smaller.
    deviation = np.sqrt((2 * half + 1) / (12 * half * half))
    assert abs(np.mean(found) - 0.5) < 4 * deviation / np.sqrt(len(found))
    assert np.abs(np.array(found) - 0.5).max() < 4 * deviation


@pytest.mark.parametrize("rule", ["confidence", "correct"])
def test_members_that_stay_right_are_found(rule: str) -> None:
    rng = np.random.default_rng(1)
    members = np.arange(400) < 200
    own = 1 / (1 + np.exp(rng.normal(size=(6, 400)) - 2.0 * members))
    scores = attack_of(rule=rule).score(view_of(own, np.maximum(own, 1 - own)), 0)
    assert roc_auc_score(members, scores) > 0.9
