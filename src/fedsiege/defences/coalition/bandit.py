"""Which of a client's left-out examples come back: intervals of loss, and a bandit that learns which of them help.

What is kept from round to round is a flat mapping of float64 tensors: `edges` [M + 1] of the intervals,
`log_weights` [M], `rewards` (the latest, as they were measured) and `choices` [M], how often each was chosen.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from fedsiege.records import Memory

LOW, HIGH = 20, 80
"""Percentiles of the latest rewards that are mapped to -1 and 1."""

ROUNDING = 1e-9
"""Rewards whose percentiles differ by a smaller share of the largest of them are equal."""


def normalised(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Losses [m] from 0, the smallest, to 1, the largest; all 0 where they are equal."""
    low, high = losses.min(), losses.max()
    return (losses - low) / (high - low) if high > low else np.zeros_like(losses)


def begun(losses: NDArray[np.float64], intervals: int) -> Memory:
    """The memory before the first choice.

    Intervals hold equally many of the losses [m]: edge j is the normalised loss at place floor(j m / M) of the
    sorted ones; the outer edges are 0 and 1.
    """
    inner = np.sort(normalised(losses))[[j * len(losses) // intervals for j in range(1, intervals)]]
    return {
        "edges": torch.tensor([0.0, *inner.tolist(), 1.0], dtype=torch.float64),
        "log_weights": torch.zeros(intervals, dtype=torch.float64),
        "rewards": torch.zeros(0, dtype=torch.float64),
        "choices": torch.zeros(intervals, dtype=torch.float64),
    }


def placed(losses: NDArray[np.float64], memory: Memory) -> NDArray[np.int64]:
    """The interval [m] of each of today's losses [m], normalised anew; one on an edge is in the one above it."""
    return np.searchsorted(memory["edges"][1:-1].cpu().numpy(), normalised(losses), side="right")


def probabilities(memory: Memory, exploration: float) -> NDArray[np.float64]:
    """EXP3's probabilities [M]: softmax of the log-weights, mixed with `exploration` of the uniform ones."""
    weights = torch.softmax(memory["log_weights"], 0).cpu().numpy()
    p = (1 - exploration) * weights + exploration / len(weights)
    return np.asarray(p / p.sum())


def chosen(memory: Memory, interval: int) -> Memory:
    """The memory after a choice."""
    choices = memory["choices"].clone()
    choices[interval] += 1
    return {**memory, "choices": choices}


def rewarded(
    memory: Memory, interval: int, reward: float, *, exploration: float, step: float, history: int
) -> Memory:
    """The memory after the reward of a choice: only the chosen interval's weight moves, by step * r / (p M).

    r is the reward from -1 to 1, as `scaled` by the latest `history` ones, this one among them.
    """
    rewards = torch.cat([memory["rewards"], memory["rewards"].new_tensor([reward])])[-history:]
    p = probabilities(memory, exploration)
    log_weights = memory["log_weights"].clone()
    log_weights[interval] += step * scaled(rewards.cpu().numpy()) / (float(p[interval]) * len(p))
    return {**memory, "log_weights": log_weights, "rewards": rewards}


def scaled(rewards: NDArray[np.float64]) -> float:
    """The last of the rewards, with their 20th percentile at -1 and their 80th at 1, cut off there.

    0 where there are fewer than two of them, one is not finite, or nothing but rounding is between the percentiles.
    """
    if len(rewards) < 2 or not np.isfinite(rewards).all():
        return 0.0
    low, high = np.percentile(rewards, [LOW, HIGH])
    if high - low <= ROUNDING * np.abs(rewards).max():
        return 0.0
    return float(np.clip(2 * (rewards[-1] - low) / (high - low) - 1, -1, 1))
