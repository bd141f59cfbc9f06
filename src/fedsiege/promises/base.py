"""What a promise about an update is, and what one update says about it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsiege.defences.client.base import ClientDefence
from fedsiege.defences.client.dp_fedavg import DPFedAvg
from fedsiege.defences.client.perturb import Perturb
from fedsiege.defences.client.sparsify import Sparsify
from fedsiege.update_log import TensorSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one update says about a promise; `telling`: whether a broken one would have looked otherwise."""

    broken: bool
    telling: bool
    statistic: float
    threshold: float
    against: float
    """How much it speaks against the promise, to compare rounds by."""
    p: float | None
    said: str


class Arrived:
    """An update as it arrived, in float64, and by how much rounding may have moved each entry.

    Args:
        update: `local - start` [d].
        start: the model [d] that it started from.
        tensors: what lies where in them.

    """

    def __init__(
        self, update: NDArray[np.float32], start: NDArray[np.float32], tensors: Sequence[TensorSpec]
    ) -> None:
        self.update = update.astype(np.float64)
        # fl(s + u) is off by a unit of its own size, and the difference to s by one of the update's.
        size = np.abs(start + self.update) + 2 * np.abs(self.update)
        self.slack = unit(start) * size + float(np.finfo(np.float32).smallest_subnormal)
        self.tensors = tuple(tensors)

    def places(self) -> Iterator[tuple[TensorSpec, slice]]:
        """Each trained tensor and where it lies."""
        first = 0
        for tensor in self.tensors:
            if is_trained(tensor.name):
                yield tensor, slice(first, first + tensor.size)
            first += tensor.size

    @cached_property
    def trained(self) -> NDArray[np.bool_]:
        """Which entries belong to trained tensors [d]."""
        kinds = [np.full(tensor.size, is_trained(tensor.name)) for tensor in self.tensors]
        return np.concatenate(kinds)

    def part(self, whole: bool) -> tuple[Floats, Floats]:
        """The entries, and what rounding may have moved them by: all of them, or of trained tensors."""
        if whole or self.trained.all():
            return self.update, self.slack
        return self.update[self.trained], self.slack[self.trained]


def is_trained(name: str) -> bool:
    """Whether a tensor of this name is trained: BatchNorm's running statistics, by PyTorch's names, are not."""
    return name.rpartition(".")[2] not in {"running_mean", "running_var"}


def unit(start: NDArray[np.float32]) -> float:
    """The rounding unit of what travelled: float16's where all of the server's model is written in it."""
    with np.errstate(over="ignore"):
        half = start.astype(np.float16)
    return 2.0**-11 if np.array_equal(half.astype(np.float32), start) and start.any() else 2.0**-24


class Promise:
    """Something that every honest update of a client has."""

    words: str
    """What it is, with the unit of its statistic."""
    by_chance: bool = False
    """Whether an honest update may miss it by chance, so that it is a test."""

    def found(self, arrived: Arrived, level: float) -> Finding:
        """What an update says, at this level of a single test."""
        raise NotImplementedError

    def survives(self, later: ClientDefence) -> bool:  # noqa: ARG002 - for those that can
        """Whether it still holds after another defence of the same update."""
        return False


def norm(entries: Floats) -> float:
    """Euclidean length of entries [d]."""
    return float(np.linalg.norm(entries))


def shrinks(later: ClientDefence) -> bool:
    """Whether a defence only makes entries of an update smaller, and leaves zeros at zero."""
    return isinstance(later, Sparsify) or (
        (isinstance(later, Perturb) and later.sigma == 0)
        or (isinstance(later, DPFedAvg) and later.noise_multiplier == 0)
    )
