"""The values that flow through the house: config -> data -> federation -> evidence -> scores -> report.

Sign and scale, everywhere: an update is `local - start`, what the server adds. Membership signals use its
negative, so that a positive cosine means member.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsiege.errors import InputError

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.str_]
Kind = Literal["trained", "buffer"]
Counters = dict[str, float]

Memory = Mapping[str, Tensor]
"""What components keep from round to round, by component, client and name."""

NOTHING: Memory = {}
"""The memory of those that keep none."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor of a model lies in its flat vector.

    Trained parameters come first, in `named_parameters()` order, then the float buffers (BatchNorm's running
    statistics): the vector is all float state that travels. Frozen parameters and integer buffers are not in it.
    `groups` names the part of the model that each tensor belongs to (its top-level child).
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[Kind, ...]
    groups: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries per tensor."""
        return tuple(int(np.prod(shape)) for shape in self.shapes)

    @property
    def size(self) -> int:
        """Length d of the flat vector."""
        return sum(self.sizes)

    @property
    def trained(self) -> int:
        """Entries of the flat vector that are trained: `flat[:layout.trained]`."""
        return sum(size for size, kind in zip(self.sizes, self.kinds, strict=True) if kind == "trained")

    def slices(self) -> Iterator[tuple[str, slice]]:
        """Each tensor's name and its place in the flat vector."""
        start = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            yield name, slice(start, start + size)
            start += size

    @property
    def head_name(self) -> str:
        """The name of the module that owns the last trained tensor."""
        return self.names[self.kinds.count("trained") - 1].rpartition(".")[0]

    @property
    def head(self) -> slice:
        """The last layer's trained entries (weight and bias of the module that owns the last trained tensor)."""
        last = self.kinds.count("trained") - 1
        first = last
        while first > 0 and self.names[first - 1].rpartition(".")[0] == self.head_name:
            first -= 1
        return slice(sum(self.sizes[:first]), self.trained)


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of data with unique, opaque ids: ids [m], x [m, ...] (images uint8, else float32), y [m] int64."""

    ids: Ids
    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.x) == len(self.y):
            raise InputError(f"examples: {len(self.ids)} ids, {len(self.x)} inputs and {len(self.y)} labels")
        if len(np.unique(self.ids)) != len(self.ids):
            values, counts = np.unique(self.ids, return_counts=True)
            raise InputError(f"examples: duplicate id {str(values[counts > 1][0])!r}; ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.integer[Any]]) -> "Examples":
        """The examples at these positions, in this order."""
        index = torch.as_tensor(np.asarray(rows, dtype=np.int64), device=self.x.device)
        return Examples(self.ids[rows], self.x[index], self.y[index])

    def to(self, device: torch.device) -> "Examples":
        """The same examples with their tensors on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))


def joined(parts: Sequence[Examples]) -> Examples:
    """The examples of one or more parts as one, in their order; InputError where two share an id."""
    if len(parts) == 1:
        return parts[0]
    ids = np.concatenate([part.ids for part in parts])
    return Examples(ids, torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))


@dataclass(frozen=True, slots=True)
class Cohort:
    """What the server received in a round, one row a client, rows sorted by client number.

    `updates` is a row store: a tensor [n, d], in memory or memory-mapped, so rows and blocks of coordinates are
    plain slices. `ages[i]` counts rounds since row i's start model, `starts[age]` is that model [d].
    """

    clients: tuple[int, ...]
    updates: Tensor
    weights: Tensor
    ages: tuple[int, ...]
    starts: Mapping[int, Tensor]


@dataclass(frozen=True, slots=True)
class Fate:
    """What the server made of an answer: the share that had a say (0: rejected), and its length's factor.

    One that is not `usable`, being misshapen or non-finite, was dropped before any defence or rule could judge it.
    """

    kept: float
    scale: float
    usable: bool = True


@dataclass(frozen=True, slots=True)
class Round:
    """One finished round: the global model before [d] and after [d], and what came between.

    `cohort` is what arrived, before the server's defences, and None where no one kept the rows (a linear rule, not
    recorded). `number` counts from 1. `counters` holds what each component did in this round, by the component's
    label; `memory` is what all of them keep for the rounds to come. `fates` are what became of each answer, and
    `attackers` the compromised clients that attacked and whose answers arrived. `seconds` is what crafting the
    attackers' answers and combining all of them took, by these names. `absent` says of invited clients without an
    answer why there is none, in a word and in a line.
    """

    number: int
    start: Tensor
    end: Tensor
    cohort: Cohort | None
    counters: Mapping[str, Counters] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    fates: Mapping[int, Fate] = field(default_factory=dict)
    attackers: tuple[int, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    absent: Mapping[int, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; n is the number of things it was measured on."""

    value: float
    low: float
    high: float
    n: int
