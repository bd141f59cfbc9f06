"""The one-tailed test behind FedMIA: how far does the target stand out from the other clients?

None of the others trained on a member of the target, so their measurements of a candidate are taken as draws from
the non-member distribution. The target's measurement is placed in that distribution, round by round.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.special import ndtr

from fedsiege.attacks.membership.base import MembershipAttack, blocks, by_round, counted
from fedsiege.attacks.membership.leave_one_out import Whole, leave_one_out
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

    def score(
        self, attack: MembershipAttack, view: View, targets: Sequence[int], signal: Signal, sign: int
    ) -> Values:
        """The combined scores [targets, m] of `sign * signal`; one round is in memory at a time."""
        rounds = counted(attack, view, targets)
        total = np.zeros((len(targets), view.own(signal, targets[0], rounds.used[0][0]).size))
        dropped = np.zeros(len(targets), dtype=np.int64)
        np.empty(2**21)  # Once a large block was freed, glibc keeps freed memory for the next temporary array.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for t, places in by_round(rounds.used):
                present = view.present(t)
                rows = np.searchsorted(present, [targets[i] for i in places])
                parts = list(blocks(total.shape[1], len(present)))
                found = pool.map(functools.partial(self._part, view, signal, sign, t, rows), parts)
                for columns, (part, out) in zip(parts, found, strict=True):
                    total[places, columns] += rounds.of(part, t, places, columns)
                    dropped[places] += out
        for target, count in zip(targets, dropped.tolist(), strict=True):
            view.of(target).count("filtered", count)
        if self.combine == "mean_cdf":
            total /= rounds.rounds()
        elif rounds.classes is not None:
            # A sum of more rounds spreads further: all are scaled to the spread of a sum over every round.
            total *= np.sqrt(np.array([[len(taken)] for taken in rounds.used]) / rounds.rounds())
        return total

    def _part(
        self, view: View, signal: Signal, sign: int, t: int, rows: Whole, columns: slice
    ) -> tuple[Values, Whole]:
        """What a round adds to some columns of the scores of `rows`, and how many values were dropped for each."""
        z, dropped = self.standardise_each(sign * view.everyone(signal, t, columns), rows)
        return ndtr(z) if self.combine == "mean_cdf" else z, dropped

    def standardise(self, own: Values, others: Values) -> tuple[Values, int]:
        """The target's values [m] as z-scores against the others' [n, m], and how many of those were dropped."""
        z, dropped = self._by_column(own, others)
        return z, int(dropped.sum())

    def standardise_each(self, values: Values, rows: Whole) -> tuple[Values, Whole]:
        """`standardise` for several clients: each of `rows` [q] of `values` [n, m] against all the other rows.

        What is dropped is the same, z-scores agree to about 1e-8, and neither depends on who else is asked about.

        Returns the z-scores [q, m], and how many values were dropped for each row [q].
        """
        if self.null == "robust":
            found = [self._by_column(values[row], np.delete(values, row, axis=0)) for row in rows]
            return np.array([z for z, _ in found]), np.array([dropped.sum() for _, dropped in found])
        own, others = leave_one_out(values, rows, self.sigma_filter)
        own -= others.mean
        own /= np.sqrt(others.variance + VARIANCE_FLOOR)
        z, dropped = own, others.dropped
        if others.doubtful.any():
            who, columns = np.nonzero(others.doubtful)
            z[who, columns], dropped[who, columns] = self._one_by_one(values, rows[who], columns)
        return z, dropped.sum(axis=1)

    def _by_column(self, own: Values, others: Values) -> tuple[Values, Whole]:
        keep = np.ones(others.shape, dtype=np.bool_)
        if self.sigma_filter is not None:
            keep = below(others, self.sigma_filter)
        centre, variance = _moments(others, keep) if self.null == "moments" else _robust(others, keep)
        return (own - centre) / np.sqrt(variance + VARIANCE_FLOOR), len(keep) - np.count_nonzero(keep, axis=0)

    def _one_by_one(self, values: Values, rows: Whole, columns: Whole) -> tuple[Values, Whole]:
        """Pairs of a row and a column [p] by the definition: z-scores [p] and how many were dropped [p]."""
        z, dropped = np.empty(len(rows)), np.empty(len(rows), dtype=np.int64)
        others = np.arange(len(values) - 1)[:, None]
        for some in blocks(len(rows), len(values)):
            # The first pair goes along: NumPy adds up a single column in another order than one of several.
            row, column = np.append(rows[some], rows[0]), np.append(columns[some], columns[0])
            found, out = self._by_column(values[row, column], values[others + (others >= row), column])
            z[some], dropped[some] = found[:-1], out[:-1]
        return z, dropped


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
