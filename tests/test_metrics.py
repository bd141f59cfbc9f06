"""The metrics against slow definitions, other libraries, published code's numbers and simulations."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from fedsiege import metrics
from fedsiege.errors import InputError
from fedsiege.records import Estimate

Row = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Row]

GOLDEN = ("scores_K10_iid", "scores_K10_noniid", "micro_K10_iid_scores", "micro_K10_noniid_scores")

tied_scores = st.lists(st.integers(-9, 9), min_size=1, max_size=40).map(lambda values: np.array(values, float))


def normal(rng: np.random.Generator, n: int) -> Row:
    return rng.normal(size=n)


def coarse(rng: np.random.Generator, n: int) -> Row:
    return rng.normal(size=n).round(1)


def two_sides(seed: int, m: int, n: int, shift: float, decimals: int = 15) -> tuple[Row, Row]:
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, m).round(decimals), rng.normal(0, 1, n).round(decimals)


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


# --- AUC and its interval


@given(tied_scores, tied_scores)
def test_auc_is_the_share_of_won_pairs(members: Row, nonmembers: Row) -> None:
    wins = [(m > n) + (m == n) / 2 for m, n in itertools.product(members, nonmembers)]
    found = metrics.audit(members, nonmembers).auc
    assert found.value == pytest.approx(np.mean(wins), abs=1e-12)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.low < found.high
    assert found.n == len(members) + len(nonmembers)


@pytest.mark.parametrize("decimals", [15, 1])
def test_auc_equals_scikit_learn(decimals: int) -> None:
    members, nonmembers = two_sides(0, 700, 1300, 0.4, decimals)
    truth = np.r_[np.ones(700), np.zeros(1300)]
    expected = sklearn.metrics.roc_auc_score(truth, np.r_[members, nonmembers])
    assert metrics.audit(members, nonmembers).auc.value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("decimals", [15, 0])
def test_auc_interval_is_delongs(decimals: int) -> None:
    members, nonmembers = two_sides(1, 40, 70, 0.8, decimals)
    kernel = (members[:, None] > nonmembers) + (members[:, None] == nonmembers) / 2
    auc = kernel.mean()
    variance = np.cov(kernel.mean(axis=1)) / 40 + np.cov(kernel.mean(axis=0)) / 70
    reach = stats.norm.ppf(0.95) * math.sqrt(variance) / (auc * (1 - auc))
    found = metrics.audit(members, nonmembers, level=0.9).auc
    assert found.low == pytest.approx(special.expit(special.logit(auc) - reach), abs=1e-12)
    assert found.high == pytest.approx(special.expit(special.logit(auc) + reach), abs=1e-12)


@pytest.mark.parametrize(("m", "n", "shift"), [(30, 30, 0.0), (40, 200, 1.0), (30, 30, 3.0)])
def test_auc_interval_covers_the_truth_as_often_as_it_says(m: int, n: int, shift: float) -> None:
    truth = float(stats.norm.cdf(shift / math.sqrt(2)))
    hits = [covers(metrics.audit(*two_sides(seed, m, n, shift)).auc, truth) for seed in range(600)]
    assert 0.93 <= np.mean(hits) <= 0.985


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 50), (30, 20)])
def test_perfect_separation_leaves_the_bound_of_disjoint_pairs(m: int, n: int) -> None:
    found = metrics.audit(np.arange(m) + 100.0, np.arange(n)).auc
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low ** min(m, n) == pytest.approx(0.025)  # so many won pairs have this chance at the bound
    reverse = metrics.audit(np.arange(n), np.arange(m) + 100.0).auc
    assert (reverse.value, reverse.low) == (0.0, 0.0)
    assert reverse.high == pytest.approx(1 - found.low)


def test_equal_scores_know_nothing() -> None:
    found = metrics.audit(np.ones(50), np.ones(60))
    assert found.auc.value == found.balanced_accuracy.value == 0.5
    assert found.auc.low < 0.4
    assert found.auc.high > 0.6
    assert [tpr.value for tpr in found.tpr_at_fpr.values()] == [0, 0, 0, 0]
    assert found.tpr_at_fpr[0.1].threshold == math.inf


# --- The curve and the rates on it


@pytest.mark.parametrize("decimals", [15, 1, 0])
def test_curve_and_corners_are_scikit_learns(decimals: int) -> None:
    members, nonmembers = two_sides(2, 150, 250, 0.5, decimals)
    truth, scores = np.r_[np.ones(150), np.zeros(250)], np.r_[members, nonmembers]
    roc = metrics.audit(members, nonmembers).roc
    for drop, rows in ((False, slice(None)), (True, roc.corners())):
        fpr, tpr, thresholds = sklearn.metrics.roc_curve(truth, scores, drop_intermediate=drop)
        np.testing.assert_allclose(roc.fpr[rows], fpr, atol=1e-15)
        np.testing.assert_allclose(roc.tpr[rows], tpr, atol=1e-15)
        np.testing.assert_array_equal(roc.thresholds[rows], thresholds)


@given(tied_scores, tied_scores)
def test_at_most_is_the_best_of_all_thresholds(members: Row, nonmembers: Row) -> None:
    for fpr, found in metrics.audit(members, nonmembers, fprs=(0.3, 0.1, 0.01)).tpr_at_fpr.items():
        best = 0.0
        for threshold in [*members, *nonmembers]:
            if np.mean(nonmembers >= threshold) <= fpr:
                best = max(best, float(np.mean(members >= threshold)))
        assert found.value == pytest.approx(best)
        assert found.false_positives == np.count_nonzero(nonmembers >= found.threshold)
        assert found.value == pytest.approx(np.mean(members >= found.threshold))
        assert (found.low, found.high) == metrics.clopper_pearson(round(best * len(members)), len(members))


@given(tied_scores, tied_scores)
def test_strict_is_scikit_learns_last_point_below(members: Row, nonmembers: Row) -> None:
    truth = np.r_[np.ones(len(members)), np.zeros(len(nonmembers))]
    curve = sklearn.metrics.roc_curve(truth, np.r_[members, nonmembers])
    for fpr, found in metrics.audit(members, nonmembers, "strict", (1, 0.5, 0.2, 0.1)).tpr_at_fpr.items():
        assert found.value == pytest.approx(curve[1][curve[0] < fpr][-1])


def test_conventions_differ_at_an_exact_rate() -> None:
    members, nonmembers = np.array([9.0, 7.5, 6.5, 1.5]), np.arange(10.0) - 1  # the top non-members are 8 and 7
    at_most = metrics.audit(members, nonmembers, "at_most", (0.1, 0.2)).tpr_at_fpr
    strict = metrics.audit(members, nonmembers, "strict", (0.1, 0.2)).tpr_at_fpr
    assert [(t.value, t.false_positives, t.threshold) for t in at_most.values()] == [(0.5, 1, 7.5), (0.75, 2, 6.5)]
    assert [(t.value, t.false_positives, t.threshold) for t in strict.values()] == [(0.25, 0, 9.0), (0.5, 1, 7.5)]


def test_a_rate_counts_as_written_not_as_rounded() -> None:
    nonmembers = np.arange(100.0)
    found = metrics.audit(np.array([70.5, 71.5]), nonmembers, fprs=(0.29,)).tpr_at_fpr[0.29]  # 0.29 * 100 < 29
    assert (found.value, found.false_positives) == (1.0, 29)
    rate = 10 / 77  # * 77 < 10
    assert metrics.audit(nonmembers, nonmembers[:77], fprs=(rate,)).tpr_at_fpr[rate].warning is None


def test_tpr_interval_covers_the_tpr_of_the_threshold_used() -> None:
    hits = []
    for seed in range(500):
        members, nonmembers = two_sides(seed, 80, 300, 1.0)
        truth = stats.norm.sf(np.sort(nonmembers)[-31] - 1.0)  # 30 of 300 may pass, the next one may not
        hits.append(covers(metrics.audit(members, nonmembers).tpr_at_fpr[0.1], float(truth)))
    assert 0.94 <= np.mean(hits) <= 0.99


@pytest.mark.parametrize(
    ("n", "fpr", "convention", "warning"),
    [
        (10_000, 0.001, "at_most", None),
        (10_001, 0.001, "strict", None),
        (10_000, 0.001, "strict", "0.1 % FPR rests on at most 9 of 10,000 non-members; 10,001 would allow 10"),
        (150, 0.01, "at_most", "1 % FPR rests on at most 1 of 150 non-members; 1,000 would allow 10"),
        (
            99,
            0.01,
            "at_most",
            "99 non-members are too few for 1 % FPR: no false positive is allowed; 1,000 would allow 10",
        ),
    ],
)
def test_too_few_nonmembers_are_said(n: int, fpr: float, convention: Any, warning: str | None) -> None:
    found = metrics.audit(np.arange(5.0), np.arange(n) / n, convention, (fpr,)).tpr_at_fpr[fpr]
    assert found.warning == warning


def test_tied_nonmembers_are_said() -> None:
    nonmembers = np.r_[np.full(200, 1.0), np.zeros(800)]
    found = metrics.audit(np.ones(10), nonmembers).tpr_at_fpr[0.1]
    assert found.warning == "non-members tie: 10 % FPR allows 100 false positives, and no threshold spends over 0"


def test_thinned_curve_keeps_the_low_end() -> None:
    roc = metrics.audit(*two_sides(3, 20_000, 30_000, 0.5)).roc
    fpr, tpr = roc.thin(200)
    assert len(fpr) <= 200 < len(roc.fpr)
    points = set(zip(roc.fpr.tolist(), roc.tpr.tolist(), strict=True))
    kept = list(zip(fpr.tolist(), tpr.tolist(), strict=True))
    assert set(kept) <= points
    assert (kept[0], kept[-1]) == ((0, 0), (1, 1))
    assert set(np.arange(6) / 30_000) <= set(fpr)
    assert np.diff(np.log(fpr[fpr > 0])).max() < 0.7  # from 1 to 2 false positives
    whole = metrics.audit(np.arange(5.0), np.arange(5.0)).roc
    np.testing.assert_array_equal(whole.thin()[0], whole.fpr)


def test_log_area_by_hand() -> None:
    half = 1 + math.log10(0.5) / 5
    assert metrics.audit([3, 1], [2, 0]).log_auc == pytest.approx(half * half + (1 - half))
    assert metrics.audit([1], [0]).log_auc == 1
    assert metrics.audit([0], [1]).log_auc == 0
    ties = metrics.audit(
        [9, 3, 2, 1], [3, 2, 1]
    ).log_auc  # one line from (0, 1/4) to (1, 1): equal steps are dropped
    assert ties == pytest.approx((1 + math.log10(0.25) / 5 + 1) / 2)


def test_balanced_accuracy_pays_for_its_choice_of_threshold() -> None:
    members, nonmembers = two_sides(4, 30, 50, 1.0, 1)
    best = max((np.mean(members >= t) + np.mean(nonmembers < t)) / 2 for t in [*members, *nonmembers, math.inf])
    assert metrics.audit(members, nonmembers).balanced_accuracy.value == pytest.approx(best)
    nothing = [metrics.audit(*two_sides(seed, 100, 100, 0.0)).balanced_accuracy for seed in range(300)]
    assert np.mean([one.value for one in nothing]) > 0.53
    assert np.mean([covers(one, 0.5) for one in nothing]) >= 0.95
    something = [metrics.audit(*two_sides(seed, 100, 100, 2.0)).balanced_accuracy for seed in range(300)]
    assert np.mean([covers(one, float(stats.norm.cdf(1))) for one in something]) >= 0.95


# --- Clopper-Pearson


@pytest.mark.parametrize("n", [1, 7, 40])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_clopper_pearson_inverts_the_binomial_tails(n: int, level: float) -> None:
    for k in range(n + 1):
        low, high = metrics.clopper_pearson(k, n, level)
        assert low <= k / n <= high
        assert k == 0 or stats.binom.sf(k - 1, n, low) == pytest.approx((1 - level) / 2)
        assert k == n or stats.binom.cdf(k, n, high) == pytest.approx((1 - level) / 2)
    assert metrics.clopper_pearson(0, n, level)[0] == 0
    assert metrics.clopper_pearson(n, n, level)[1] == 1


# --- Symmetries


@given(tied_scores, tied_scores, st.sampled_from([np.exp, np.arctan, lambda x: 7 * x - 3, lambda x: x**3]))
def test_only_the_order_of_scores_matters(members: Row, nonmembers: Row, rise: Callable[[Row], Row]) -> None:
    before, after = metrics.audit(members, nonmembers).as_dict(), metrics.audit(rise(members), rise(nonmembers))
    assert after.as_dict() == before


@given(tied_scores, tied_scores)
def test_swapping_the_sides_mirrors_the_auc(members: Row, nonmembers: Row) -> None:
    there, back = metrics.audit(members, nonmembers).auc, metrics.audit(nonmembers, members).auc
    assert back.value == pytest.approx(1 - there.value, abs=1e-12)
    assert (back.low, back.high) == pytest.approx((1 - there.high, 1 - there.low), abs=1e-9)


# --- Published code's numbers


@pytest.mark.parametrize("file", GOLDEN)
def test_published_code_gives_the_same_figures(shared_golden: Path, file: str) -> None:
    stored = np.load(shared_golden / f"{file}.npz", allow_pickle=False)
    rates = {"10": 10.0, "1": 1.0, "0.1": 0.1, "0.02": 0.02, "0.01": 0.01, "0.001": 0.001, "0.0001": 0.0001}
    entries = list(_golden_entries(list(stored.files)))
    assert len(entries) >= 31
    for members, nonmembers, figure in entries:
        found = metrics.audit(stored[members], stored[nonmembers], "strict", tuple(rates.values()))
        figures = {"auc": found.auc.value, "log_auc": found.log_auc}
        figures |= {f"tpr_at_{text}": found.tpr_at_fpr[rate].value for text, rate in rates.items()}
        if "_cdf_" in members:
            del figures["log_auc"]  # not stored for one round's FedMIA
        expected = {name: float(stored[figure.replace("FIGURE", name)]) for name in figures}
        assert figures == pytest.approx(expected, abs=1e-6), figure


def _golden_entries(keys: list[str]) -> Iterator[tuple[str, str, str]]:
    """Where the member scores, the non-member scores and (with the figure's name for FIGURE) their figures are."""
    for key in keys:
        if key.endswith("/member"):
            yield key, key.replace("/member", "/nonmember"), key.replace("/member", "/FIGURE")
        if "_cdf_member_" in key:
            yield key, key.replace("_member_", "_nonmember_"), key.replace("cdf_member", "FIGURE")


# --- Several targets


def federation(seed: int, targets: int, spread: float = 0.6) -> list[tuple[Row, Row]]:
    rng = np.random.default_rng(seed)
    shifts = rng.normal(0.8, spread, targets)
    return [(rng.normal(shift, 1, 40), rng.normal(0, 1, 70)) for shift in shifts]


def pool(pairs: list[tuple[Row, Row]]) -> tuple[Row, Row]:
    return np.concatenate([m for m, _ in pairs]), np.concatenate([n for _, n in pairs])


def test_one_target_is_its_own_pool() -> None:
    pairs = federation(0, 1)
    found = metrics.over_targets(pairs)
    assert found.pooled == found.targets[0] == metrics.audit(*pairs[0])
    assert (found.worst, found.mean_auc) == (0, found.pooled.auc.value)


def test_pool_and_means() -> None:
    pairs = [*federation(1, 3), (np.arange(9.0), np.arange(30.0))]
    found = metrics.over_targets(pairs, fprs=(0.1,))
    together = metrics.audit(*pool(pairs), fprs=(0.1,))
    assert found.pooled.tpr_at_fpr == together.tpr_at_fpr
    assert found.pooled.auc.value == pytest.approx(together.auc.value)
    assert found.mean_auc == pytest.approx(np.mean([metrics.audit(*pair).auc.value for pair in pairs]))
    assert found.mean_tpr_at_fpr[0.1] == pytest.approx(np.mean([a.tpr_at_fpr[0.1].value for a in found.targets]))


def test_pooled_interval_by_targets_placements() -> None:
    pairs = [(m, n[: 20 + 9 * i]) for i, (m, n) in enumerate(federation(3, 4))]
    members, nonmembers = pool(pairs)
    auc = np.mean(members[:, None] > nonmembers)
    influence = [
        sum(np.mean(nonmembers < x) - auc for x in m) / len(members)
        + sum(np.mean(members > x) - auc for x in n) / len(nonmembers)
        for m, n in pairs
    ]
    reach = stats.t.ppf(0.975, 3) * math.sqrt(np.sum(np.square(influence)) * 4 / 3) / (auc * (1 - auc))
    found = metrics.over_targets(pairs).pooled.auc
    assert special.logit([found.low, found.high]) == pytest.approx(special.logit(auc) + np.array([-reach, reach]))


def test_pooled_interval_is_that_of_a_bootstrap_over_targets() -> None:
    pairs = federation(2, 60)
    found = metrics.over_targets(pairs, fprs=()).pooled.auc
    rng = np.random.default_rng(5)
    aucs = []
    for _ in range(400):
        members, nonmembers = pool([pairs[i] for i in rng.integers(0, 60, 60)])
        aucs.append(metrics.audit(members, nonmembers, fprs=()).auc.value)
    spread = np.std(special.logit(aucs)) * stats.t.ppf(0.975, 59)
    assert (special.logit(found.high) - special.logit(found.low)) / 2 == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize("targets", [2, 5, 12])
def test_pooled_interval_covers_other_targets(targets: int) -> None:
    truth = float(stats.norm.cdf(0.8 / math.sqrt(2 + 0.6**2)))
    hits = [
        covers(metrics.over_targets(federation(seed, targets), fprs=()).pooled.auc, truth) for seed in range(300)
    ]
    assert 0.915 <= np.mean(hits) <= 0.98  # DeLong's own interval covers it about half of the time


def test_worst_target_is_the_worst_that_can_be_measured() -> None:
    nonmembers = np.arange(1000.0)

    def target(*found: int) -> tuple[Row, Row]:  # members above every, above 990, above 900 and above half
        return np.repeat([2000.0, 990.5, 900.5, 500.5], found), nonmembers

    high_auc, at_1_percent, at_0 = target(0, 0, 50, 50), target(0, 30, 0, 70), target(20, 0, 0, 80)
    fprs = (0.1, 0.01, 0.001)
    assert metrics.over_targets([high_auc, at_1_percent, at_0], fprs=fprs).worst == 1
    assert metrics.over_targets([high_auc, at_1_percent, at_0], fprs=(0.1,)).worst == 0
    assert metrics.over_targets([at_0, high_auc], fprs=(0.001,)).worst == 1  # too few non-members: the AUC decides
    assert metrics.over_targets([at_0, at_1_percent, at_1_percent], fprs=fprs).worst == 1
    assert (
        metrics.over_targets([high_auc, at_1_percent], "strict", (0.1, 0.01)).worst == 0
    )  # 9 of 1000 are below 1 %


# --- The null test


def nulls(seed: int, draw: Draw, count: int = 20, m: int = 500, n: int = 500) -> list[tuple[Row, Row]]:
    rng = np.random.default_rng([7, seed])
    return [(draw(rng, m), draw(rng, n)) for _ in range(count)]


@pytest.mark.parametrize("draw", [normal, coarse])
@pytest.mark.parametrize(("m", "n"), [(500, 500), (600, 777)])
def test_honest_nulls_pass_nearly_always(draw: Draw, m: int, n: int) -> None:
    tests = [metrics.null_test(nulls(seed, draw, 20, m, n)) for seed in range(100)]
    assert sum(test.passed for test in tests) >= 88
    assert np.mean([covers(test.tpr_at_1pct, 0.01) for test in tests]) >= 0.91
    assert np.mean([test.tpr_at_1pct.value for test in tests]) == pytest.approx(0.01, abs=5e-4)
    assert np.mean([test.coverage for test in tests]) == pytest.approx(0.95, abs=0.015)
    assert np.mean([covers(test.mean_auc, 0.5) for test in tests]) >= 0.89


def test_ties_count_as_their_mean_over_all_orders() -> None:
    tied = nulls(0, lambda rng, n: rng.integers(0, 12, n).astype(float), 20, 60, 130)
    rng = np.random.default_rng(0)
    broken = [
        metrics.null_test([(m + rng.random(60) / 2, n + rng.random(130) / 2) for m, n in tied]).tpr_at_1pct.value
        for _ in range(400)
    ]
    assert metrics.null_test(tied).tpr_at_1pct.value == pytest.approx(np.mean(broken), abs=6e-4)


def test_leakage_fails() -> None:
    found = metrics.null_test([(m + 0.15, n) for m, n in nulls(0, normal)])
    assert not found.passed
    assert "mean AUC is 0.5" in found.reason
    assert "not within 0.5 +- 0.01" in found.reason


def test_redrawing_nonmembers_every_round_fails() -> None:
    """Nobody is a member. Means over one sample against means over a new sample a round, as public code has it."""
    rng = np.random.default_rng(0)
    rounds = 30
    pairs = []
    for _ in range(20):
        one_sample = rng.normal(size=500) + rng.normal(size=(rounds, 500)).mean(axis=0)
        many_samples = (rng.normal(size=(rounds, 500)) + rng.normal(size=(rounds, 500))).mean(axis=0)
        pairs.append((one_sample, many_samples))
    found = metrics.null_test(pairs)
    assert not found.passed
    assert found.tpr_at_1pct.low > 0.2
    assert "which leaves 1 % out" in found.reason


def test_spread_out_aucs_fail_by_coverage_alone() -> None:
    pairs = [(m + (-1) ** i * 0.3, n) for i, (m, n) in enumerate(nulls(1, coarse))]
    assert metrics.null_test(pairs).reason.startswith("only 0 % of the AUC intervals contain 0.5")


def test_constant_scores_are_no_evidence() -> None:
    constant = (np.ones(500), np.ones(500))
    found = metrics.null_test([constant] * 20)
    assert not found.passed
    assert found.reason.startswith("no evidence: 0 nulls tell anything (20 of 20 have only equal scores)")
    assert found.as_dict()["mean_auc"] == {"value": None, "low": None, "high": None, "n": 0}
    honest = nulls(3, normal)
    assert metrics.null_test(honest).passed
    assert metrics.null_test([*honest, constant]).tpr_at_1pct == metrics.null_test(honest).tpr_at_1pct
    assert not metrics.null_test([*honest[:19], constant]).passed


def test_too_little_gives_no_verdict() -> None:
    few, small = metrics.null_test(nulls(0, normal, 19)), metrics.null_test(nulls(0, normal, 20, 499, 500))
    assert not few.passed
    assert few.reason == "no evidence: 19 nulls tell anything; at least 20 are needed"
    assert not small.passed
    assert small.reason == "no evidence: the smallest null has 499 scores on a side; at least 500 are needed"
    assert not metrics.null_test([]).passed


# --- What goes into result.json


def test_as_dict_is_what_result_json_holds() -> None:
    interval = {"value", "low", "high", "n"}
    found = json.loads(json.dumps(metrics.over_targets(federation(0, 3)).as_dict(), allow_nan=False))
    figures = {
        "n_members",
        "n_nonmembers",
        "n_distinct_nonmembers",
        "auc",
        "tpr_at_fpr",
        "balanced_accuracy",
        "log_auc",
    }
    assert set(found) == figures | {"mean_over_targets"}
    assert set(found["auc"]) == set(found["balanced_accuracy"]) == interval
    assert list(found["tpr_at_fpr"]) == list(found["mean_over_targets"]["tpr_at_fpr"])
    assert list(found["tpr_at_fpr"]) == ["0.1", "0.01", "0.001", "0.0001"]
    assert set(found["tpr_at_fpr"]["0.1"]) == interval | {"false_positives", "warning"}
    assert set(found["mean_over_targets"]) == {"auc", "tpr_at_fpr"}
    for pairs in ([], nulls(0, normal, 1), [(np.ones(3), np.ones(3))]):
        null = json.loads(json.dumps(metrics.null_test(pairs).as_dict(), allow_nan=False))
        assert set(null) == {"nulls", "mean_auc", "coverage", "tpr_at_1pct", "passed", "reason"}
        assert set(null["mean_auc"]) == set(null["tpr_at_1pct"]) == interval


# --- Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.audit([1, math.nan, math.inf], [1]), "member_scores: 2 of 3 scores are not finite"),
        (lambda: metrics.audit([1.0], []), r"nonmember_scores: got shape \[0\]"),
        (lambda: metrics.audit([[1.0]], [1]), r"member_scores: got shape \[1, 1\]"),
        (lambda: metrics.audit(["a"], [1]), "member_scores: got list .*expected a row of numbers"),
        (lambda: metrics.audit([1], [1], "below"), "convention: got 'below'; expected 'at_most' or 'strict'"),  # type: ignore[arg-type]
        (lambda: metrics.audit([1], [1], fprs=(0.0,)), "fprs: got 0.0"),
        (lambda: metrics.audit([1], [1], level=95), "level: got 95"),
        (lambda: metrics.over_targets([]), "pairs: got no target"),
        (lambda: metrics.over_targets([([1], [2]), ([1], [-math.inf])]), r"pairs\[1\], non-members: 1 of 1"),
        (lambda: metrics.null_test([([math.nan], [2])]), r"pairs\[0\], members: 1 of 1"),
        (lambda: metrics.null_test([], level=0), "level: got 0"),
        (lambda: metrics.clopper_pearson(3, 2), "successes: got 3 of 2"),
        (lambda: metrics.audit([1], [2]).roc.thin(3), "points: got 3; expected at least 4"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_targets_that_share_their_nonmembers_are_warned_by_the_different_ones() -> None:
    """Ten targets judged on the same thousand examples do not make ten thousand."""
    rng = np.random.default_rng(5)
    pairs = [(rng.normal(1, 1, 50), rng.normal(0, 1, 1000)) for _ in range(10)]
    alone, shared = (metrics.over_targets(pairs, distinct=n).pooled for n in (None, 1000))
    assert alone.tpr_at_fpr[0.001].warning is None
    assert shared.tpr_at_fpr[0.001].warning == (
        "0.1 % FPR rests on at most 1 of 1,000 different non-members; 10,000 would allow 10"
    )
    assert shared.as_dict()["n_distinct_nonmembers"] == 1000
    assert shared.as_dict()["n_nonmembers"] == alone.as_dict()["n_distinct_nonmembers"] == 10_000
