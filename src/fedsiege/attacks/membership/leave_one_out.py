"""The others' mean and variance for each of many clients, from one pass over the values of all."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsiege.records import Floats
from fedsiege.view import Flags, Values

Whole = NDArray[np.int64]

CANCELLED = 1e-5
"""A sum of squares that is left with a smaller share of itself has lost too many digits."""

NEAR = 1e-11
"""A value closer to a bar than this share of its column's size may lie on either side, as rounding has it."""


class Others(NamedTuple):
    """What clients are compared with; arrays of one shape, [q, m] for q clients and m columns.

    `mean` and `variance` (of the population) are those of the others below the bar, `dropped` counts the rest of
    them. Where `doubtful`, digits were lost or rounding decided, and all three want computing one by one.
    """

    mean: Values
    variance: Values
    dropped: Whole
    doubtful: Flags


def leave_one_out(values: Values, rows: Whole, sigma: float | None) -> tuple[Values, Others]:
    """Each of `rows` [q] of `values` [n, m], and all the other rows less those `sigma` deviations above their mean.

    The others' sums are those of all rows without the client's own value. What lies above a bar are a column's
    highest values, as a rule the same for every client: one sum serves them all, and exceptions get their own. Who
    else is asked for makes no difference.

    Returns the clients' own values [q, m] and the others, both measured from each column's median.
    """
    columns = _Columns(values, sigma)
    own = values[rows]
    own -= columns.middle
    usual = columns.usual()
    everywhere = np.arange(len(usual))
    mean, variance, doubtful = _moments(
        columns.sums[usual, everywhere], columns.squares[usual, everywhere], own, len(values) - 1.0 - usual
    )
    others = Others(mean, variance, np.tile(usual, (len(rows), 1)), doubtful)
    if len(columns.crossed):
        _put_right(others, columns, own, usual[columns.crossed])
    doubtful &= columns.ordered[-1] > columns.ordered[0]  # where all are equal all are kept
    return own, others


class _Columns:
    """The columns of `values` [n, m], each in order and measured from its median.

    Measured from its mean, which a far outlier draws away from all the rest, squares would cancel.
    """

    def __init__(self, values: Values, sigma: float | None) -> None:
        self.n = len(values)
        self.sigma = math.inf if sigma is None else sigma
        # Cantelli's inequality: no more of the others lie so far above their mean.
        most = int((self.n - 1) / (1 + self.sigma * self.sigma) + NEAR)
        self.ordered = np.sort(values, axis=0)
        middle = self.ordered[self.n // 2].copy()
        self.middle: Values = middle
        self.ordered -= middle
        self.falling = self.ordered[::-1][: most + 1]
        self.sums = _without_highest(self.ordered, most + 1)
        self.squares = _without_highest(np.square(self.ordered), most + 1)
        self.near: Values = NEAR * (np.abs(middle) + np.sqrt(self.squares[0]))
        self.crossed = self._crossed() if most else np.zeros(0, dtype=np.int64)

    def bars(self, own: Values, some: Whole) -> tuple[Values, Flags]:
        """The bar for clients' own values [q, c] in some columns [c], and where digits were lost."""
        mean, variance, lost = _moments(self.sums[0, some], self.squares[0, some], own, self.n - 1.0)
        return mean + self.sigma * np.sqrt(variance), lost

    def usual(self) -> Whole:
        """How many others reach the bar for a client whose own value is the median [m]."""
        usual = np.zeros(len(self.middle), dtype=np.int64)
        own = np.zeros((1, len(self.crossed)))
        bar, _ = self.bars(own, self.crossed)
        usual[self.crossed] = np.count_nonzero(self.falling[:-1, self.crossed] >= bar, axis=0) - (own >= bar)[0]
        return usual

    def _crossed(self) -> Whole:
        """The columns in which some value may reach some client's bar.

        The others' mean is lowest without the highest value; their variance, a concave function of the value that
        is left out, is lowest without the highest or the lowest.
        """
        ends = self.ordered[[0, -1]]
        mean, variance, _ = _moments(self.sums[0], self.squares[0], ends, self.n - 1.0)
        lowest = mean[1] + self.sigma * np.sqrt(variance.min(axis=0))
        return np.flatnonzero((ends[1] + self.near >= lowest) & (ends[1] > ends[0]))


def _put_right(others: Others, columns: _Columns, own: Values, usual: Whole) -> None:
    """Find the clients for whom not the `usual` [c] highest values of a crossed column are dropped; drop theirs."""
    some = columns.crossed
    bar, lost = columns.bars(own[:, some], some)
    low, high = bar - columns.near[some], bar + columns.near[some]
    last = np.where(usual > 0, columns.falling[usual - 1, some], np.inf)
    as_usual = (last >= high) & (columns.falling[usual, some] < low) & (own[:, some] < last)
    others.doubtful[:, some] |= lost
    who, place = np.nonzero(~(as_usual | lost))
    where = who, some[place]
    found = _one_sum_each(columns, own[where], some[place], low[who, place], high[who, place])
    for array, part in zip(others, found, strict=True):
        array[where] = part


def _one_sum_each(columns: _Columns, own: Values, column: Whole, low: Values, high: Values) -> Others:
    """Pairs [p] of a client, with its own value, and a column; each bar lies between `low` and `high`."""
    highest = columns.falling[:, column]
    reached = np.count_nonzero(highest >= low, axis=0)
    counted = own < low  # else it is one of those that reach the bar
    mean, variance, lost = _moments(
        columns.sums[reached, column],
        columns.squares[reached, column],
        own * counted,
        np.maximum(columns.n - reached - counted, 1),
    )
    unsure = reached != np.count_nonzero(highest >= high, axis=0)
    return Others(mean, variance, reached - ~counted, lost | unsure)


def _moments(
    total: Values, square: Values, part: Values, count: float | Floats | Whole
) -> tuple[Values, Values, Flags]:
    """Mean and variance of what a sum and a sum of squares leave without `part`, and where digits were lost."""
    mean = total - part
    mean /= count
    variance = np.square(part)
    np.subtract(square, variance, out=variance)
    variance /= count
    variance -= np.square(mean)
    np.maximum(variance, 0.0, out=variance)
    return mean, variance, variance < CANCELLED / count * square


def _without_highest(ordered: Values, highest: int) -> Values:
    """Sums of rising columns [n, m] without their 0, 1, ... `highest` highest values [highest + 1, m]."""
    few = len(ordered) - highest
    sums: Values = np.cumsum(np.concatenate([ordered[:few].sum(axis=0, keepdims=True), ordered[few:]]), axis=0)
    return sums[::-1]
