"""Clients as a column of the data numbers them."""

import re
from collections.abc import Mapping

import numpy as np

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, natural_ids
from fedsiege.errors import InputError
from fedsiege.registry import register


@register("owner")
class Owner:
    """Each row to the client whose number a column of the data holds; for clients that are numbered already."""

    column: str = "client"
    """The column that says which client, from 0, owns an example."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:  # noqa: ARG002 - nothing is drawn
        """Rows per client; InputError for a value that is no client's number."""
        return self.owned(data, clients, {})

    def owned(self, data: Dataset, clients: int, names: Mapping[int, str]) -> list[Rows]:
        """Rows per client, where some clients have `names` too; one of which the data has nothing has no rows.

        A value that is a client's name means that client, any other must be a number from 0 to `clients - 1`.
        InputError for a value that is neither, and for a name that two clients have.
        """
        owners = natural_ids(data, self.column)
        by_name = {name: client for client, name in names.items()}
        values, places = np.unique(owners, return_inverse=True)
        if len(by_name) < len(names):
            twice = next(name for client, name in names.items() if by_name[name] != client)
            raise InputError(f"partition: owner: two clients are called {twice!r}; expected a name for each")
        numbers = [self._number(str(value), clients, by_name) for value in values]
        of = np.array(numbers, dtype=np.int64)[places]
        return [np.flatnonzero(of == client) for client in range(clients)]

    def _number(self, value: str, clients: int, by_name: Mapping[str, int]) -> int:
        if value in by_name:
            return by_name[value]
        if re.fullmatch("0|[1-9][0-9]{0,8}", value) and int(value) < clients:
            return int(value)
        named = f", or a name ({', '.join(list(by_name)[:3])})" if by_name else ""
        raise InputError(
            f"partition.column: column {self.column!r} holds {value!r}; expected a client's number from 0 to "
            f"{clients - 1}{named}"
        )
