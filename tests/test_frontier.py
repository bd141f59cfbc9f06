"""The frontier's metrics against hand computation, slow definitions and counting on a grid."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fedsiege import metrics
from fedsiege.errors import InputError

Points = NDArray[np.float64]

STEPS = 12
on_a_grid = st.lists(st.tuples(st.integers(0, STEPS), st.integers(0, STEPS)), max_size=9).map(
    lambda points: np.array(points, dtype=np.float64).reshape(-1, 2) / STEPS
)
anywhere = st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)), max_size=9).map(
    lambda points: np.array(points, dtype=np.float64).reshape(-1, 2)
)


def beaten(points: Points, i: int) -> bool:
    """By the definition: some other point is nowhere larger and somewhere smaller."""
    return any((other <= points[i]).all() and (other < points[i]).any() for other in points)


def counted(points: Points) -> float:
    """The hypervolume of points on the grid: the share of the grid's squares that lie in a box."""
    middles = (np.arange(STEPS) + 0.5) / STEPS
    inside = [any(x >= px and y >= py for px, py in points) for x, y in itertools.product(middles, middles)]
    return sum(inside) / STEPS**2


def inclusion_exclusion(points: Points) -> float:
    """The area of the union of the boxes by the sizes of all their intersections."""
    area = 0.0
    for k in range(1, len(points) + 1):
        for some in itertools.combinations(points, k):
            sides = np.clip(1 - np.max(some, axis=0), 0, None)
            area -= (-1) ** k * float(np.prod(sides))
    return area


def test_pareto_by_hand() -> None:
    points = [(0.5, 0.2), (0.3, 0.4), (0.4, 0.4), (0.2, 0.9), (0.6, 0.2)]
    assert metrics.pareto(points).tolist() == [3, 1, 0]


def test_equal_points_are_on_the_front_together() -> None:
    assert metrics.pareto([(0.3, 0.3), (0.1, 0.5), (0.3, 0.3), (0.3, 0.4)]).tolist() == [1, 0, 2]
    assert metrics.pareto([(0.3, 0.3)]).tolist() == [0]
    assert metrics.pareto([]).tolist() == []


@given(on_a_grid)
def test_pareto_is_its_definition(points: Points) -> None:
    front = metrics.pareto(points).tolist()
    assert sorted(front) == [i for i in range(len(points)) if not beaten(points, i)]
    assert points[front, 0].tolist() == sorted(points[front, 0])


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(0.0, 0.0)], 1.0),
        ([(0.6, 0.2)], 0.4 * 0.8),
        ([(0.5, 0.5), (0.6, 0.2)], 0.5 * 0.5 + 0.4 * 0.3),
        ([(0.6, 0.2), (0.5, 0.5), (0.7, 0.7), (0.5, 0.5)], 0.5 * 0.5 + 0.4 * 0.3),
        ([(0.1, 0.8), (0.4, 0.4), (0.8, 0.1)], 0.9 * 0.2 + 0.6 * 0.4 + 0.2 * 0.3),
        ([(1.2, 0.1), (0.1, 1.0)], 0.0),
        ([(1.2, 0.1), (0.5, 0.5)], 0.25),
        ([(-0.5, 0.5)], 1.5 * 0.5),
    ],
)
def test_hypervolume_by_hand(points: list[tuple[float, float]], area: float) -> None:
    assert metrics.hypervolume(points) == pytest.approx(area, abs=1e-12)


def test_hypervolume_from_another_reference() -> None:
    assert metrics.hypervolume([(1.0, 2.0), (2.0, 1.0)], reference=(3.0, 4.0)) == pytest.approx(2 * 2 + 1 * 1)


@given(on_a_grid)
def test_hypervolume_is_the_counted_area(points: Points) -> None:
    assert metrics.hypervolume(points) == pytest.approx(counted(points), abs=1e-9)


@given(anywhere)
def test_hypervolume_is_the_area_of_the_union(points: Points) -> None:
    assert metrics.hypervolume(points) == pytest.approx(inclusion_exclusion(points), abs=1e-9)


@given(anywhere, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_further_point_never_shrinks_the_area_and_order_is_nothing(
    points: Points, more: tuple[float, float]
) -> None:
    area = metrics.hypervolume(points)
    grown = metrics.hypervolume(np.vstack((points, [more])))
    assert grown >= area - 1e-12
    assert metrics.hypervolume(points[::-1]) == pytest.approx(area, abs=1e-12)
    front = points[metrics.pareto(points)]
    assert metrics.hypervolume(front) == pytest.approx(area, abs=1e-12)


@given(on_a_grid)
def test_both_coordinates_count_alike(points: Points) -> None:
    assert metrics.hypervolume(points[:, ::-1]) == pytest.approx(metrics.hypervolume(points), abs=1e-12)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([1.0, 2.0], r"points: got an array of shape \[2\]; expected \[n, 2\]"),
        ([(1.0, 2.0, 3.0)], r"points: got an array of shape \[1, 3\]; expected \[n, 2\]"),
        ([(0.5, math.nan)], "points: got a coordinate that is not finite"),
        ([(0.5, math.inf)], "points: got a coordinate that is not finite"),
    ],
)
def test_points_that_are_none(points: list[Any], said: str) -> None:
    for metric in (metrics.pareto, metrics.hypervolume):
        with pytest.raises(InputError, match=said):
            metric(points)


def test_a_reference_that_is_none() -> None:
    with pytest.raises(InputError, match=r"reference: got \(1, nan\); expected two finite numbers"):
        metrics.hypervolume([(0.5, 0.5)], reference=(1, math.nan))


def test_interval_over_seeds_by_hand() -> None:
    # mean 0.5, standard deviation 0.1, t(0.975, 2) = 4.302653: 0.5 +- 4.302653 * 0.1 / sqrt(3)
    found = metrics.over_seeds([0.4, 0.5, 0.6])
    assert found.value == pytest.approx(0.5)
    assert found.n == 3
    assert [found.low, found.high] == pytest.approx([0.251586, 0.748414], abs=1e-6)


def test_interval_over_seeds_stays_within_its_bounds() -> None:
    found = metrics.over_seeds([0.01, 0.09])
    assert [found.low, found.high] == pytest.approx([0.0, 0.05 + 12.706205 * 0.04], abs=1e-6)
    assert metrics.over_seeds([0.95, 0.99]).high == 1.0
    assert metrics.over_seeds([-0.02, 0.02], bounds=(-1.0, 1.0)).low == pytest.approx(-0.254124, abs=1e-6)


def test_one_seed_says_nothing_about_another() -> None:
    found = metrics.over_seeds([0.3])
    assert (found.value, found.n) == (0.3, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    nothing = metrics.over_seeds([])
    assert nothing.n == 0
    assert math.isnan(nothing.value)


def test_seeds_that_agree_have_the_interval_that_their_runs_imply() -> None:
    # 0.05 - (0.05 - 0.024) / sqrt(2) and 0.05 + (0.09 - 0.05) / sqrt(2)
    found = metrics.over_seeds([0.05, 0.05], runs=[(0.024, 0.09), (0.024, 0.09)])
    assert (found.value, found.n) == (0.05, 2)
    assert [found.low, found.high] == pytest.approx([0.0316152, 0.0782843], abs=1e-6)
    # the distances 0.01 and 0.03 below, 0.02 and 0.06 above, on average and over sqrt(2)
    apart = metrics.over_seeds([0.5, 0.5001], runs=[(0.49, 0.52), (0.4701, 0.5601)])
    assert [apart.low, apart.high] == pytest.approx([0.50005 - 0.02 / 2**0.5, 0.50005 + 0.04 / 2**0.5], abs=1e-6)
    none_found = metrics.over_seeds([0.0, 0.0], runs=[(0.0, 0.018), (0.0, 0.018)])
    assert [none_found.low, none_found.high] == pytest.approx([0.0, 0.018 / 2**0.5])


def test_runs_never_narrow_the_interval_over_seeds() -> None:
    wide = metrics.over_seeds([0.4, 0.5, 0.6])
    assert metrics.over_seeds([0.4, 0.5, 0.6], runs=[(v - 0.01, v + 0.01) for v in (0.4, 0.5, 0.6)]) == wide
    # above the runs reach further than Student's interval, below they do not
    skewed = metrics.over_seeds([0.4, 0.5, 0.6], runs=[(v - 0.01, v + 0.5) for v in (0.4, 0.5, 0.6)])
    assert skewed.low == wide.low
    assert skewed.high == pytest.approx(0.5 + 0.5 / 3**0.5)


def test_a_run_without_an_interval_says_nothing() -> None:
    found = metrics.over_seeds([0.5, 0.5], runs=[(math.nan, math.nan), (0.4, 0.7)])
    assert [found.low, found.high] == pytest.approx([0.5 - 0.1 / 2**0.5, 0.5 + 0.2 / 2**0.5])
    with pytest.raises(InputError, match="runs: got 1 intervals; expected one for each of 2 values"):
        metrics.over_seeds([0.5, 0.5], runs=[(0.4, 0.6)])


@pytest.mark.parametrize("values", [[0.3] * 3, [0.1 + 0.2, 0.3], [0.0, 0.0]])
def test_seeds_that_agree_have_no_interval_of_their_own(values: list[float]) -> None:
    for runs in ((), [(math.nan, math.nan)] * len(values), [(value, value) for value in values]):
        found = metrics.over_seeds(values, runs=runs)
        assert found.n == len(values)
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_level_of_an_interval_over_seeds() -> None:
    wide, narrow = metrics.over_seeds([0.4, 0.5], level=0.9), metrics.over_seeds([0.4, 0.5], level=0.5)
    assert wide.low < narrow.low < 0.45 < narrow.high < wide.high
    with pytest.raises(InputError, match=r"level: got 1\.5; expected a confidence level"):
        metrics.over_seeds([0.1, 0.2], level=1.5)


@given(st.lists(st.floats(0.4, 0.6), min_size=2, max_size=6))
def test_interval_over_seeds_is_students(values: list[float]) -> None:
    found = metrics.over_seeds(values, bounds=(-math.inf, math.inf))
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), max(stats.sem(values), 1e-300))
    if math.isnan(found.low):
        assert expected[1] - expected[0] < 1e-11  # the seeds agree
        return
    assert [found.low, found.high] == pytest.approx(list(expected), abs=1e-9)
