"""Intervals for shares, AUCs and means, and how result.json holds a figure with its interval."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from fedsiege.errors import InputError
from fedsiege.records import Estimate

Row = NDArray[np.float64]


def number(value: float) -> float | None:
    """The value as JSON holds it: null where it is not finite."""
    return float(value) if math.isfinite(value) else None


def estimate_dict(estimate: Estimate) -> dict[str, Any]:
    """An estimate as result.json holds it: value, low, high (null where not finite) and n."""
    return {
        "value": number(estimate.value),
        "low": number(estimate.low),
        "high": number(estimate.high),
        "n": int(estimate.n),
    }


def check_level(level: float) -> None:
    """InputError unless `level` is a confidence level."""
    if not 0 < level < 1:
        raise InputError(f"level: got {level}; expected a confidence level between 0 and 1, such as 0.95")


def clopper_pearson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a binomial share, (low, high) (Clopper & Pearson 1934).

    Counts may be fractions (effective counts): the beta quantiles are continuous in them. No trials: (0, 1).
    Raises InputError unless 0 <= successes <= n and 0 < level < 1.
    """
    check_level(level)
    if not 0 <= successes <= n < math.inf:
        raise InputError(f"successes: got {successes} of {n}; expected a count between 0 and n")
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, successes, n - successes + 1) if successes > 0 else 0.0
    high = stats.beta.isf(tail, successes + 1, n - successes) if successes < n else 1.0
    return float(low), float(high)


def delong(members: Row, nonmembers: Row, level: float) -> Estimate:
    """The AUC of scores [m] against [n] with DeLong's interval on the logit scale (DeLong et al. 1988)."""
    wins, losses = _placements(members, nonmembers)
    m, n = len(members), len(nonmembers)
    variance = float(wins.var(ddof=1) / m + losses.var(ddof=1) / n) if min(m, n) > 1 else 0.0
    return _auc_estimate(wins, losses, variance, float(special.ndtri((1 + level) / 2)), level)


def delong_clustered(pairs: Sequence[tuple[Row, Row]], level: float) -> Estimate:
    """The AUC of all pairs' scores pooled, with the pair as the unit of its interval; two pairs or more.

    The variance is that of the pairs' sums of placements (Obuchowski 1997), the limit of a bootstrap over pairs;
    Student's t at (pairs - 1) degrees of freedom, because a handful of targets estimate a variance poorly.
    """
    members, nonmembers = (np.concatenate(side) for side in zip(*pairs, strict=True))
    wins, losses = _placements(members, nonmembers)
    m, n, k, auc = len(members), len(nonmembers), len(pairs), wins.mean()
    first_member, first_nonmember = (
        np.cumsum([0, *(len(scores) for scores in side[:-1])]) for side in zip(*pairs, strict=True)
    )
    influence = np.add.reduceat(wins - auc, first_member) / m + np.add.reduceat(losses - auc, first_nonmember) / n
    variance = k / (k - 1) * float(np.sum(influence**2))
    return _auc_estimate(wins, losses, variance, float(special.stdtrit(k - 1, (1 + level) / 2)), level)


def mean_estimate(values: Sequence[float], level: float) -> Estimate:
    """The mean of independent values with Student's interval: unbounded for one value, NaN for none."""
    count = len(values)
    if not count:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(np.mean(values))
    if count == 1:
        return Estimate(mean, -math.inf, math.inf, 1)
    quantile = float(special.stdtrit(count - 1, (1 + level) / 2))
    reach = quantile * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - reach, mean + reach, count)


def _placements(members: Row, nonmembers: Row) -> tuple[Row, Row]:
    """Per member [m] the share of non-members it beats, per non-member [n] the share of members that beat it.

    A tie is half a win. The mean of either is the AUC.
    """
    wins = _below(members, np.sort(nonmembers)) / len(nonmembers)
    losses = 1 - _below(nonmembers, np.sort(members)) / len(members)
    return wins, losses


def _below(scores: Row, ordered: Row) -> Row:
    """How many of `ordered` lie below each score, ties as halves."""
    order = np.argsort(scores)
    rising = scores[order]  # so that one search ends near the next: at a million scores four times as fast
    below = np.empty(len(scores))
    below[order] = (np.searchsorted(ordered, rising, "left") + np.searchsorted(ordered, rising, "right")) / 2
    return below


def _auc_estimate(wins: Row, losses: Row, variance: float, quantile: float, level: float) -> Estimate:
    """A logit interval, or where the variance is zero or undefined, an exact one for disjoint pairs.

    The variance vanishes when all members win, lose or tie alike; then min(m, n) disjoint pairs (member,
    non-member) are independent trials of which the AUC is the success rate, and Clopper-Pearson applies.
    """
    m, n, auc = len(wins), len(losses), float(wins.mean())
    if 0 < auc < 1 and variance > 1e-28:  # rounding leaves some 1e-33 of a variance that is zero
        reach = quantile * math.sqrt(variance) / (auc * (1 - auc))
        low, high = (float(special.expit(special.logit(auc) + side * reach)) for side in (-1, 1))
    else:
        low, high = clopper_pearson(auc * min(m, n), min(m, n), level)
    return Estimate(auc, low, high, m + n)
