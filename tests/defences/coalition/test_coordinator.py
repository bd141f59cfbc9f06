"""One plan for all members, which each works out alone."""

from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from circles import circle_of

from fedsiege.defences.client.base import Circle
from fedsiege.defences.coalition import coordinator
from fedsiege.defences.coalition.assignment import Assignment, bounded, classes_each, least_overlap
from fedsiege.defences.coalition.coordinator import Coordinator, Plan

HALF = {0: 10.0, 1: 20.0, 2: 30.0, 3: 25.0, 4: 5.0}


def coordinator_of(circle: Circle | None = None, **settings: Any) -> Coordinator:
    known: dict[str, Any] = {
        "most": 8,
        "least": 3,
        "decay": "linear",
        "assignment": "bounded",
        "together": True,
        "sigma": 0.1,
        "form": "scalar",
    }
    return Coordinator(circle or circle_of(HALF), **{**known, **settings})


def noises(plan: Plan) -> dict[int, float]:
    return {k: float(next(iter(plan.noise.blocks(k, 1)))[1][0]) for k in plan.noise.weights}


def test_each_member_works_out_the_same_plan() -> None:
    one = coordinator_of().plan(4, [0, 2, 3])
    other = coordinator_of().plan(4, [3, 0, 2])
    assert one == other
    assert noises(one) == noises(other)
    assert list(one.classes) == [0, 2, 3]
    assert one.noise.weights == {0: 10.0, 2: 30.0, 3: 25.0}


def test_another_secret_round_or_member_gives_another_plan() -> None:
    whole = coordinator_of().plan(4, range(5))
    secret = coordinator_of(Circle(999, HALF, 10, 20)).plan(4, range(5))
    later = coordinator_of(least=8).plan(5, range(5))
    same_size = coordinator_of(least=8).plan(4, range(5))
    fewer = coordinator_of().plan(4, range(4))
    assert whole.classes != secret.classes
    assert noises(whole) != noises(secret)
    assert later.classes != same_size.classes
    assert noises(later) != noises(same_size)
    assert noises(whole)[0] != noises(fewer)[0], "the absent are projected out"


def test_volumes_shape_the_noise_and_nothing_else() -> None:
    even = coordinator_of(circle_of(dict.fromkeys(range(5), 1.0))).plan(4, range(5))
    uneven = coordinator_of().plan(4, range(5))
    assert even.classes == uneven.classes
    assert noises(even) != noises(uneven)
    for plan in (even, uneven):
        assert abs(sum(plan.noise.weights[k] * delta for k, delta in noises(plan).items())) < 1e-14


def test_sets_are_within_the_bound_and_their_size_falls() -> None:
    made = coordinator_of()
    for number in range(1, 21):
        plan = made.plan(number, range(5))
        m = classes_each(number, 20, 8, 3, "linear")
        assert plan.m == made.m(number) == m
        assert plan.assignment is not None
        assert plan.assignment.allowed == least_overlap(10, 5, m) + plan.assignment.restarts
        assert {len(own) for own in plan.classes.values()} == {m}
        assert len(set().union(*plan.classes.values())) == 10
    sizes = [made.m(number) for number in range(1, 21)]
    assert all(a >= b for a, b in pairwise(sizes))


def test_without_assignment_everybody_has_all_classes() -> None:
    plan = coordinator_of(assignment="none").plan(3, [1, 4])
    assert plan.assignment is None
    assert plan.m == 10
    assert plan.classes == {1: tuple(range(10)), 4: tuple(range(10))}


@pytest.mark.parametrize("changes", [{"together": False}, {"assignment": "random"}])
def test_random_classes_do_not_depend_on_who_else_is_there(changes: dict[str, Any]) -> None:
    made = coordinator_of(**changes)
    both, one = made.plan(2, [1, 3]), made.plan(2, [3])
    assert both.classes[3] == one.classes[3]
    assert len(set(made.plan(2, range(5)).classes.values())) == 5
    overlaps = [made.plan(n, range(5)).assignment for n in range(1, 21)]
    bounded = [coordinator_of().plan(n, range(5)).assignment for n in range(1, 21)]
    assert np.mean([a.overlap for a in overlaps if a]) > np.mean([a.overlap for a in bounded if a])


def test_members_that_act_alone_keep_their_raw_noise() -> None:
    alone = coordinator_of(together=False)
    assert noises(alone.plan(2, range(5)))[3] == noises(alone.plan(2, [3]))[3]
    assert alone.plan(2, [3]).noise.active
    assert not coordinator_of().plan(2, [3]).noise.active


def test_what_a_coordinator_would_send() -> None:
    first, second = coordinator_of().plan(1, [0, 2, 3]), coordinator_of().plan(2, [0, 2, 3])
    # Eight classes of 2 bytes and two scalars of 8 to each of three; before that, five volumes of 8 bytes.
    assert (first.messages, first.bytes) == (3 + 5, 3 * (8 * 2 + 16) + 5 * 8)
    assert (second.messages, second.bytes) == (3, 3 * (second.m * 2 + 16))
    nobody = coordinator_of().plan(1, [])
    assert (nobody.messages, nobody.bytes) == (5, 5 * 8), "volumes are said before the first round, by all"
    vector = coordinator_of(form="vector").plan(2, [0, 2, 3])
    assert (vector.messages, vector.bytes) == (second.messages, second.bytes), "a seed for the noise"
    unassigned = coordinator_of(assignment="none").plan(2, [0, 2])
    assert (unassigned.messages, unassigned.bytes) == (2, 2 * 16)
    for silent in (coordinator_of(together=False), coordinator_of(assignment="none", sigma=0.0)):
        assert (silent.plan(1, [0, 2]).messages, silent.plan(1, [0, 2]).bytes) == (0, 0)


def test_a_round_without_members_has_an_empty_plan() -> None:
    plan = coordinator_of().plan(2, [])
    assert (plan.classes, plan.assignment, plan.messages) == ({}, None, 0)
    assert not plan.noise.active


def test_a_rounds_sets_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(classes: int, members: int, m: int, rng: np.random.Generator) -> Assignment:
        asked.append(m)
        return bounded(classes, members, m, rng)

    monkeypatch.setattr(coordinator, "bounded", counted)
    circle = Circle(77, HALF, 10, 20)
    plans = [coordinator_of(circle).plan(4, range(5)) for _ in range(6)]
    assert len(asked) == 1
    assert all(plan == plans[0] for plan in plans)
    fewer, later = coordinator_of(circle).plan(4, range(4)), coordinator_of(circle).plan(5, range(5))
    smaller = coordinator_of(circle, most=7).plan(4, range(5))
    other = coordinator_of(Circle(78, HALF, 10, 20)).plan(4, range(5))
    assert len({plan.assignment for plan in (plans[0], fewer, later, smaller, other)}) == 5


def test_a_circle_is_shown_without_its_secret() -> None:
    circle = Circle(987654321, HALF, 10, 20)
    assert "987654321" not in repr(circle) + repr(coordinator_of(circle))
    assert circle != Circle(987654322, HALF, 10, 20)


def test_it_is_frozen_and_holds_no_data_and_no_model() -> None:
    made = coordinator_of()
    with pytest.raises(FrozenInstanceError):
        made.sigma = 1.0  # type: ignore[misc]
    held = {one.name for one in fields(made)} | {f"circle.{one.name}" for one in fields(made.circle)}
    assert held == {
        *("circle", "most", "least", "decay", "assignment", "together", "sigma", "form"),
        *("circle.secret", "circle.volumes", "circle.classes", "circle.rounds"),
    }
