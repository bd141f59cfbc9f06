"""Label skew by a bias of groups of clients towards some classes."""

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, labels_of
from fedsiege.registry import register
from fedsiege.streams import stream


@register("bias")
class Bias:
    """Clients in groups, each biased towards its classes: their examples go to it with a probability.

    There are as many groups as classes, or as clients where these are fewer: client k is in group k modulo their
    number, and so is class l (the paper has a group for every class). In a group, its clients are all as likely.
    A bias of 1 / groups gives each group the same mixture of classes, as `iid` does; 1 keeps classes of different
    groups apart. Sizes are left to chance, and where some groups have one client more, each of theirs gets less.

    Paper: Local Model Poisoning Attacks to Byzantine-Robust Federated Learning (USENIX Security 2020, 1911.11815).
    """

    bias: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that an example goes to the group of its class; all other groups are as likely as one another."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client; every row is somebody's."""
        home = labels_of(data, "bias")
        groups = min(int(home.max()) + 1, clients)
        rng = stream(seed, "partition", "bias")
        group = home % groups
        if groups > 1:
            stays = rng.random(len(group)) < self.bias
            further = rng.integers(1, groups, size=len(group))  # so many groups on: any but its own
            group = np.where(stays, group, (group + further) % groups)
        members = (clients - group + groups - 1) // groups
        owner = group + groups * rng.integers(members)
        return [np.flatnonzero(owner == client) for client in range(clients)]
