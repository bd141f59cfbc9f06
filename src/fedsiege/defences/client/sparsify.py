"""Gradient sparsification: only the largest entries of the upload."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsiege.defences.client.base import ClientDefence, Clients, Ground, Turn, means
from fedsiege.errors import InputError
from fedsiege.records import Counters
from fedsiege.registry import register


@register("sparsify")
class Sparsify(ClientDefence):
    """Keep the largest entries of each tensor's update and set the others to zero.

    Of a tensor with n entries those int(n * (1 - share)) stay that are largest in absolute value, and with them any
    that equal the smallest of these; tensors of few entries, which hold biases and norms, stay whole. Published
    shares: 0.1 to 0.99 (FedMIA), 0.1 and 0.2 (CoFedMID's GradSparse, which says nothing of small tensors).
    FedMIA's code takes the losses of its attacks from the model before this; here the model that is attacked is the
    one that the server receives.

    Paper: Zhu et al., FedMIA, CVPR 2025, arXiv 2402.06289, section 5.3 (after Gupta and Raskar, 2018)
    """

    title: ClassVar[str] = "Sparsification"
    neutral: ClassVar[dict[str, float] | None] = {"share": 0.0}
    proof: ClassVar[str] = "zeroed"

    share: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of each tensor's entries that is set to zero; 0 keeps all."""
    spare: Annotated[int, Field(ge=0)] = 1000
    """Tensors of up to this many entries are left alone."""
    clients: Clients = "all"
    """Who uses it: all, a client's number or a list of numbers."""

    def check(self, ground: Ground) -> None:
        """Refuse a model whose tensors are all small enough to be left alone."""
        layout = ground.task.layout
        most = max(size for size, kind in zip(layout.sizes, layout.kinds, strict=True) if kind == "trained")
        if self.share > 0 and most <= self.spare:
            raise InputError(
                f"spare: got {self.spare}, which leaves every tensor of the model alone; the largest has {most} "
                f"entries: expected less than {most}"
            )

    def on_update(self, update: Tensor, turn: Turn) -> Tensor:
        """The update [d] with the small entries of its trained tensors at zero; buffers stay as they are."""
        layout = turn.task.layout
        sparse = update.clone()
        for (_, place), kind in zip(layout.slices(), layout.kinds, strict=True):
            if kind == "trained" and place.stop - place.start > self.spare:
                sparse[place] = largest(update[place], self.share)
        trained = layout.trained
        dropped = update[:trained] - sparse[:trained]
        turn.count("updates")
        turn.count("zeroed", int(dropped.count_nonzero()) / trained)
        turn.count("update_norm", float(update[:trained].norm()))
        turn.count("dropped_norm", float(dropped.norm()))
        return sparse

    def told(self, counters: Counters) -> Counters:
        """Mean share of the trained coordinates that were zeroed; mean norms of updates and of what was dropped."""
        return means(counters, "zeroed", "update_norm", "dropped_norm")


def largest(entries: Tensor, share: float) -> Tensor:
    """The entries [n] with all but the int(n * (1 - share)) largest at zero; ties with the smallest kept stay."""
    keep = int(len(entries) * (1 - share))
    if keep == 0:
        return torch.zeros_like(entries)
    sizes = entries.abs()
    threshold = sizes.kthvalue(len(entries) - keep + 1).values
    return torch.where(sizes < threshold, 0, entries)
