import math
import statistics
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsiege.attacks.membership.fedmia_i import FedMIAI
from fedsiege.attacks.membership.fedmia_ii import FedMIAII
from fedsiege.attacks.membership.likelihood import OneTailedTest, below
from fedsiege.errors import ThreatModelError
from fedsiege.view import ArrayEvidence, View

PHI_OF_ONE = 0.8413447460685429


def fedmia_ii(signals: dict[str, Any], target: int = 0, **fields: Any) -> tuple[NDArray[np.float64], View]:
    view = View(ArrayEvidence(signals), "server")
    return FedMIAII(**fields).score(view, target), view


def repeated(target: float, others: list[float]) -> dict[str, Any]:
    """The same single candidate in two rounds."""
    return {"cosine": np.tile(np.array([target, *others])[None, :, None], (2, 1, 1))}


# Thirteen others, mean .1, deviation .3595: 1.3 lies above .1 + 3 x .3595 = 1.18. Without it: mean 0, deviation .1.
OUTLIER = [0.1] * 6 + [-0.1] * 6 + [1.3]


def test_the_filter_drops_a_high_outlier() -> None:
    scores, view = fedmia_ii(repeated(0.1, OUTLIER))
    np.testing.assert_allclose(scores, PHI_OF_ONE, atol=1e-6)
    assert view.counters["filtered"] == 2
    scores, view = fedmia_ii(repeated(0.1, OUTLIER), sigma_filter=None)
    np.testing.assert_allclose(scores, 0.5, atol=1e-6)
    assert view.counters["filtered"] == 0


def test_the_filter_is_one_sided() -> None:
    signals = repeated(0.1, [-value for value in OUTLIER])
    scores, view = fedmia_ii(signals)
    assert view.counters["filtered"] == 0
    np.testing.assert_array_equal(scores, fedmia_ii(signals, sigma_filter=None)[0])


def test_fedmia_i_filters_low_losses() -> None:
    # Its signal is minus the loss: the outlier is a client whose model fits the candidate too well.
    signals = {"loss": -repeated(0.1, OUTLIER)["cosine"]}
    view = View(ArrayEvidence(signals), "server")
    np.testing.assert_allclose(FedMIAI().score(view, 0), PHI_OF_ONE, atol=1e-6)
    assert view.counters["filtered"] == 2


def test_the_filter_cannot_fire_with_ten_clients() -> None:
    scores, view = fedmia_ii(repeated(0.1, [0.1, -0.1, 0.1, -0.1, 0.1, -0.1, 0.1, -0.1, 1e6]))
    assert view.counters["filtered"] == 0
    assert np.isfinite(scores).all()


def test_the_filter_fires_with_eleven_clients_at_equality_only() -> None:
    # Ten others, mean 1, deviation 3: the highest possible value, 10, lies at the bar itself and is dropped.
    assert below(np.array([[0.0]] * 9 + [[10.0]]), 3.0).sum() == 9
    assert below(np.array([[0.0]] * 8 + [[0.1], [10.0]]), 3.0).all()


def test_where_nothing_is_left_the_minimum_stands_in() -> None:
    assert below(np.full((4, 1), 0.25), 3.0).all()
    for filtered in (3.0, None):
        scores, view = fedmia_ii(repeated(0.2501, [0.25] * 4), sigma_filter=filtered)
        # Mean .25, variance 0 + 1e-8: one deviation is 1e-4.
        np.testing.assert_allclose(scores, PHI_OF_ONE, atol=1e-9)
        assert view.counters["filtered"] == 0


def test_robust_null_by_hand() -> None:
    # Median .2, absolute deviations .2 .1 0 .1 4.8: their median .1, a deviation of .14826.
    signals = repeated(0.34826, [0.0, 0.1, 0.2, 0.3, 5.0])
    np.testing.assert_allclose(fedmia_ii(signals, null="robust")[0], PHI_OF_ONE, atol=1e-6)
    # Even number: median .15, deviations .15 .05 .05 .15, their median .1.
    signals = repeated(0.29826, [0.0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(fedmia_ii(signals, null="robust")[0], PHI_OF_ONE, atol=1e-6)


def test_sum_of_z_does_not_saturate() -> None:
    cosine = np.zeros((2, 4, 2))
    cosine[:, 1:] = np.array([-0.01, 0.0, 0.01])[:, None]
    cosine[:, 0] = [0.3, 0.6]
    saturated, _ = fedmia_ii({"cosine": cosine})
    assert saturated.tolist() == [1.0, 1.0]
    scores, _ = fedmia_ii({"cosine": cosine}, combine="sum_z")
    np.testing.assert_allclose(scores[1], 2 * scores[0])


def naive(
    values: list[list[list[float]]],
    present: list[list[bool]],
    target: int,
    sigma_filter: float | None,
    null: str,
    combine: str,
) -> list[float]:
    """FedMIA one candidate and one round at a time, in plain Python."""
    scores = []
    for j in range(len(values[0][0])):
        rounds = []
        for values_t, present_t in zip(values, present, strict=True):
            others = [v[j] for k, v in enumerate(values_t) if k != target and present_t[k]]
            if not present_t[target] or len(others) < 2:
                continue
            kept = others
            if sigma_filter is not None:
                bar = statistics.fmean(others) + sigma_filter * statistics.pstdev(others)
                kept = [v for v in others if v < bar] or [min(others)]
            if null == "moments":
                centre, variance = statistics.fmean(kept), statistics.pvariance(kept)
            else:
                centre = statistics.median(kept)
                variance = (1.4826 * statistics.median([abs(v - centre) for v in kept])) ** 2
            z = (values_t[target][j] - centre) / math.sqrt(variance + 1e-8)
            rounds.append(z if combine == "sum_z" else 0.5 * math.erfc(-z / math.sqrt(2)))
        scores.append(sum(rounds) if combine == "sum_z" else statistics.fmean(rounds))
    return scores


@pytest.mark.parametrize(
    ("sigma_filter", "null", "combine"),
    list(product((None, 0.2, 3.0), ("moments", "robust"), ("mean_cdf", "sum_z"))),
)
def test_agrees_with_a_naive_loop(
    sigma_filter: float | None, null: Literal["moments", "robust"], combine: Literal["mean_cdf", "sum_z"]
) -> None:
    rng = np.random.default_rng(7)
    rounds, clients, m, target = 5, 15, 40, 3
    loss = rng.gamma(2.0, size=(rounds, clients, m))
    loss[rng.random(loss.shape) < 0.04] = 0.0  # fits so well that minus the loss is an outlier
    loss[0, :, :4] = 0.5  # nothing is below the bar
    loss -= 20.0 * (rng.random(loss.shape) < 0.03)
    present = rng.random((rounds, clients)) < 0.9
    present[:, target] = [True, True, False, True, True]
    present[4] = False
    present[4, [target, 0]] = True  # one other only: skipped
    view = View(ArrayEvidence({"loss": loss, "present": present}), "server")
    attack = FedMIAI(sigma_filter=sigma_filter, null=null, combine=combine)
    expected = naive((-loss).tolist(), present.tolist(), target, sigma_filter, null, combine)
    np.testing.assert_allclose(attack.score(view, target), expected, rtol=1e-9, atol=1e-12)
    assert view.counters["rounds_skipped"] == 1
    assert view.counters["rounds_used"] == 3
    assert (view.counters["filtered"] > 0) == (sigma_filter is not None)


def test_standardise_says_how_many_it_dropped() -> None:
    others = np.array([OUTLIER, [0.0, 0.1] * 6 + [0.05]]).T
    _, dropped = OneTailedTest(3.0, "moments", "sum_z").standardise(np.zeros(2), others)
    assert dropped == 1


def test_an_adversary_without_the_others_updates_is_refused() -> None:
    view = View(ArrayEvidence({"cosine": np.zeros((2, 4, 3))}), "server_aggregate_only")
    with pytest.raises(ThreatModelError, match="server_aggregate_only sees global models only"):
        FedMIAII().score(view, 0)
