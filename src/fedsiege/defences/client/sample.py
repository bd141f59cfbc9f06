"""Data sampling: train on a part of the data in each epoch."""

import math
from typing import Annotated, ClassVar

from pydantic import Field

from fedsiege.defences.client.base import ClientDefence, Clients, Ground, Part, Turn
from fedsiege.errors import InputError
from fedsiege.records import Counters
from fedsiege.registry import register


@register("sample")
class Sample(ClientDefence):
    """End each local epoch after a share of its shuffled batches.

    Of an epoch's n batches the first int(share * n) are trained, others in every epoch. Published shares: 0.1 to 1
    (FedMIA). Where that leaves no batch, FedMIA's code trains on all of them; here a share that does so on all of a
    client's data is refused. Where another defence leaves it fewer batches in a round, one is trained, if there is.

    Paper: Zhu et al., FedMIA, CVPR 2025, arXiv 2402.06289, section 5.3
    """

    title: ClassVar[str] = "Data sampling"
    neutral: ClassVar[dict[str, float] | None] = {"share": 1.0}
    proof: ClassVar[str] = "left_out"

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of an epoch's batches that is trained; 1 trains all."""
    clients: Clients = "all"
    """Who uses it: all, a client's number or a list of numbers."""

    def check(self, ground: Ground) -> None:
        """Refuse a share that leaves a client without a step."""
        for client in ground.using:
            steps = ground.steps(client)
            if int(self.share * steps) == 0:
                raise InputError(
                    f"share: got {self.share:g}, which leaves client {client} none of the {_counted(steps)} of an "
                    f"epoch; expected {_smallest(steps):g} or more, or smaller batches"
                )

    def on_epoch(self, parts: list[Part], turn: Turn) -> list[Part]:
        """The first steps of the epoch's order, which is shuffled anew every epoch."""
        kept = min(len(parts), max(1, int(self.share * len(parts))))
        turn.count("steps", kept)
        turn.count("left_out", len(parts) - kept)
        return parts[:kept]

    def told(self, counters: Counters) -> Counters:
        """Steps trained and left out, and the share of steps trained."""
        total = counters.get("steps", 0) + counters.get("left_out", 0)
        return {**counters, "trained_share": counters.get("steps", 0) / total if total else 0.0}


def _counted(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _smallest(steps: int) -> float:
    """The smallest share of four decimals that leaves one step."""
    return math.ceil(10_000 / steps) / 10_000
