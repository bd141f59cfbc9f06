"""Krum's scores by hand, and which rows win where scores are equal."""

import math

import pytest
import torch

from fedsiege.aggregators.choice import lowest, minority, neighbourhoods, only

LINE = torch.tensor([0.0, 1.0, 3.0, 7.0, 20.0], dtype=torch.float64)
SQUARED = (LINE[:, None] - LINE).square()


def test_a_score_sums_the_squared_distances_to_the_n_less_f_less_2_nearest_others() -> None:
    assert neighbourhoods(SQUARED, 0).tolist() == [
        1 + 9 + 49,
        1 + 4 + 36,
        4 + 9 + 16,
        16 + 36 + 49,
        169 + 289 + 361,
    ]
    assert neighbourhoods(SQUARED, 1).tolist() == [1 + 9, 1 + 4, 4 + 9, 16 + 36, 169 + 289]
    assert neighbourhoods(SQUARED, 2).tolist() == [1, 1, 4, 16, 169]


def test_one_neighbour_counts_where_there_are_too_few_and_none_where_there_is_none() -> None:
    assert neighbourhoods(SQUARED, 3).tolist() == [1, 1, 4, 16, 169]
    assert neighbourhoods(SQUARED[:2, :2], 0).tolist() == [1, 1]
    assert neighbourhoods(SQUARED[:1, :1], 0).tolist() == [0]


def test_of_equal_scores_the_lower_client_numbers_win() -> None:
    scores = torch.tensor([2.0, 1.0, 2.0, 0.0, 2.0], dtype=torch.float64)
    assert lowest(scores, 3, [4, 3, 2, 1, 0]).tolist() == [1, 3, 4]
    assert lowest(scores, 4, [4, 3, 2, 1, 0]).tolist() == [1, 2, 3, 4]
    assert lowest(scores, 3, [0, 1, 2, 3, 4]).tolist() == [0, 1, 3]
    assert lowest(scores, 5, [0, 1, 2, 3, 4]).tolist() == [0, 1, 2, 3, 4]
    assert lowest(scores, 1, [0, 1, 2, 3, 4]).tolist() == [3]


@pytest.mark.parametrize(("gap", "winner"), [(1e-12, 0), (1e-6, 1)])
def test_scores_that_differ_by_rounding_are_equal(gap: float, winner: int) -> None:
    scores = torch.tensor([1.0 + gap, 1.0, 5.0], dtype=torch.float64)
    assert lowest(scores, 1, [0, 1, 2]).tolist() == [winner]
    assert lowest(scores * 1e200, 1, [0, 1, 2]).tolist() == [winner]


def test_all_scores_as_good_as_the_last_chosen_one_are_equal_to_it() -> None:
    scores = torch.tensor([1.0, 1 + 1e-12, 1 + 2e-12, 0.5, 3.0], dtype=torch.float64)
    assert lowest(scores, 3, [9, 1, 0, 7, 8]).tolist() == [1, 2, 3]


def test_infinite_scores_lose_and_are_equal_to_each_other() -> None:
    scores = torch.tensor([math.inf, math.inf, 3.0, math.inf], dtype=torch.float64)
    assert lowest(scores, 1, [0, 1, 2, 3]).tolist() == [2]
    assert lowest(scores, 2, [9, 7, 5, 8]).tolist() == [1, 2]
    assert lowest(torch.full((2,), math.inf), 1, [3, 2]).tolist() == [1]


def test_only_the_chosen_are_kept() -> None:
    assert only(torch.tensor([1, 3]), 4).tolist() == [0, 1, 0, 1]


def test_a_minority_is_fewer_than_half_and_as_many_as_that() -> None:
    assert [minority(n) for n in range(8)] == [0, 0, 0, 1, 1, 2, 2, 3]
    for n in range(1, 30):
        assert 2 * minority(n) < n <= 2 * (minority(n) + 1)
