"""How many classes each member gets, how much the sets overlap, and that they cover what they can."""

import math
import time
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsiege.defences.coalition import assignment
from fedsiege.defences.coalition.assignment import (
    Assignment,
    Decay,
    bounded,
    classes_each,
    drawn,
    least_overlap,
)

DECAYS: tuple[Decay, ...] = ("linear", "cosine", "exponential", "polynomial")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def overlaps(sets: tuple[tuple[int, ...], ...]) -> list[int]:
    return [len([c for c in one if c in other]) for one, other in combinations(sets, 2)]


def smallest_total(classes: int, members: int, m: int) -> int:
    """The least sum of all pairs' overlaps: classes dealt out like cards, n owners being n(n-1)/2 pairs."""
    used = [0] * classes
    for card in range(members * m):
        used[card % classes] += 1
    return sum(n * (n - 1) // 2 for n in used)


@settings(max_examples=150, deadline=None)
@given(classes=st.integers(1, 40), members=st.integers(1, 8), data=st.data(), seed=st.integers(0, 2**32))
def test_sets_have_m_classes_cover_what_they_can_and_overlap_little(
    classes: int, members: int, data: st.DataObject, seed: int
) -> None:
    # Acceptance check 2: sizes exactly m, coverage min(N, d m), total overlap the balanced optimum.
    m = data.draw(st.integers(1, classes))
    found = bounded(classes, members, m, rng(seed))
    assert len(found.sets) == members
    for one in found.sets:
        assert list(one) == sorted(set(one))
        assert len(one) == m
        assert set(one) <= set(range(classes))
    assert found.covered == len({c for one in found.sets for c in one}) == min(classes, members * m)
    assert found.overlap == max(overlaps(found.sets), default=0) <= found.allowed
    assert found.allowed == least_overlap(classes, members, m) + found.restarts
    assert sum(overlaps(found.sets)) == smallest_total(classes, members, m)


@pytest.mark.parametrize(("classes", "members", "m"), [(26, 6, 8), (21, 7, 6), (13, 4, 5), (31, 6, 9)])
def test_classes_are_used_equally_often_where_the_bound_is_tight(classes: int, members: int, m: int) -> None:
    for seed in range(60):
        sets = bounded(classes, members, m, rng(seed)).sets
        assert sum(overlaps(sets)) == smallest_total(classes, members, m)


@pytest.mark.parametrize(
    ("classes", "members", "m", "bound", "most"),
    [
        *[(100, 2, 50, 0, 0), (100, 4, 50, 17, 17), (100, 5, 50, 19, 21), (100, 5, 35, 7, 9)],
        *[(100, 10, 50, 23, 24), (200, 10, 120, 67, 68), (100, 5, 20, 0, 0), (200, 5, 200, 200, 200)],
    ],
)
def test_the_papers_sizes_are_assigned_near_the_bound(
    classes: int, members: int, m: int, bound: int, most: int
) -> None:
    assert least_overlap(classes, members, m) == bound
    found = [bounded(classes, members, m, rng(seed)) for seed in range(10)]
    assert all(bound <= one.overlap <= most for one in found)
    assert max(overlaps(found[0].sets)) == found[0].overlap
    assert len({one.sets for one in found}) == (1 if m == classes else 10), "drawn anew"
    # Sets that nobody looked at share more.
    blind = [tuple(drawn(classes, m, rng(100 * seed + k)) for k in range(members)) for seed in range(10)]
    assert m == classes or np.mean([max(overlaps(sets)) for sets in blind]) > np.mean([a.overlap for a in found])


def test_the_bound_rises_by_one_each_time_no_sets_are_found() -> None:
    restarts = [bounded(100, 5, 50, rng(seed)).restarts for seed in range(20)]
    assert min(restarts) >= 1, "19 is not to be had"
    assert max(restarts) <= 2
    assert {bounded(37, 7, 19, rng(seed)).restarts for seed in range(30)} >= {0, 1}, "one at a time"


WAYS = {"member": assignment._by_member, "class": assignment._by_class}


def found_by(way: str, classes: int, members: int, m: int, seed: int) -> int:
    """The least bound with which one of the two ways alone finds sets."""
    draws, allowed = rng(seed), least_overlap(classes, members, m)
    while WAYS[way](allowed, classes, members, m, draws) is None:
        allowed += 1
    return allowed


@pytest.mark.parametrize(
    ("classes", "members", "m"), [(100, 4, 50), (100, 5, 35), (30, 5, 17), (20, 10, 9), (60, 40, 30)]
)
def test_the_better_of_two_ways_is_taken(classes: int, members: int, m: int) -> None:
    seeds = range(6)
    alone = {way: np.mean([found_by(way, classes, members, m, seed) for seed in seeds]) for way in WAYS}
    assert np.mean([bounded(classes, members, m, rng(seed)).allowed for seed in seeds]) <= min(alone.values()) + 0.4
    assert (alone["member"] < alone["class"]) == (members == 40), "each is the better one somewhere"


@settings(max_examples=80, deadline=None)
@given(classes=st.integers(1, 30), members=st.integers(1, 8), data=st.data(), seed=st.integers(0, 2**32))
def test_either_way_uses_classes_equally_often(classes: int, members: int, data: st.DataObject, seed: int) -> None:
    m = data.draw(st.integers(1, classes))
    for way in WAYS.values():
        owned = way(classes, classes, members, m, rng(seed))
        assert owned is not None
        assert owned.sum(1).tolist() == [m] * members
        assert set(owned.sum(0).tolist()) <= {members * m // classes, members * m // classes + 1}


@pytest.mark.parametrize("way", ["member", "class", "both"])
def test_no_class_and_no_member_is_favoured(way: str) -> None:
    # Fifteen places for eight classes: each class has one owner or two.
    classes, members, m, n = 8, 3, 5, 900
    total, alone = np.zeros((members, classes)), np.zeros((members, classes))
    for seed in range(n):
        if way == "both":
            sets = bounded(classes, members, m, rng(seed)).sets
            owned = np.array([[c in one for c in range(classes)] for one in sets], dtype=int)
        else:
            made = WAYS[way](4, classes, members, m, rng(seed))
            assert made is not None, "four of five may be shared"
            owned = made
        total += owned
        alone += owned * (owned.sum(0) == 1)
    assert np.abs(total - n * m / classes).max() < 4.5 * math.sqrt(n * m / classes * (1 - m / classes))
    # One class of the eight has a single owner, any of the three.
    p = 1 / (members * classes)
    assert alone.sum() == n
    assert np.abs(alone - n * p).max() < 4.5 * math.sqrt(n * p * (1 - p))


def test_sets_of_the_largest_task_take_no_time_to_speak_of() -> None:
    started = time.process_time()
    for seed in range(4):
        bounded(200, 10, 120, rng(seed))
    assert (time.process_time() - started) / 4 < 0.3


@settings(max_examples=200, deadline=None)
@given(classes=st.integers(1, 300), members=st.integers(2, 30), data=st.data())
def test_the_bound_is_that_of_the_paper(classes: int, members: int, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, classes))
    exact = Fraction(members * m**2 - classes * m, classes * (members - 1))
    assert least_overlap(classes, members, m) == max(0, math.ceil(exact))


@pytest.mark.parametrize(("classes", "members", "m"), [(4, 3, 2), (5, 3, 3), (4, 4, 3), (6, 3, 4), (5, 2, 4)])
def test_no_sets_at_all_overlap_less_than_the_bound(classes: int, members: int, m: int) -> None:
    every = list(combinations(range(classes), m))
    least = min(max(overlaps(sets)) for sets in product(every, repeat=members))
    assert least_overlap(classes, members, m) <= least


def test_one_set_has_nobody_to_overlap_with() -> None:
    assert least_overlap(10, 1, 7) == 0
    one = bounded(10, 1, 7, rng())
    assert (len(one.sets[0]), one.overlap, one.allowed, one.restarts) == (7, 0, 0, 0)


def test_more_classes_than_there_are_cannot_be_assigned() -> None:
    with pytest.raises(ValueError, match="11 of 10 classes"):
        bounded(10, 2, 11, rng())


def test_every_class_is_as_likely_as_any_other() -> None:
    for sets in (
        [bounded(10, 2, 3, rng(seed)).sets for seed in range(600)],
        [tuple(drawn(10, 3, rng(2 * seed + k)) for k in (0, 1)) for seed in range(600)],
    ):
        for member in (0, 1):
            counts = np.bincount([c for one in sets for c in one[member]], minlength=10)
            assert np.abs(counts - 180).max() < 5 * math.sqrt(600 * 0.3 * 0.7)


def test_an_assignment_counts_what_it_covers_and_shares() -> None:
    one = Assignment(((0, 1, 2), (2, 3, 4), (1, 2, 3)), allowed=2)
    assert (one.covered, one.overlap) == (5, 2)


def by_hand(number: int, rounds: int, most: int, least: int, decay: Decay) -> float:
    gone = Fraction(number - 1, rounds - 1)
    if decay == "linear":
        return float(most - Fraction(most - least, rounds - 1) * (number - 1))
    if decay == "cosine":
        return least + (most - least) * math.cos(math.pi * float(gone) / 2) ** 2
    if decay == "exponential":
        return math.exp(math.log(most) * float(1 - gone) + math.log(least) * float(gone))
    return float(least + (most - least) * (1 - 2 * gone + gone * gone))


@settings(max_examples=100, deadline=None)
@given(rounds=st.integers(2, 120), a=st.integers(1, 200), b=st.integers(1, 200), decay=st.sampled_from(DECAYS))
def test_the_number_of_classes_falls_from_most_to_least(rounds: int, a: int, b: int, decay: Decay) -> None:
    most, least = max(a, b), min(a, b)
    found = [classes_each(number, rounds, most, least, decay) for number in range(1, rounds + 1)]
    assert (found[0], found[-1]) == (most, least)
    assert found == sorted(found, reverse=True)
    for number, m in enumerate(found, 1):
        assert abs(m - by_hand(number, rounds, most, least, decay)) <= 0.5 + 1e-9


@settings(max_examples=200, deadline=None)
@given(rounds=st.integers(2, 400), a=st.integers(1, 400), b=st.integers(1, 400), data=st.data())
def test_halves_are_rounded_up(rounds: int, a: int, b: int, data: st.DataObject) -> None:
    most, least, number = max(a, b), min(a, b), data.draw(st.integers(1, rounds))
    exact = most - Fraction((most - least) * (number - 1), rounds - 1)
    assert classes_each(number, rounds, most, least, "linear") == math.floor(exact + Fraction(1, 2))


def test_some_numbers_of_classes_worked_out_by_hand() -> None:
    assert [classes_each(t, 5, 10, 2, "linear") for t in range(1, 6)] == [10, 8, 6, 4, 2]
    assert [classes_each(t, 5, 10, 2, "cosine") for t in range(1, 6)] == [10, 9, 6, 3, 2]
    assert [classes_each(t, 5, 32, 2, "exponential") for t in range(1, 6)] == [32, 16, 8, 4, 2]
    assert [classes_each(t, 5, 18, 2, "polynomial") for t in range(1, 6)] == [18, 11, 6, 3, 2]
    assert classes_each(2, 17, 10, 2, "linear") == 10, "9.5"
    assert {classes_each(1, 1, 10, 2, decay) for decay in DECAYS} == {10}, "the only round is the first"
