"""Label skew by blocks of the data sorted by label."""

from types import ModuleType
from typing import Annotated, Any

from pydantic import Field

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, deal
from fedsiege.registry import register


@register("shard")
class Shard:
    """The data sorted by label and cut into blocks, some blocks for every client.

    Paper: Communication-Efficient Learning of Deep Networks (AISTATS 2017, arXiv 1602.05629).
    """

    shards: Annotated[int, Field(ge=1)] | None = 2
    """Blocks per client; null: as many as there are (then `shard_size` is needed)."""
    shard_size: Annotated[int, Field(ge=1)] | None = None
    """Examples per block; null: all examples in equal blocks."""
    keep_incomplete: bool = False
    """Whether the last, smaller block is dealt too."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client."""

        def make(flower: ModuleType, number: int) -> Any:
            return flower.ShardPartitioner(
                num_partitions=clients,
                partition_by="label",
                num_shards_per_partition=self.shards,
                shard_size=self.shard_size,
                keep_incomplete_shard=self.keep_incomplete,
                shuffle=False,
                seed=number,
            )

        return deal(make, data, clients, seed, "shard")
