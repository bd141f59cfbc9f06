"""Label skew by Dirichlet draws per client, with sizes that are chosen freely."""

from types import ModuleType
from typing import Annotated, Any

from pydantic import Field

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, deal
from fedsiege.errors import InputError
from fedsiege.registry import register


@register("inner_dirichlet")
class InnerDirichlet:
    """For every client, shares of the classes from Dirichlet(alpha), at sizes given or equal.

    Paper: Federated Learning Based on Dynamic Regularization (ICLR 2021, arXiv 2111.04263).
    """

    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    """Concentration: 0.1 is very uneven, 100 nearly even."""
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Examples per client; empty: as many as there are, in equal parts."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client."""
        sizes = list(self.sizes) or [len(data.train) // clients] * clients
        if len(sizes) != clients:
            raise InputError(f"partition.sizes: got {len(sizes)} sizes; expected {clients}, one per client")

        def make(flower: ModuleType, number: int) -> Any:
            return flower.InnerDirichletPartitioner(
                partition_sizes=sizes, partition_by="label", alpha=self.alpha, shuffle=False, seed=number
            )

        return deal(make, data, clients, seed, "inner_dirichlet")
