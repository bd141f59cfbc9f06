"""Random shares of unlike size."""

from typing import Annotated

from pydantic import Field

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, deal
from fedsiege.errors import InputError
from fedsiege.registry import register


@register("size")
class Size:
    """Random shares of the sizes given; what is left over belongs to nobody."""

    sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Examples per client."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client."""
        if len(self.sizes) != clients:
            raise InputError(f"partition.sizes: got {len(self.sizes)} sizes; expected {clients}, one per client")
        return deal(lambda flower, _: flower.SizePartitioner(list(self.sizes)), data, clients, seed, "size")


@register("linear")
class Linear:
    """Random shares whose size grows with the client's number: 1, 2, 3 ... parts."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client."""
        return deal(lambda flower, _: flower.LinearPartitioner(clients), data, clients, seed, "linear")


@register("square")
class Square:
    """Random shares whose size grows with the square of the client's number: 1, 4, 9 ... parts."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client."""
        return deal(lambda flower, _: flower.SquarePartitioner(clients), data, clients, seed, "square")


@register("exponential")
class Exponential:
    """Random shares whose size grows exponentially with the client's number: e, e^2, e^3 ... parts."""

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        """Rows per client."""
        return deal(lambda flower, _: flower.ExponentialPartitioner(clients), data, clients, seed, "exponential")
