import numpy as np
import pytest

from fedsiege.attacks.membership.base import (
    MembershipAttack,
    check_plan,
    means_over_rounds,
    one_round,
    resolve_vantage,
    series,
    vantages,
)
from fedsiege.attacks.membership.blackbox_loss import BlackboxLoss
from fedsiege.attacks.membership.fedmia_ii import FedMIAII
from fedsiege.attacks.membership.grad_cosine import GradCosine
from fedsiege.attacks.membership.loss_series import LossSeries
from fedsiege.errors import InputError, ThreatModelError
from fedsiege.registry import build, names
from fedsiege.view import ArrayEvidence, Vantage, View

T, K, M = 4, 5, 3
ROUNDS = (10, 20, 30, 40)
ON_MODELS_ALONE = {
    *("blackbox_loss", "fedpoisonmia", "fta_c", "fta_l", "grad_norm"),
    *("lira", "loss_series", "rmia", "seqmia"),
}


def view_of(present: np.ndarray, vantage: Vantage = "server") -> View:
    signals = {"loss": np.arange(T * K * M, dtype=float).reshape(T, K, M), "present": present}
    return View(ArrayEvidence({**signals, "cosine": signals["loss"] / 100}, rounds=ROUNDS), vantage)


@pytest.fixture
def sampled() -> np.ndarray:
    """Client 0: rounds 10, 20, 30, in 30 with one other only. Client 1: round 10. Client 2: never."""
    return np.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1], [1, 0, 0, 1, 0], [0, 0, 0, 1, 1]], dtype=bool)


@pytest.mark.parametrize("name", names("membership"))
def test_without_secure_aggregation_the_attacks_own_vantage(name: str) -> None:
    for vantage in vantages(build("membership", name, "test")):
        attack = build("membership", {"name": name, "vantage": vantage}, "test")
        assert resolve_vantage(attack, secure_aggregation=False) == vantage


@pytest.mark.parametrize("name", names("membership"))
def test_secure_aggregation_leaves_the_global_model_or_refuses_by_name(name: str) -> None:
    attack: MembershipAttack = build("membership", name, "test")
    assert attack.single_update == (name not in ON_MODELS_ALONE)
    if name in ON_MODELS_ALONE:
        at_global = "server_aggregate_only" if attack.vantage == "server" else attack.vantage
        assert resolve_vantage(attack, secure_aggregation=True) == at_global
        return
    instead = ", ".join(sorted(ON_MODELS_ALONE))
    with pytest.raises(ThreatModelError, match=rf"attack {name}: .*{instead}") as caught:
        resolve_vantage(attack, secure_aggregation=True)
    offered = "set its vantage to server_aggregate_only" in str(caught.value)
    assert offered == ("server_aggregate_only" in vantages(attack))


def test_a_vantage_on_global_models_survives_secure_aggregation() -> None:
    assert resolve_vantage(GradCosine(vantage="server_aggregate_only"), True) == "server_aggregate_only"
    assert resolve_vantage(GradCosine(vantage="client"), True) == "client"
    assert resolve_vantage(BlackboxLoss(vantage="client"), True) == "client"


def test_a_plan_is_checked_before_training() -> None:
    check_plan(FedMIAII(), rounds=(10, 20), clients=3)
    check_plan(GradCosine(round=20), rounds=(10, 20), clients=1)
    with pytest.raises(
        InputError, match=r"fedmia_ii: got 2 clients; expected at least 3 \(the target and 2 others"
    ):
        check_plan(FedMIAII(), rounds=(10, 20), clients=2)
    with pytest.raises(InputError, match=r"loss_series: got 1 recorded .*at least 2: lower record_every"):
        check_plan(LossSeries(), rounds=(20,), clients=10)
    with pytest.raises(InputError, match=r"grad_cosine: got round 15; expected a recorded one: 10, 20"):
        check_plan(GradCosine(round=15), rounds=(10, 20), clients=10)


def test_series_skips_and_counts_rounds_without_two_others(sampled: np.ndarray) -> None:
    view = view_of(sampled)
    assert series(FedMIAII(), view, 0) == [0, 1]
    assert view.counters == {"rounds_skipped": 1, "rounds_used": 2}
    view = view_of(sampled)
    assert series(LossSeries(), view, 0) == [0, 1, 2]
    assert view.counters == {"rounds_used": 3}


def test_series_refuses_a_target_with_too_few_rounds(sampled: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"client 1 took part in 1 of the recorded rounds 10, 20, 30, 40"):
        series(LossSeries(), view_of(sampled), 1)
    sampled[1, 4] = False
    with pytest.raises(InputError, match=r"client 0 took part with 2 others in 1 of the recorded rounds"):
        series(FedMIAII(), view_of(sampled), 0)
    with pytest.raises(InputError, match=r"client 2 took part in none"):
        series(LossSeries(), view_of(sampled), 2)


def test_one_round_is_the_targets_last_or_the_one_named(sampled: np.ndarray) -> None:
    view = view_of(sampled)
    assert one_round(GradCosine(), view, 0, "last") == 2
    assert one_round(GradCosine(), view, 3, "last") == 3
    assert one_round(GradCosine(round=20), view, 0, 20) == 1
    assert view.counters == {"rounds_used": 3}
    attack = GradCosine(round=40)
    with pytest.raises(InputError, match=r"client 0 took no part in round 40; recorded rounds with it: 10, 20, 30"):
        one_round(attack, view, 0, attack.round)
    assert one_round(attack, view_of(sampled, "server_aggregate_only"), 0, attack.round) == 3


def test_mean_over_the_targets_own_rounds(sampled: np.ndarray) -> None:
    # Client 0's losses in rounds 10, 20, 30 start at 0, 15 and 30.
    np.testing.assert_allclose(
        means_over_rounds(LossSeries(), view_of(sampled), [0], "loss")[0], [15.0, 16.0, 17.0]
    )
