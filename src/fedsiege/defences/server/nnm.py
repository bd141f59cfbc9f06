"""Nearest-neighbour mixing in front of a rule."""

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from fedsiege.aggregators.base import Bench, Server, Treatment, check_f
from fedsiege.aggregators.choice import minority
from fedsiege.aggregators.geometry import distances2
from fedsiege.defences.server.base import ServerDefence
from fedsiege.defences.server.mixing import mixed
from fedsiege.records import Cohort
from fedsiege.registry import register


@register("nnm")
class NearestNeighbourMixing(ServerDefence):
    """Replace each update by the mean of the n - f updates that are nearest to it, itself among them.

    Honest updates of unlike clients come closer to each other, which is what rules that go by distances or by
    coordinates need. Neighbours at the same distance are taken in order of client number. A client is in as many of
    the n means as it is among the nearest of, and its answer is kept as far as they are: 1 / n of it where only the
    mean that was made for it is taken. Where fewer answers arrive than f allows, f is lowered to the largest that
    n >= 2f + 1 admits, and that is counted.

    With f = 0 every row becomes the mean of all, so there is no neutral setting.

    Paper: Allouah et al., Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity, AISTATS 2023
    """

    title: ClassVar[str] = "Nearest-neighbour mixing"
    neutral: ClassVar[dict[str, int] | None] = None
    proof: ClassVar[str] = "mixed"

    f: Annotated[int, Field(ge=0)] = 1
    """How many clients of a round may be malicious."""

    def check(self, bench: Bench) -> None:
        """Refuse an f that half of the clients reach."""
        check_f("nnm", self.f, minority(bench.cohort), bench.cohort, "n >= 2f + 1")

    def on_cohort(self, cohort: Cohort, server: Server) -> tuple[Cohort, Treatment]:  # noqa: ARG002
        """The cohort with each row mixed, under the numbers and weights of its clients."""
        n = len(cohort.clients)
        f = min(self.f, minority(n))
        nearest = distances2(cohort.updates).argsort(dim=1, stable=True)[:, : n - f]
        members = torch.zeros(n, n, dtype=torch.float64, device=nearest.device).scatter_(1, nearest, 1.0)
        counters = {"rows": float(n), "mixed": float(n if n - f > 1 else 0), "f_lowered": float(f < self.f)}
        treatment = replace(Treatment.plain(n, counters), shares=members.T.cpu() / n)
        return replace(cohort, updates=mixed(cohort.updates, members)), treatment
