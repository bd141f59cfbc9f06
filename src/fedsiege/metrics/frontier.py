"""Privacy against utility: the Pareto front of points, the area that they dominate, and intervals over seeds.

A point is (cost, leak), such as test error and TPR at a low FPR; both are better when smaller.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsiege.errors import InputError
from fedsiege.metrics.intervals import check_level, mean_estimate
from fedsiege.records import Estimate

ROUNDING = 1e-12  # differences of equal figures are hardly ever exactly equal


def pareto(points: ArrayLike) -> NDArray[np.int64]:
    """Which points [n, 2] no other point beats: their indices, by rising first coordinate.

    A point is beaten by one that is nowhere larger and somewhere smaller. Equal points do not beat each other: all
    of them are returned, in their own order. Raises InputError for points that are not finite or not [n, 2].
    """
    values = _points(points)
    distinct, place = np.unique(values, axis=0, return_inverse=True)  # by rising x, then y
    y = distinct[:, 1]
    unbeaten = y < np.minimum.accumulate(np.concatenate(([np.inf], y)))[:-1]
    order = np.argsort(place.ravel(), kind="stable")
    return order[unbeaten[place.ravel()[order]]]


def hypervolume(points: ArrayLike, reference: tuple[float, float] = (1.0, 1.0)) -> float:
    """The area between the points [n, 2] and the reference: that of the union of the boxes [x, X] x [y, Y].

    With test error and TPR as coordinates and (1, 1) as the reference, a better defence has a larger one and a
    stronger attack makes it smaller (Zhu et al. 2025, FedMIA, Table 2). A point beyond the reference adds nothing;
    without points it is 0. Raises InputError for points or a reference that are not finite, or points that are
    not [n, 2].
    """
    values = _points(points)
    right, top = reference
    if not (math.isfinite(right) and math.isfinite(top)):
        raise InputError(f"reference: got {reference}; expected two finite numbers")
    inside = values[(values < reference).all(axis=1)]
    x, y = inside[pareto(inside)].T
    widths = np.diff(np.append(x, right))
    return float(np.sum(widths * (top - y)))


def over_seeds(
    values: Sequence[float],
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
    runs: Sequence[tuple[float, float]] = (),
) -> Estimate:
    """The mean of one figure over seeds [n], with Student's interval clipped to `bounds`.

    Seeds can agree by chance, so `runs`, each run's own (low, high) [n] at the same level, NaN where it has none,
    widens the interval: it reaches as far from the mean as the runs' limits do on average, over sqrt(n).

    One seed says nothing about another: its interval is NaN. So is that of seeds that agree without runs that say
    how far they can be trusted. No seed: all NaN. Raises InputError for a level outside (0, 1), and for another
    number of runs than of values.
    """
    check_level(level)
    if runs and len(runs) != len(values):
        raise InputError(f"runs: got {len(runs)} intervals; expected one for each of {len(values)} values")
    found = mean_estimate(values, level)
    if found.n < 2:
        return Estimate(found.value, math.nan, math.nan, found.n)
    down, up = _reach(values, runs)
    low, high = min(found.low, found.value - down), max(found.high, found.value + up)
    if high - low < ROUNDING:
        return Estimate(found.value, math.nan, math.nan, found.n)
    return Estimate(found.value, max(bounds[0], low), min(bounds[1], high), found.n)


def _reach(values: Sequence[float], runs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """How far below and above the mean of the values the runs' own intervals reach."""
    known = [(value - low, high - value) for value, (low, high) in zip(values, runs, strict=False)]
    known = [sides for sides in known if all(map(math.isfinite, sides))]
    if not known:
        return 0.0, 0.0
    down, up = np.mean(known, axis=0) / math.sqrt(len(values))
    return float(down), float(up)


def _points(points: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(points, dtype=np.float64)
    if values.size == 0:
        return np.empty((0, 2))
    if values.ndim != 2 or values.shape[1] != 2:
        raise InputError(f"points: got an array of shape {list(values.shape)}; expected [n, 2]")
    if not np.isfinite(values).all():
        raise InputError("points: got a coordinate that is not finite; expected finite numbers")
    return values
