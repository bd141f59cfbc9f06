"""Intervals that hold equally many examples, and a bandit that stays finite and learns."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsiege.defences.coalition.bandit import begun, chosen, normalised, placed, probabilities, rewarded, scaled
from fedsiege.records import Memory


def memory_of(intervals: int = 5) -> Memory:
    return begun(np.linspace(0, 1, 50), intervals)


def after(memory: Memory, interval: int, reward: float, history: int = 20) -> Memory:
    return rewarded(memory, interval, reward, exploration=0.2, step=0.3, history=history)


def test_losses_are_normalised_to_0_and_1() -> None:
    np.testing.assert_allclose(normalised(np.array([3.0, 5.0, 4.5, 3.5])), [0, 1, 0.75, 0.25])
    np.testing.assert_array_equal(normalised(np.full(4, 2.5)), np.zeros(4))


def test_edges_and_intervals_worked_out_by_hand() -> None:
    losses = np.array([10.0, 0.0, 2.0, 8.0, 4.0, 6.0, 5.0])
    memory = begun(losses, 3)
    # Sorted: 0 2 | 4 5 | 6 8 10, for floor(7 / 3) is 2 and floor(14 / 3) is 4.
    assert memory["edges"].tolist() == [0, 0.4, 0.6, 1]
    assert placed(losses, memory).tolist() == [2, 0, 0, 2, 1, 2, 1]
    # Other losses later, against the same edges: 100 to 200, with 140 and 160 on the edges.
    assert placed(np.array([100, 139.0, 140, 159, 160, 200]), memory).tolist() == [0, 0, 1, 1, 2, 2]


@settings(max_examples=100, deadline=None)
@given(m=st.integers(1, 200), intervals=st.integers(1, 20), seed=st.integers(0, 1000))
def test_intervals_hold_equally_many(m: int, intervals: int, seed: int) -> None:
    losses = np.asarray(np.random.default_rng(seed).permutation(m) * 0.37 + 2.0, dtype=np.float64)
    memory = begun(losses, intervals)
    edges = memory["edges"].tolist()
    assert len(edges) == intervals + 1
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (0, 1)
    places = placed(losses, memory)
    counts = [int((places == j).sum()) for j in range(intervals)]
    if m > intervals:
        assert counts == [(j + 1) * m // intervals - j * m // intervals for j in range(intervals)]
    assert sum(counts) == m
    assert set(counts) <= {m // intervals, m // intervals + 1} or m <= intervals


def test_equal_losses_are_all_in_one_interval() -> None:
    memory = begun(np.full(12, 3.3), 4)
    assert memory["edges"].tolist() == [0, 0, 0, 0, 1]
    assert placed(np.full(12, 7.0), memory).tolist() == [3] * 12


def test_the_memory_is_flat_and_of_float64() -> None:
    memory = after(chosen(memory_of(), 2), 2, 0.5)
    assert {name: len(tensor) for name, tensor in memory.items()} == {
        "edges": 6,
        "log_weights": 5,
        "rewards": 1,
        "choices": 5,
    }
    assert {tensor.dtype for tensor in memory.values()} == {torch.float64}
    assert memory["choices"].tolist() == [0, 0, 1, 0, 0]


def test_nothing_that_was_remembered_is_changed_in_place() -> None:
    before = after(memory_of(), 0, 1.0)
    copy = {name: tensor.clone() for name, tensor in before.items()}
    after(chosen(before, 1), 1, 0.5)
    assert all(torch.equal(before[name], copy[name]) for name in copy)


@settings(max_examples=60, deadline=None)
@given(rewards=st.lists(st.tuples(st.integers(0, 4), st.floats(-1e6, 1e6)), max_size=60))
def test_probabilities_are_some_for_every_interval_whatever_the_rewards(rewards: list[tuple[int, float]]) -> None:
    # Acceptance check 3: probabilities sum to 1 and none is under 0.2 / M.
    memory = memory_of()
    for interval, reward in rewards:
        memory = after(memory, interval, reward)
        p = probabilities(memory, 0.2)
        assert math.isclose(math.fsum(p.tolist()), 1)
        assert p.min() >= 0.2 / 5 - 1e-12
        assert len(memory["rewards"]) <= 20
    assert all(bool(tensor.isfinite().all()) for tensor in memory.values())


def test_rewards_that_differ_by_rounding_alone_teach_nothing() -> None:
    assert scaled(np.array([0.3, 0.1 + 0.2, 0.3, 0.1 + 0.2])) == 0
    memory = memory_of()
    for n in range(200):
        memory = after(memory, n % 5, 0.1 + 0.2 if n % 3 else 0.3)
    assert memory["log_weights"].tolist() == [0] * 5
    # What is small but differs is no rounding, and neither is a small difference of large rewards.
    assert scaled(np.array([1e-12, 3e-12])) == 1
    assert scaled(np.array([1.0, 1.0 - 1e-6])) == -1


@pytest.mark.parametrize("reward", [0.0, 0.7, -3.0])
def test_constant_rewards_teach_nothing(reward: float) -> None:
    # Acceptance check 3: finite with constant rewards.
    memory = memory_of()
    for n in range(40):
        memory = after(memory, n % 5, reward)
    assert memory["log_weights"].tolist() == [0] * 5
    np.testing.assert_allclose(probabilities(memory, 0.2), 0.2)


def test_an_interval_with_higher_rewards_gains() -> None:
    # Acceptance check 3: the arm with the higher reward gains.
    rng, memory = np.random.default_rng(0), memory_of()
    for _ in range(300):
        interval = int(rng.choice(5, p=probabilities(memory, 0.2)))
        memory = after(memory, interval, float(rng.normal(1.0 if interval == 3 else 0.0, 0.3)))
    p = probabilities(memory, 0.2)
    assert p.argmax() == 3
    assert p[3] > 0.7


def test_steps_of_the_bandit_worked_out_by_hand() -> None:
    memory = after(memory_of(), 1, 5.0)
    assert memory["log_weights"].tolist() == [0] * 5, "a single reward has nothing to be measured against"
    memory = after(memory, 2, 7.0)
    # The higher of two is cut off at 1; the probability of interval 2 was a fifth.
    assert memory["log_weights"].tolist() == pytest.approx([0, 0, 0.3 / (0.2 * 5), 0, 0])
    p = 0.8 * math.exp(0.3) / (math.exp(0.3) + 4) + 0.04
    assert probabilities(memory, 0.2)[2] == pytest.approx(p)
    memory = after(memory, 2, -1.0)
    assert memory["log_weights"].tolist() == pytest.approx([0, 0, 0.3 - 0.3 / (p * 5), 0, 0])
    assert memory["rewards"].tolist() == [5, 7, -1]


def test_rewards_are_measured_against_the_latest_ones() -> None:
    assert scaled(np.array([])) == 0
    assert scaled(np.array([4.0])) == 0
    assert scaled(np.array([0.0, 1.0])) == 1
    assert scaled(np.array([1.0, 0.0])) == -1
    # Of 0, 3, 5 and 10 the percentiles are 1.8 and 7.
    assert scaled(np.array([0.0, 10.0, 3.0, 5.0])) == pytest.approx(2 * (5 - 1.8) / 5.2 - 1)
    assert scaled(np.array([2.0, 2.0, 2.0])) == 0
    assert scaled(np.array([1.0, math.inf])) == scaled(np.array([math.nan, 1.0, 2.0])) == 0
    memory = memory_of()
    for reward in (100.0, -100.0, 1.0, 2.0, 3.0):
        memory = after(memory, 0, reward, history=3)
    assert memory["rewards"].tolist() == [1, 2, 3]
