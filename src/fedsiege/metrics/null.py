"""The null test: an attack judged on pseudo-members that it cannot tell from non-members."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsiege.metrics.intervals import (
    check_level,
    clopper_pearson,
    delong,
    estimate_dict,
    mean_estimate,
    number,
)
from fedsiege.metrics.roc import Pair, Row, pairs_of
from fedsiege.records import Estimate

NULLS = 20
"""Fewer nulls with unequal scores give no verdict."""

SIDE = 500
"""Nor do nulls with fewer scores on a side."""

AUC_TOLERANCE = 0.01
COVERAGE = 0.85
FPR = 0.01


@dataclass(frozen=True, slots=True)
class NullTest:
    """Whether an attack that cannot know anything looks as if it knew nothing; see `null_test`.

    `nulls` counts all that were given, the figures are over those whose scores are not all equal (NaN if none is).
    """

    nulls: int
    mean_auc: Estimate
    coverage: float
    tpr_at_1pct: Estimate
    passed: bool
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The figures as result.json holds them."""
        return {
            "nulls": self.nulls,
            "mean_auc": estimate_dict(self.mean_auc),
            "coverage": number(self.coverage),
            "tpr_at_1pct": estimate_dict(self.tpr_at_1pct),
            "passed": self.passed,
            "reason": self.reason,
        }


def null_test(pairs: Sequence[Pair], level: float = 0.95) -> NullTest:
    """Check an attack on nulls: pairs (pseudo-member scores, non-member scores) whose sides are exchangeable.

    The nulls are independent random splits, fixed in advance, 20 or more of 500 or more a side. The attack passes
    when the mean AUC is within .5 +- .01, at least 85 % of the AUC intervals contain .5, and 1 % lies in the
    interval of the pooled TPR at 1 % FPR. A null whose scores are all equal is no evidence and is left out.

    The TPR here differs from `audit`'s, so that an honest null gives 1 % on average. "FPR at most 1 %" does not: it
    lets k = floor(n / 100) of n non-members pass, and a member beats the next one with probability
    (k + 1) / (n + 1), 1.2 % at n = 500. So the threshold has rank (n + 1) / 100 among the non-members, interpolated
    between two of them, and tied scores count as their mean over all orders. The threshold is measured too, on n
    non-members, which multiplies the binomial variance of a count over m members by 1 + (m - 1) / (n + 2); the
    Clopper-Pearson interval is that of the pooled counts divided by this factor.

    Raises InputError for scores that are empty or not finite, or a level outside (0, 1).
    """
    check_level(level)
    given = pairs_of(pairs)
    telling = [(m, n) for m, n in given if np.ptp(np.concatenate((m, n))) > 0]
    aucs = [delong(m, n, level) for m, n in telling]
    mean_auc = mean_estimate([one.value for one in aucs], level)
    coverage = float(np.mean([one.low <= 0.5 <= one.high for one in aucs])) if aucs else math.nan
    tpr = _pooled_tpr(telling, level)
    smallest = min((min(len(m), len(n)) for m, n in telling), default=0)
    faults = _too_little(len(given), len(telling), smallest) or _faults(mean_auc, coverage, tpr)
    passing = (
        f"over {len(telling)} nulls the mean AUC is {mean_auc.value:.4f}, {100 * coverage:.0f} % of the AUC "
        f"intervals contain 0.5, and the pooled TPR at 1 % FPR is {_percent(tpr)}"
    )
    return NullTest(
        nulls=len(given),
        mean_auc=mean_auc,
        coverage=coverage,
        tpr_at_1pct=tpr,
        passed=not faults,
        reason="; ".join(faults) or passing,
    )


def _too_little(given: int, telling: int, smallest: int) -> list[str]:
    if telling < NULLS:
        equal = f" ({given - telling} of {given} have only equal scores)" if telling < given else ""
        return [f"no evidence: {telling} nulls tell anything{equal}; at least {NULLS} are needed"]
    if smallest < SIDE:
        return [f"no evidence: the smallest null has {smallest} scores on a side; at least {SIDE} are needed"]
    return []


def _faults(auc: Estimate, coverage: float, tpr: Estimate) -> list[str]:
    faults = []
    if abs(auc.value - 0.5) > AUC_TOLERANCE:
        faults.append(f"the mean AUC is {auc.value:.4f}, not within 0.5 +- {AUC_TOLERANCE}")
    if coverage < COVERAGE:
        faults.append(f"only {100 * coverage:.0f} % of the AUC intervals contain 0.5 (expected 85 % or more)")
    if not tpr.low <= FPR <= tpr.high:
        faults.append(f"the pooled TPR at 1 % FPR is {_percent(tpr)}, which leaves 1 % out")
    return faults


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.2f} % ({100 * share.low:.2f} % to {100 * share.high:.2f} %)"


def _pooled_tpr(scores: list[tuple[Row, Row]], level: float) -> Estimate:
    trials = sum(len(m) for m, _ in scores)
    if not trials:
        return Estimate(math.nan, math.nan, math.nan, 0)
    found = sum(_members_found(m, n) for m, n in scores)
    inflation = sum(len(m) * (1 + (len(m) - 1) / (len(n) + 2)) for m, n in scores) / trials
    low, high = clopper_pearson(found / inflation, trials / inflation, level)
    return Estimate(found / trials, low, high, trials)


def _members_found(members: Row, nonmembers: Row) -> float:
    """Members above rank (n + 1) / 100 of the non-members: m / 100 on average where the sides are exchangeable."""
    falling = np.sort(nonmembers)[::-1]
    rank = FPR * (len(falling) + 1)
    whole = int(rank)
    fewer, more = (_members_above(members, falling, r) for r in (whole, whole + 1))
    return fewer + (rank - whole) * (more - fewer)


def _members_above(members: Row, falling: Row, rank: int) -> float:
    """Members above the non-member of this rank (1 = highest, 0 = beyond all), the mean over orders of tied scores.

    In a random order of a members and b non-members, a r / (b + 1) members precede the r-th non-member on average.
    """
    if rank == 0:
        return 0.0
    score = falling[rank - 1]
    ties, left = np.count_nonzero(falling == score), rank - np.count_nonzero(falling > score)
    return float(np.count_nonzero(members > score) + np.count_nonzero(members == score) * left / (ties + 1))
