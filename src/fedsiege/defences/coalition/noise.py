"""Noise that the members of a coalition add to their uploads and that cancels in the weighted mean.

The raw noise of a member is a pure function of the coalition's secret, the round and the member. Each member works
out everybody's and projects it onto the plane of what the weights add up to nothing:
delta_k = raw_k - w_k (sum_j w_j raw_j) / (sum_j w_j^2), over those that take part. What a round takes so grows with
the square of their number; in the vector form that is its cost.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsiege.streams import stream

Form = Literal["scalar", "vector"]

BLOCK = 2**16
"""Coordinates whose noise is drawn at once: memory does not grow with the model."""

ROUNDING = 1e-12
"""What is left of noise that is a smaller share of sigma is rounding."""


def projected(raw: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is nearest to the raw noise [n, ...] and has no weighted sum over its n rows."""
    return raw - np.multiply.outer(weights, np.tensordot(weights, raw, 1)) / (weights @ weights)


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one round.

    Args:
        secret: of the coalition.
        number: the round.
        weights: each member's weight in the aggregation, of those that take part, by number.
        sigma: standard deviation of the raw noise.
        form: `scalar` is one number for all coordinates of a member's tail, `vector` one for each.
        cancels: whether the noise is projected; without, each member's is its own.

    """

    secret: int
    number: int
    weights: Mapping[int, float]
    sigma: float
    form: Form
    cancels: bool

    @property
    def active(self) -> bool:
        """Whether any is added: noise that is to cancel needs two members."""
        return self.sigma > 0 and (len(self.weights) > 1 or not self.cancels)

    def deviation(self, member: int) -> float:
        """Standard deviation of what a member adds: sigma sqrt(1 - w_k^2 / sum_j w_j^2) where it is to cancel.

        A member with nearly all the weight adds nearly nothing: the others could not make up for more.
        """
        if not self.active:
            return 0.0
        if not self.cancels:
            return self.sigma
        others = math.hypot(*(weight for other, weight in self.weights.items() if other != member))
        return self.sigma * others / math.hypot(*self.weights.values())

    def blocks(self, member: int, size: int) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """What a member adds to its tail of `size` coordinates, as pieces of it with their places, in float64."""
        same = self._added(member, 0, 1) if self.form == "scalar" else None
        for block, first in enumerate(range(0, size, BLOCK)):
            length = min(BLOCK, size - first)
            values = self._added(member, block, length) if same is None else same.repeat(length)
            yield slice(first, first + length), values

    def left(self, arrived: Mapping[int, float]) -> float:
        """Root mean square, over a tail's coordinates, of the noise that stays in the mean of what arrived.

        Exact in the scalar form; in the vector form its expectation, which long tails come close to. 0 where it is
        no more than rounding.

        Args:
            arrived: the weights of all answers that were aggregated, of others too, by client.

        """
        total = sum(arrived.values())
        if not self.active or total <= 0:
            return 0.0
        there = np.array([arrived.get(member, 0.0) for member in self.weights]) / total
        # The projection is symmetric: weighing projected noise is weighing raw noise by projected weights.
        shares = projected(there, self._weights()) if self.cancels else there
        if self.form == "vector":
            left = self.sigma * float(np.linalg.norm(shares))
        else:
            left = abs(float(shares @ self._raw(0, 1)[:, 0]))
        return left if left > ROUNDING * self.sigma else 0.0

    def _weights(self) -> NDArray[np.float64]:
        weights = np.array(list(self.weights.values()), dtype=np.float64)
        return np.asarray(weights / weights.sum())

    def _added(self, member: int, block: int, length: int) -> NDArray[np.float64]:
        """What a member adds to `length` coordinates of a block."""
        made = self._raw(block, length)
        if self.cancels:
            made = projected(made, self._weights())
        return np.asarray(made[list(self.weights).index(member)])

    def _raw(self, block: int, length: int) -> NDArray[np.float64]:
        """Everybody's raw noise [n, length] on a block."""
        streams = (stream(self.secret, "noise", self.number, member, block) for member in self.weights)
        return self.sigma * np.stack([rng.standard_normal(length) for rng in streams])
