from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.attacks.membership.fedmia_ii import FedMIAII
from fedsiege.errors import InputError, ThreatModelError
from fedsiege.registry import name_of
from fedsiege.scoring import score
from fedsiege.view import Values, Vantage, View

# Two rounds, three clients, two candidates.
LOSS = np.array([[[1.0, 4.0], [2.0, 2.0], [4.0, 3.0]], [[0.5, 3.0], [2.5, 3.5], [1.5, 5.5]]])
COSINE = np.array([[[0.4, 0.1], [0.2, 0.0], [0.0, -0.2]], [[0.3, -0.1], [0.1, 0.3], [-0.1, 0.1]]])
SIGNALS = {
    "loss": LOSS,
    "cosine": COSINE,
    "diff": 10 * COSINE,
    "norm2": np.array([[7.0, 8.0], [5.0, 6.0]]),
    "global_loss": np.array([[1.5, 2.5], [1.0, 3.0]]),
    "aggregate_cosine": np.array([[0.5, 0.6], [0.7, 0.4]]),
    "aggregate_diff": np.array([[5.0, 6.0], [7.0, 4.0]]),
}


@pytest.mark.parametrize(
    ("attack", "fields", "expected"),
    [
        ("blackbox_loss", {}, [-0.5, -3.0]),
        ("blackbox_loss", {"round": 1}, [-1.0, -4.0]),
        ("blackbox_loss", {"target": 2}, [-1.5, -5.5]),
        ("blackbox_loss", {"vantage": "client"}, [-1.0, -3.0]),
        ("grad_cosine", {}, [0.3, -0.1]),
        ("grad_cosine", {"round": 1, "target": 1}, [0.2, 0.0]),
        ("grad_cosine", {"vantage": "server_aggregate_only"}, [0.7, 0.4]),
        ("grad_diff", {"round": "last"}, [3.0, -1.0]),
        ("grad_diff", {"vantage": "client", "round": 1}, [5.0, 6.0]),
        ("grad_norm", {}, [-5.0, -6.0]),
        ("grad_norm", {"round": 1}, [-7.0, -8.0]),
        ("loss_series", {}, [-0.75, -3.5]),
        ("loss_series", {"vantage": "server_aggregate_only"}, [-1.25, -2.75]),
        ("avg_cosine", {}, [0.35, 0.0]),
        ("avg_cosine", {"vantage": "client"}, [0.6, 0.5]),
    ],
)
def test_hand_computed(attack: str, fields: dict[str, Any], expected: list[float]) -> None:
    np.testing.assert_allclose(score(attack, SIGNALS, **fields), expected, rtol=1e-12)


def test_fedmia_by_hand() -> None:
    # The others' losses: round 1 has means 3, 2.5 and deviations 1, .5; round 2 means 2, 4.5 and deviations .5, 1.
    z = np.array([[2.0, -3.0], [3.0, 1.5]])
    np.testing.assert_allclose(score("fedmia_i", SIGNALS), norm.cdf(z).mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(score("fedmia_i", SIGNALS, combine="sum_z"), z.sum(axis=0), atol=1e-6)
    # Cosines: means .1, -.1 then 0, .2, every deviation .1; the floor 1e-8 takes 5e-7 off a z-score.
    z = np.array([[3.0, 2.0], [3.0, -3.0]])
    np.testing.assert_allclose(score("fedmia_ii", SIGNALS), norm.cdf(z).mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(score("fedmia_ii", SIGNALS, combine="sum_z"), z.sum(axis=0), atol=1e-5)


def test_an_attack_as_name_mapping_or_object() -> None:
    expected = score("fedmia_ii", SIGNALS, combine="sum_z")
    np.testing.assert_array_equal(score({"name": "fedmia_ii", "combine": "sum_z"}, SIGNALS), expected)
    np.testing.assert_array_equal(score(FedMIAII(combine="sum_z"), SIGNALS), expected)
    with pytest.raises(InputError, match="got fields combine"):
        score(FedMIAII(), SIGNALS, combine="sum_z")


def test_attacks_by_name_as_python_classes() -> None:
    from fedsiege import attacks

    assert attacks.fedmia_ii is FedMIAII
    assert "fedmia_i" in dir(attacks)
    assert name_of(attacks.label_only()) == "label_only"
    with pytest.raises(AttributeError, match="no attack 'fedmia_iii'"):
        _ = attacks.fedmia_iii


@pytest.mark.parametrize(
    ("attack", "fields", "message"),
    [
        ("fedmia_iii", {}, "unknown membership attack 'fedmia_iii'.*did you mean"),
        ("fedmia_ii", {"sigma": 3}, r"score.sigma: fedmia_ii has no such field.*sigma_filter"),
        ("fedmia_ii", {"sigma_filter": -1}, "score.sigma_filter: got -1"),
        ("fedmia_ii", {"vantage": "client"}, "score.vantage: got 'client'"),
        ("grad_cosine", {"round": 3}, "grad_cosine: got round 3; expected a recorded one: 1, 2"),
        ("grad_cosine", {"target": 3}, r"target: got 3; expected a client number, 0\.\.2"),
        ("label_only", {}, r"head \[T, K, C\] is needed and was not given"),
    ],
)
def test_bad_requests(attack: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(attack, SIGNALS, **fields)


def test_bad_shapes_name_the_array() -> None:
    with pytest.raises(InputError, match=r"evidence cosine: got shape \(3, 2\); expected \[T, K, m\]"):
        score("fedmia_ii", {"cosine": COSINE[0]})
    with pytest.raises(InputError, match=r"fedmia_ii: got 2 clients; expected at least 3"):
        score("fedmia_ii", {"cosine": COSINE[:, :2]})
    with pytest.raises(InputError, match=r"avg_cosine: got 1 recorded round.*record_every"):
        score("avg_cosine", {"cosine": COSINE[:1]})


class Cheat(MembershipAttack):
    """Says that it is a client and reads what the server received."""

    title = "Cheat"
    needs = frozenset({"cosine"})
    vantage: Vantage = "client"

    def score(self, view: View, target: int) -> Values:
        own, others = view.own("cosine", target, 0), view.others("cosine", target, 0)
        return np.asarray(own - others.mean(axis=0), dtype=np.float64)


def test_the_threat_model_is_enforced_for_a_users_own_attack() -> None:
    with pytest.raises(ThreatModelError, match="vantage client sees global models only"):
        score(Cheat(), SIGNALS)
