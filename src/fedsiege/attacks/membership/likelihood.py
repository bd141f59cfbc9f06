"""The one-tailed test behind FedMIA: how far does the target stand out from the other clients?

None of the others trained on a member of the target, so their measurements of a candidate are taken as draws from
the non-member distribution. The target's measurement is placed in that distribution, round by round.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr

from fedsiege.attacks.membership.base import MembershipAttack, series
from fedsiege.view import Flags, Signal, Values, View

VARIANCE_FLOOR = 1e-8
"""Added to every variance, as the published code does; a cosine's spread below 1e-4 counts as 1e-4."""

MAD_TO_STD = 1.4826
"""The median absolute deviation of a normal distribution is its standard deviation / 1.4826."""


@dataclass(frozen=True, slots=True)
class OneTailedTest:
    """How the non-member distribution is estimated and how rounds are combined; FedMIA's fields, see there."""

    sigma_filter: float | None
    null: Literal["moments", "robust"]
    combine: Literal["mean_cdf", "sum_z"]

    def score(self, attack: MembershipAttack, view: View, target: int, signal: Signal, sign: int) -> Values:
        """The combined score [m] of `sign * signal`; one round is in memory at a time."""
        used = series(attack, view, target)
        view.count("filtered", 0)
        total = np.zeros_like(view.own(signal, target, used[0]))
        for t in used:
            z, dropped = self.standardise(sign * view.own(signal, target, t), sign * view.others(signal, target, t))
            total += ndtr(z) if self.combine == "mean_cdf" else z
            view.count("filtered", dropped)
        return total / len(used) if self.combine == "mean_cdf" else total

    def standardise(self, own: Values, others: Values) -> tuple[Values, int]:
        """The target's values [m] as z-scores against the others' [n, m], and how many of those were dropped."""
        keep = np.ones(others.shape, dtype=np.bool_)
        if self.sigma_filter is not None:
            keep = below(others, self.sigma_filter)
        centre, variance = _moments(others, keep) if self.null == "moments" else _robust(others, keep)
        return (own - centre) / np.sqrt(variance + VARIANCE_FLOOR), int(keep.size - np.count_nonzero(keep))


def below(others: Values, sigma: float) -> Flags:
    """The paper's one-sided filter (eq. 8-10): keep [n, m] the values below mean + sigma * std of their column.

    Of n values none lies more than sqrt(n - 1) population standard deviations above the mean, so the paper's sigma
    of 3 drops nothing with fewer than 11 clients, and with 11 only where it is met exactly. Where no value is below
    (all are equal) the paper takes the minimum: they are all kept, which is the same.
    """
    keep: Flags = others < others.mean(axis=0) + sigma * others.std(axis=0)
    keep |= ~keep.any(axis=0)
    return keep


def _moments(others: Values, keep: Flags) -> tuple[Values, Values]:
    """Mean and population variance of each column [m]."""
    return others.mean(axis=0, where=keep), others.var(axis=0, where=keep)


def _robust(others: Values, keep: Flags) -> tuple[Values, Values]:
    """Median and squared (scaled) median absolute deviation of each column [m]."""
    centre = _median(others, keep)
    return centre, (MAD_TO_STD * _median(np.abs(others - centre), keep)) ** 2


def _median(values: Values, keep: Flags) -> Values:
    """The median of each column's kept values [m]: the dropped ones are sorted to the end."""
    ordered = np.sort(np.where(keep, values, np.inf), axis=0)
    count = keep.sum(axis=0, keepdims=True)
    low: Values = np.take_along_axis(ordered, (count - 1) // 2, axis=0)[0]
    high: Values = np.take_along_axis(ordered, count // 2, axis=0)[0]
    return 0.5 * (low + high)
