"""Label skew by a fixed number of classes per client."""

from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, deal
from fedsiege.registry import register


@register("pathological")
class Pathological:
    """Every client has the same number of classes; a class is cut evenly among those who have it.

    Paper: Federated Learning on Non-IID Data Silos: An Experimental Study (ICDE 2022, arXiv 2102.02079).
    """

    classes_per_client: Annotated[int, Field(ge=1)] = 2
    """Classes every client has."""
    assignment: Literal["first-deterministic", "deterministic", "random"] = "first-deterministic"
    """Which: client k has class k and random ones, or classes k, k + 1 ..., or only random ones."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client."""

        def make(flower: ModuleType, number: int) -> Any:
            return flower.PathologicalPartitioner(
                num_partitions=clients,
                partition_by="label",
                num_classes_per_partition=self.classes_per_client,
                class_assignment_mode=self.assignment,
                shuffle=False,
                seed=number,
            )

        return deal(make, data, clients, seed, "pathological")
