"""Federated averaging."""

from fedsiege.aggregators.base import LinearAggregator
from fedsiege.registry import register


@register("fedavg")
class FedAvg(LinearAggregator):
    """The mean of the clients' updates, weighted by their numbers of examples.

    Paper: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017.
    """

    weighted: bool = True
    """Weigh each client by its number of examples; false gives every client the same weight."""

    def weigh(self, weight: float) -> float:
        """The number of examples, or 1 for an unweighted mean."""
        return weight if self.weighted else 1.0
