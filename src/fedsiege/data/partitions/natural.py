"""Clients as the data names them: hospitals, authors, sites."""

import numpy as np

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, deal, natural_ids
from fedsiege.errors import InputError
from fedsiege.registry import register
from fedsiege.streams import stream


@register("natural")
class Natural:
    """One client per value of a column of the data; clients are numbered in sorted order of the values."""

    column: str = ""
    """The column that names the client of an example."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client; InputError when the column has another number of values than there are clients."""
        owners = natural_ids(data, self.column)
        values = np.unique(owners)
        if len(values) != clients:
            raise InputError(
                f"clients: got {clients}; column {self.column!r} names {len(values)} natural clients "
                f"({', '.join(values[:5])}{', ...' if len(values) > 5 else ''}). Set clients to {len(values)}, "
                "or use the partition grouped_natural"
            )
        return deal(
            lambda flower, _: flower.NaturalIdPartitioner(partition_by="natural"),
            data,
            clients,
            seed,
            "natural",
            natural=owners,
        )


@register("grouped_natural")
class GroupedNatural:
    """Several natural clients per client: the values of a column are dealt at random, as evenly as it goes."""

    column: str = ""
    """The column that names the natural client of an example."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client; InputError when the column has fewer values than there are clients."""
        owners = natural_ids(data, self.column)
        values, number = np.unique(owners, return_inverse=True)
        if len(values) < clients:
            raise InputError(
                f"clients: got {clients}; column {self.column!r} names only {len(values)} natural clients"
            )
        turn = stream(seed, "partition", "grouped_natural", "groups").permutation(len(values)) % clients
        return [np.flatnonzero(turn[number] == client) for client in range(clients)]
