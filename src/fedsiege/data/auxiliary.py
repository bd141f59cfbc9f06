"""What an adversary owns itself, and how it deals that to the clients of federations of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fedsiege.data.candidates import spare
from fedsiege.data.dataset import Dataset, Partition
from fedsiege.data.partitioning import partition
from fedsiege.data.validation import reserve
from fedsiege.errors import InputError
from fedsiege.records import Examples, Ids
from fedsiege.streams import entropy, stream

Rows = NDArray[np.int64]

ASIDE = 5
"""At most one in so many of the adversary's examples is held out of a shadow federation for one purpose."""


@dataclass(frozen=True, slots=True)
class Dealt:
    """The data of one shadow federation: its clients' rows of `data.train`, and what its defences choose by."""

    data: Dataset
    shards: list[Rows]
    validation: Examples | None


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """The adversary's own examples, and how it makes shadow federations of them.

    Args:
        pool: they are its `train`, `heldout` is empty.
        clients: of a shadow federation.
        dealt: how many examples the partition is to deal in each, where there are so many.
        heldout: how many it holds out of each, to ask about examples of nobody's.
        validation: how many it holds out for the choices of defences.
        examples_per_client: at most so many of those that a client is dealt, as in the attacked federation.

    """

    pool: Dataset
    clients: int
    dealt: int
    heldout: int
    validation: int
    examples_per_client: int | None = None

    def deal(self, scheme: Partition, seed: int) -> Dealt:
        """The data of the shadow federation of this seed: a random draw, dealt as `scheme` deals.

        Raises InputError for what `partition` refuses.
        """
        order = stream(seed, "auxiliary").permutation(len(self.pool.train))
        most = len(order) // ASIDE
        validation, heldout = min(self.validation, most), min(max(1, self.heldout), most)
        aside, rest = np.split(order, [validation + heldout])
        drawn = np.sort(rest[: self.dealt])
        data = replace(
            self.pool,
            train=self.pool.train.take(drawn),
            heldout=self.pool.train.take(np.sort(aside)),
            natural={name: values[drawn] for name, values in self.pool.natural.items()},
        )
        data, reserved = reserve(data, validation, seed)
        return Dealt(data, partition(data, scheme, self.clients, seed, self.examples_per_client), reserved)


def seed_of(seed: int, number: int) -> int:
    """The seed of shadow federation `number`, from 0, of a run."""
    return entropy(seed, "shadow", number) % 2**63


def auxiliary_of(data: Dataset, shards: list[Rows], asked: Ids, natural: bool) -> Dataset:
    """The examples that an adversary may own, as a data set of training examples alone.

    Args:
        data: the run's, without what is reserved.
        shards: the clients' rows of `data.train`.
        asked: ids of the candidates and of the population.
        natural: whether the clients are those that the data names, which it does of training examples only.

    """
    train, heldout = spare(data, shards, asked)
    if natural:
        heldout = heldout[:0]
    return replace(
        data,
        train=_joined([data.train.take(train), data.heldout.take(heldout)]),
        heldout=data.heldout.take(heldout[:0]),
        natural={name: values[train] for name, values in data.natural.items()} if natural else {},
    )


def check_enough(auxiliary: Auxiliary, wanted: int, attack: str) -> None:
    """Refuse shadow federations for which the adversary has too little data, by the name of who wants them."""
    there, least = len(auxiliary.pool.train), max(auxiliary.clients + 1, ASIDE)
    if there < least + (ASIDE if auxiliary.validation else 0):
        raise InputError(
            f"shadows: attack {attack} wants {wanted} shadow federations of {auxiliary.clients} clients, and the "
            f"adversary has {there} examples of its own (no client's, no candidates, not reserved); expected more: "
            "lower examples_per_client, candidates.ofl, the population or shadows.clients"
        )


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(
        np.concatenate([part.ids for part in parts]),
        torch.cat([part.x for part in parts]),
        torch.cat([part.y for part in parts]),
    )
