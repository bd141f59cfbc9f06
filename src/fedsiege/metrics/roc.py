"""The ROC curve with exact ties, and the scores it is drawn from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate

from fedsiege.errors import InputError

Row = NDArray[np.float64]
Counts = NDArray[np.int64]
Pair = tuple[ArrayLike, ArrayLike]

LOG_FLOOR = 1e-5
"""Rates below this are drawn at this on logarithmic axes."""


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """Every point of the ROC curve, from (0, 0) to (1, 1): one per distinct score, highest first.

    All arrays are [p]; `true_positives[i]` members and `false_positives[i]` non-members score at least
    `thresholds[i]`; the first threshold is infinite.
    """

    thresholds: Row
    true_positives: Counts
    false_positives: Counts

    @property
    def members(self) -> int:
        """How many members were scored."""
        return int(self.true_positives[-1])

    @property
    def nonmembers(self) -> int:
        """How many non-members were scored."""
        return int(self.false_positives[-1])

    @property
    def tpr(self) -> Row:
        """True-positive rates [p], never falling."""
        return np.asarray(self.true_positives / self.members, dtype=np.float64)

    @property
    def fpr(self) -> Row:
        """False-positive rates [p], never falling."""
        return np.asarray(self.false_positives / self.nonmembers, dtype=np.float64)

    def corners(self) -> NDArray[np.int64]:
        """Positions of the points that scikit-learn's `roc_curve(drop_intermediate=True)` keeps.

        It drops a point whose steps before and after are equal; the origin does not count as a neighbour.
        """
        rises, runs = self.true_positives[1:], self.false_positives[1:]
        kept = np.ones(len(self.thresholds), dtype=np.bool_)
        kept[2:-1] = (np.diff(rises, 2) != 0) | (np.diff(runs, 2) != 0)
        return np.flatnonzero(kept)

    def thin(self, points: int = 400) -> tuple[Row, Row]:
        """At most `points` of the curve's own points as (fpr, tpr), dense at the low end of both axes.

        Half of them are evenly spaced in log FPR and half in log TPR, so the curve looks complete on log-log axes;
        both ends are kept. Raises InputError for fewer than 4 points.
        """
        if points < 4:
            raise InputError(f"points: got {points}; expected at least 4")
        if len(self.thresholds) <= points:
            return self.fpr, self.tpr
        kept = [np.array([0, len(self.thresholds) - 1])]
        for counts in (self.false_positives, self.true_positives):
            grid = np.geomspace(1, counts[-1], (points - 2) // 2).round()
            kept.append(np.searchsorted(counts, grid, side="right") - 1)
        rows = np.unique(np.concatenate(kept))
        return self.fpr[rows], self.tpr[rows]

    def log_area(self) -> float:
        """Area under the thinned curve with both axes (5 + log10) / 5 from 10^-5 to 1: between 0 and 1.

        As FedMIA's published code computes it (`corners`, rates below 10^-5 raised to it).
        """
        rows = self.corners()
        x, y = (1 + np.log10(np.maximum(rate[rows], LOG_FLOOR)) / 5 for rate in (self.fpr, self.tpr))
        return float(integrate.trapezoid(y, x))


def roc_curve(members: Row, nonmembers: Row) -> Roc:
    """The curve of scores [m] and [n], with one sort of both."""
    scores = np.concatenate((members, nonmembers))
    order = np.argsort(scores)[::-1]
    scores, is_member = scores[order], order < len(members)
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # of each run of equal scores
    found = np.cumsum(is_member, dtype=np.int64)[last]
    return Roc(
        thresholds=np.concatenate(([math.inf], scores[last])),
        true_positives=np.concatenate(([0], found)),
        false_positives=np.concatenate(([0], last + 1 - found)),
    )


def scores_of(values: ArrayLike, name: str) -> Row:
    """The scores as float64 [n]; InputError unless they are a row of at least one finite number."""
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: got {type(values).__name__} ({error}); expected a row of numbers") from None
    if scores.ndim != 1 or not len(scores):
        raise InputError(f"{name}: got shape {list(scores.shape)}; expected one row of at least one score")
    wrong = int(np.count_nonzero(~np.isfinite(scores)))
    if wrong:
        raise InputError(f"{name}: {wrong:,} of {len(scores):,} scores are not finite; expected finite numbers")
    return scores


def pairs_of(pairs: Sequence[Pair]) -> list[tuple[Row, Row]]:
    """Each pair's member and non-member scores, checked."""
    return [
        (scores_of(members, f"pairs[{i}], members"), scores_of(nonmembers, f"pairs[{i}], non-members"))
        for i, (members, nonmembers) in enumerate(pairs)
    ]
