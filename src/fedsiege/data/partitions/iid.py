"""Everybody gets a random share of everything."""

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, deal
from fedsiege.registry import register


@register("iid")
class Iid:
    """Random shares of equal size."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client; sizes differ by one at most."""
        return deal(lambda flower, _: flower.IidPartitioner(num_partitions=clients), data, clients, seed, "iid")
