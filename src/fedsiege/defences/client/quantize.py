"""Quantisation of the upload to a few levels per tensor."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedsiege.defences.client.base import ClientDefence, Clients, Turn, means
from fedsiege.records import Counters
from fedsiege.registry import register


@register("quantize")
class Quantize(ClientDefence):
    """Round each tensor's update down to evenly spaced levels between its smallest and largest entry.

    An entry u becomes min + floor((u - min) / step) * step with step = (max - min) / 2^bits, as in FedMIA's code:
    rounding down moves every tensor by half a step on average, and the largest entry has a level of its own. A
    tensor whose entries are all equal stays as it is. Published: 1 to 10 bits (FedMIA's code; not in the paper's
    comparison). That code takes the losses of its attacks from the model before this; here the model that is
    attacked is the one that the server receives.

    Paper: code of Zhu et al., FedMIA, CVPR 2025, arXiv 2402.06289
    """

    title: ClassVar[str] = "Quantisation"
    neutral: ClassVar[dict[str, int | None] | None] = {"bits": None}
    proof: ClassVar[str] = "changed"

    bits: Annotated[int, Field(ge=1, le=24)] | None = 8
    """Binary digits of a level's number; null leaves the update as it is."""
    clients: Clients = "all"
    """Who uses it: all, a client's number or a list of numbers."""

    def on_update(self, update: Tensor, turn: Turn) -> Tensor:
        """The update [d] with its trained tensors on levels; buffers stay as they are."""
        if self.bits is None:
            return update
        layout = turn.task.layout
        coarse = update.clone()
        for (_, place), kind in zip(layout.slices(), layout.kinds, strict=True):
            if kind == "trained":
                coarse[place] = on_levels(update[place], self.bits)
        error = (coarse - update)[: layout.trained]
        turn.count("updates")
        turn.count("changed", float(bool(error.any())))
        turn.count("update_norm", float(update[: layout.trained].norm()))
        turn.count("error_norm", float(error.norm()))
        return coarse

    def told(self, counters: Counters) -> Counters:
        """How many updates changed; mean norms of updates and of the rounding error."""
        return means(counters, "update_norm", "error_norm")


def on_levels(entries: Tensor, bits: int) -> Tensor:
    """The entries [n], each rounded down to one of the 2^bits + 1 levels from the smallest to the largest."""
    low, high = entries.aminmax()
    step = (high - low) / 2**bits
    if step == 0:
        return entries
    rounded: Tensor = low + ((entries - low) / step).floor() * step
    return rounded
