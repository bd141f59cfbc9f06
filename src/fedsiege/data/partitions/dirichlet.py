"""Label skew by Dirichlet draws per class."""

from types import ModuleType
from typing import Annotated, Any

from pydantic import Field

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, deal
from fedsiege.registry import register


@register("dirichlet")
class Dirichlet:
    """For every class, shares of the clients from Dirichlet(alpha): small alpha, unlike clients.

    Paper: Bayesian Nonparametric Federated Learning of Neural Networks (ICML 2019, arXiv 1905.12022).
    """

    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    """Concentration: 0.1 is very uneven, 100 nearly even."""
    min_size: Annotated[int, Field(ge=1)] = 10
    """Examples every client has at least; all shares are drawn again (ten times at most) until it holds."""
    self_balancing: bool = False
    """A client that has more than the average gets none of the classes that follow."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client."""

        def make(flower: ModuleType, number: int) -> Any:
            return flower.DirichletPartitioner(
                num_partitions=clients,
                partition_by="label",
                alpha=self.alpha,
                min_partition_size=self.min_size,
                self_balancing=self.self_balancing,
                shuffle=False,
                seed=number,
            )

        return deal(make, data, clients, seed, "dirichlet")
