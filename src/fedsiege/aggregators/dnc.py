"""Divide and conquer."""

import math
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsiege.aggregators.base import Aggregator, Bench, Scope, Server, Treatment, check_f
from fedsiege.aggregators.choice import lowest, minority, only
from fedsiege.aggregators.geometry import weighted_sum
from fedsiege.records import Cohort, Counters
from fedsiege.registry import register

ALIKE = 1e-9
"""Eigenvalues this close to the largest, relatively, are the largest: their vectors are then chance."""


@register("dnc")
class DnC(Aggregator):
    """The mean of the updates that do not stand out along the direction in which the updates vary most.

    From each of several random draws of coordinates: the updates less their mean, their products with the top right
    singular vector, squared; the ceil(c f) largest are dropped. The updates that no draw drops are averaged. Where
    every update is dropped by some draw, those dropped by the fewest are averaged, which is a choice of ours. There
    is no bound that holds for any attack: one that is spread over directions, or sits in coordinates that are not
    drawn, gets in. Clients count alike, whatever their numbers of examples.

    Paper: Shejwalkar and Houmansadr, Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses
    for Federated Learning, NDSS 2021
    """

    draws: ClassVar[bool] = True

    f: Annotated[int, Field(ge=0)] = 1
    """How many malicious clients it expects."""
    c: Annotated[float, Field(gt=0)] = 1.0
    """ceil(c f) updates are dropped in each draw."""
    niters: Annotated[int, Field(ge=1)] = 5
    """How many draws there are."""
    coordinates: Annotated[int, Field(ge=1)] = 10_000
    """How many coordinates a draw takes; all, where the model has no more."""
    scope: Scope = "all"
    """Where coordinates are drawn from: all float state, or trained parameters."""

    def __call__(self, cohort: Cohort, server: Server) -> tuple[Tensor, Treatment]:
        """The mean [d] of the updates that no draw dropped; all other rows are rejected."""
        n = len(cohort.updates)
        f = min(self.f, minority(n))
        # 1.1 * 10 is a little more than 11.
        stay = n - min(math.ceil(self.c * f - 1e-9), n - 1)
        rows = server.scoped(cohort.updates, self.scope)
        stayed = torch.zeros(n, dtype=torch.float64)
        for _ in range(self.niters):
            scores = outlying(self.drawn(rows, server.rng))
            stayed += only(lowest(scores, stay, cohort.clients), n)
        kept = (stayed == stayed.max()).double()
        counters: Counters = {
            "rows": n,
            "rejected": n - int(kept.sum()),
            "none_stayed": int(stayed.max() < self.niters),
            "f_lowered": int(f < self.f),
        }
        return weighted_sum(cohort.updates, kept / kept.sum()), Treatment(kept, kept.new_ones(n), counters)

    def drawn(self, rows: Tensor, rng: np.random.Generator) -> Tensor:
        """The values [n, coordinates] of rows [n, d] at some coordinates; the rows where they have no more."""
        if rows.shape[1] <= self.coordinates:
            return rows
        places = rng.choice(rows.shape[1], self.coordinates, replace=False, shuffle=False)
        return rows[:, torch.as_tensor(np.sort(places), device=rows.device)]

    def check(self, bench: Bench) -> None:
        """n > 2 f."""
        check_f("dnc", self.f, minority(bench.cohort), bench.cohort, "n > 2 f")


def outlying(sample: Tensor) -> Tensor:
    """Squared products [n] of rows [n, b], less their mean, with their top right singular vector, up to a factor.

    They are the top left singular vector's squares, times the squared singular value. Where several singular
    vectors share the largest value, the products with all of them count.
    """
    values = sample.double()
    values = values / values.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    centred = values - values.mean(0)
    found, vectors = torch.linalg.eigh(centred @ centred.T)
    top = found >= found[-1] * (1 - ALIKE)
    squared: Tensor = found[-1].clamp(min=0) * vectors[:, top].square().sum(1)
    return squared
