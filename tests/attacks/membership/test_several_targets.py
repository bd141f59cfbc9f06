"""Several targets in one pass: the same scores and counts as one at a time, and as the definition."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy.special import ndtr

from fedsiege.attacks.membership import base
from fedsiege.attacks.membership.base import MembershipAttack, series
from fedsiege.attacks.membership.blackbox_loss import BlackboxLoss
from fedsiege.attacks.membership.fedmia_ii import FedMIAII
from fedsiege.attacks.membership.label_only import LabelOnly
from fedsiege.attacks.membership.leave_one_out import leave_one_out
from fedsiege.attacks.membership.likelihood import OneTailedTest
from fedsiege.attacks.membership.loss_series import LossSeries
from fedsiege.errors import InputError
from fedsiege.records import Counters
from fedsiege.view import ArrayEvidence, Values, View

Row = NDArray[np.float64]
Null = Literal["moments", "robust"]

few = st.sampled_from([-8.0, -1.0, 0.0, 0.1, 0.3, 1.0, 10.0])
"""Few enough that columns tie, are constant, and have values at the bar itself."""
cells = st.one_of(few, few, st.floats(-16, 16, width=32, allow_subnormal=False))
columns = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=16), elements=cells)


def one_by_one(test: OneTailedTest, values: Row, rows: Sequence[int]) -> tuple[Row, list[int]]:
    """By the definition: each of the rows against the others."""
    found = [test.standardise(values[row], np.delete(values, row, axis=0)) for row in rows]
    return np.array([z for z, _ in found]), [dropped for _, dropped in found]


def check(test: OneTailedTest, values: Row, rows: Sequence[int]) -> None:
    z, dropped = test.standardise_each(values, np.array(rows))
    expected, expected_dropped = one_by_one(test, values, rows)
    assert dropped.tolist() == expected_dropped
    # The definition measures from zero, where a mean is rounded; the floor below a deviation is 1e-4.
    rounded = 1e-15 * len(values) * np.abs(values).max() / 1e-4
    np.testing.assert_allclose(z, expected, rtol=1e-9, atol=1e-12 + rounded)


@given(
    values=columns,
    sigma=st.sampled_from([None, 1e-3, 0.2, 1.0, 2.0, 3.0]),
    null=st.sampled_from(["moments", "moments", "robust"]),
    constant=st.booleans(),
    chosen=st.randoms(use_true_random=False),
)
def test_every_client_against_the_others_as_by_the_definition(
    values: Row, sigma: float | None, null: Null, constant: bool, chosen: Any
) -> None:
    if constant:
        values[:, 0] = values[0, 0]
    rows = chosen.sample(range(len(values)), chosen.randint(1, len(values)))
    test = OneTailedTest(sigma, null, "sum_z")
    check(test, values, rows)
    together, _ = test.standardise_each(values, np.array(rows))
    for place, row in enumerate(rows):
        alone, _ = test.standardise_each(values, np.array([row]))
        np.testing.assert_array_equal(alone[0], together[place], "who else is asked about makes no difference")


@pytest.mark.parametrize("seed", range(5))
def test_many_clients_with_outliers_on_both_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(120, 50)).astype(np.float32).astype(np.float64)
    values += 30 * (rng.random(values.shape) < 0.02) - 20 * (rng.random(values.shape) < 0.02)
    values[:, :10] *= 1e-6  # the floor rules
    values[:, 10:20] += 5.0
    for sigma in (None, 0.5, 2.0, 3.0):
        check(OneTailedTest(sigma, "moments", "sum_z"), values, range(len(values)))


@pytest.mark.parametrize("far", [1e2, 1e5, -1e5])
def test_no_digits_are_lost_where_the_target_itself_lies_far_away(far: float) -> None:
    values = np.random.default_rng(0).normal(size=(20, 8))
    values[3] += far
    for sigma in (None, 3.0):
        check(OneTailedTest(sigma, "moments", "sum_z"), values, range(20))


@pytest.mark.parametrize("n", [12, 14, 18])
@pytest.mark.parametrize("level", [0.0, 0.1, 0.3])
def test_rounding_at_the_bar_is_that_of_the_definition(n: int, level: float) -> None:
    # A single other value lies sqrt(n - 2) deviations above the mean of the n - 1 others, whatever it is.
    highest = np.arange(1, 40) * 0.1
    values = np.full((n, len(highest)), level)
    values[1] += highest
    check(OneTailedTest(np.sqrt(n - 2), "moments", "sum_z"), values, range(n))
    # Ten others with mean 0 and deviation 3: the highest lies 2 deviations above.
    scales = np.arange(1, 40) * 0.1
    varied = np.outer([6, 3, 3, 0, 0, 0, -3, -3, -3, -3, 1], scales) + level
    check(OneTailedTest(2.0, "moments", "sum_z"), varied, range(11))


def test_digits_that_are_lost_with_what_is_dropped() -> None:
    # For the lowest, the highest is dropped; for all others it is not, since the lowest spreads them.
    values = 1e-5 * np.random.default_rng(0).normal(size=(20, 6))
    values[3], values[4] = 30.0, -100.0
    check(OneTailedTest(3.0, "moments", "sum_z"), values, range(20))


def test_a_bar_below_the_median() -> None:
    check(OneTailedTest(1e-6, "moments", "sum_z"), np.tile([[-10.0], [0.0], [1.0]], 3), range(3))


def test_only_what_sums_cannot_tell_is_computed_one_by_one() -> None:
    plain = np.random.default_rng(0).normal(size=(40, 500))
    rows = np.arange(40)
    assert not leave_one_out(plain, rows, 3.0)[1].doubtful.any()
    lonely = plain.copy()
    lonely[7, 100] = 1e6
    assert np.argwhere(leave_one_out(lonely, rows, 3.0)[1].doubtful).tolist() == [[7, 100]]
    # Ten others, mean 1, deviation 3: for the eleventh client, 10 lies at the bar itself.
    at_the_bar = np.array([[0.0] * 9 + [10.0, 0.5], np.arange(11.0)]).T
    assert leave_one_out(at_the_bar, np.array([10]), 3.0)[1].doubtful.tolist() == [[True, False]]
    assert not leave_one_out(np.full((12, 2), 0.1), np.arange(12), 3.0)[1].doubtful.any(), "all equal, all kept"


# --- whole attacks


def evidence(seed: int, clients: int = 14, rounds: int = 5, m: int = 23) -> dict[str, Any]:
    """Sampled clients (the first three are always there), outliers, ties and a constant column."""
    rng = np.random.default_rng(seed)
    present = rng.random((rounds, clients)) < 0.7
    present[:, :3] = True
    present[0, 3:] = False
    made: dict[str, Any] = {"present": present, "labels": rng.integers(0, 4, m)}
    for name in ("loss", "cosine", "diff"):
        made[name] = rng.normal(size=(rounds, clients, m)).round(1) + 9 * (rng.random((rounds, clients, m)) < 0.05)
        made[name][:, :, 0] = 0.3
        made[name][~present] = np.nan
    made["head"] = rng.normal(size=(rounds, clients, 4))
    return {**made, "norm2": rng.random((rounds, m)), "global_loss": rng.random((rounds, m))}


def fedmia_by_definition(attack: FedMIAII, view: View, target: int) -> Values:
    """FedMIA-II as a loop over rounds, one target at a time."""
    test = OneTailedTest(attack.sigma_filter, attack.null, "sum_z")
    used = series(attack, view, target)
    view.count("filtered", 0)
    rounds = []
    for t in used:
        z, dropped = test.standardise(view.own("cosine", target, t), view.others("cosine", target, t))
        view.count("filtered", dropped)
        rounds.append(z)
    scores: Values = np.sum(rounds, axis=0) if attack.combine == "sum_z" else np.mean(ndtr(rounds), axis=0)
    return scores


@pytest.mark.parametrize("sigma_filter", [None, 1.5, 3.0])
@pytest.mark.parametrize("null", ["moments", "robust"])
@pytest.mark.parametrize("combine", ["mean_cdf", "sum_z"])
def test_fedmia_of_several_targets_is_the_definition(
    sigma_filter: float | None, null: Null, combine: Literal["mean_cdf", "sum_z"]
) -> None:
    attack = FedMIAII(sigma_filter=sigma_filter, null=null, combine=combine)
    filtered = 0.0
    for seed in range(5):
        arrays = evidence(seed)
        targets = [target for target in range(14) if arrays["present"][1:, target].sum() > 1]
        view, plain = View(ArrayEvidence(arrays), "server"), View(ArrayEvidence(arrays), "server")
        scores = attack.score_targets(view, targets)
        expected = [fedmia_by_definition(attack, plain, target) for target in targets]
        np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)
        assert view.counters == plain.counters
        filtered += view.counters["filtered"]
    assert (filtered > 0) == (sigma_filter is not None)


ATTACKS = [
    *(BlackboxLoss(), BlackboxLoss(round=2), BlackboxLoss(vantage="client")),
    *(LossSeries(), LossSeries(vantage="client"), LabelOnly()),
    *(FedMIAII(sigma_filter=1.5), FedMIAII(null="robust")),
]


def alone(attack: MembershipAttack, arrays: dict[str, Any], target: int) -> tuple[Values, Counters]:
    view = View(ArrayEvidence(arrays), attack.vantage)
    return attack.score(view, target), view.counters


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_together_as_alone_to_the_last_bit(attack: MembershipAttack, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = evidence(9)
    targets = [2, *(k for k in range(3, 14) if arrays["present"][1, k] and arrays["present"][:, k].sum() > 1), 0]
    view = View(ArrayEvidence(arrays), attack.vantage)
    scores = attack.score_targets(view, targets)
    total: Counters = {}
    for row, target in zip(scores, targets, strict=True):
        own, counters = alone(attack, arrays, target)
        np.testing.assert_array_equal(row, own)
        assert view.of(target).counters == counters
        total = {name: total.get(name, 0) + n for name, n in counters.items()}
    assert view.counters == total
    assert scores.dtype == np.float64
    monkeypatch.setattr(base, "BLOCK", 40)
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            again = attack.score_targets(View(ArrayEvidence(arrays), attack.vantage), targets)
            np.testing.assert_array_equal(again, scores, "neither blocks nor threads make a difference")
    finally:
        torch.set_num_threads(threads)


def test_a_target_that_the_attack_cannot_serve_is_refused_among_others() -> None:
    arrays = evidence(0)
    arrays["present"][:, 5] = False
    with pytest.raises(InputError, match="client 5 took part in none"):
        LossSeries().score_targets(View(ArrayEvidence(arrays), "server"), [0, 5, 1])


def test_a_round_is_read_once_for_all_targets() -> None:
    reads: list[int] = []

    class Counting(ArrayEvidence):
        def loss(self, t: int) -> Any:
            reads.append(t)
            return super().loss(t)

    arrays = evidence(3)
    LossSeries().score_targets(View(Counting(arrays), "server"), [0, 1, 2])
    assert reads == [0, 1, 2, 3, 4]
    reads.clear()
    BlackboxLoss().score_targets(View(Counting(arrays), "server"), list(range(3)))
    assert reads == [4]


class Halved(LossSeries):
    """A user's change of an attack: it knows nothing of several targets."""

    def score(self, view: View, target: int) -> Values:
        return super().score(view, target) / 2


class Mixin:
    def score(self, view: View, target: int) -> Values:
        return view.own("loss", target, 0)


class Mixed(Mixin, LossSeries):
    pass


class Ragged(LossSeries):
    def score(self, view: View, target: int) -> Values:
        return np.zeros(target)


def test_a_changed_score_is_what_several_targets_get() -> None:
    arrays = evidence(1)
    view = View(ArrayEvidence(arrays), "server")
    whole = LossSeries().score_targets(View(ArrayEvidence(arrays), "server"), [1, 0])
    np.testing.assert_array_equal(Halved().score_targets(view, [1, 0]), whole / 2)
    assert view.counters == {"rounds_used": 10}
    assert view.of(1).counters == {"rounds_used": 5}
    np.testing.assert_array_equal(Mixed().score_targets(view, [1, 0]), arrays["loss"][0, [1, 0]])
    with pytest.raises(InputError, match=r"loss_series: made scores of shapes \(1,\), \(2,\); expected one number"):
        Ragged().score_targets(view, [1, 2])
