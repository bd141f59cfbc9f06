"""The angular trimmed mean."""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsiege.aggregators.base import Aggregator, Bench, Property, Scope, Server, Treatment
from fedsiege.aggregators.choice import minority, only
from fedsiege.aggregators.geometry import angles, norms, weighted_sum
from fedsiege.errors import InputError
from fedsiege.records import Cohort, Counters
from fedsiege.registry import register

Statistic = Literal["mean", "median"]
"""What an update's angles to the others are summed up by."""

ALIKE = 1e-5
"""Angles this close to each other, in degrees, are equal: near 0 and 180 the arc cosine keeps half the digits."""


@register("angular_trimmed_mean")
class AngularTrimmedMean(Aggregator):
    """The mean of the updates without the 2 b whose mean angle to all others is largest.

    Needs n > 2 b. Reconstructed from accounts of the paper and from the authors' code, in which b is 2 of about
    eight updates a round. Clients count alike, whatever their numbers of examples, which is a choice of ours; so
    are the 90 degrees between a row of zeros and any other, and that of equal angles the lowest client numbers are
    kept. The paper bounds the squared distance to the true mean of n - m honest updates of variance sigma^2 by
    2 (n - m) (b + 1) sigma^2 / (n - b - m)^2; we take it to be for m <= b attackers.

    Only directions are looked at: one attacker that points the way of the others takes the result as far as it
    likes, unless lengths are bounded before (`norm_bounding`). Attackers that send copies of one vector lie at
    angle 0 to each other, which lowers the mean for each of them: with two of ten they often stay. Their `median`
    angle is one to an honest update for as long as they are fewer than half.

    Paper: Mo et al., Find a Scapegoat: Poisoning Membership Inference Attack and Defense to Federated Learning,
    ICCV 2025, arXiv 2507.00423
    """

    promises: ClassVar[frozenset[Property]] = frozenset({"permutation", "unanimity"})

    trim: Annotated[int, Field(ge=0)] = 1
    """b: twice as many updates are dropped. 0 gives the plain mean."""
    statistic: Statistic = "mean"
    """What an update's angles to the others are summed up by: their mean, as published, or their median, which
    copies of one vector cannot lower (ours)."""
    scope: Scope = "all"
    """What angles run over: all float state, or trained parameters without BatchNorm's statistics."""

    def __call__(self, cohort: Cohort, server: Server) -> tuple[Tensor, Treatment]:
        """The mean [d] of the rows that are kept; all other rows are rejected."""
        rows, n = cohort.updates, len(cohort.updates)
        trim = min(self.trim, minority(n))
        scoped = server.scoped(rows, self.scope)
        chosen = kept_by_angle(scoped, trim, self.statistic, cohort.clients)
        kept = only(chosen, n)
        counters: Counters = {"rows": n, "rejected": 2 * trim, "trim_lowered": int(trim < self.trim)}
        return weighted_sum(rows, kept / len(chosen)), Treatment(kept, kept.new_ones(n), counters)

    def check(self, bench: Bench) -> None:
        """n > 2 b."""
        n = bench.cohort
        if self.trim > minority(n):
            raise InputError(
                f"trim: got {self.trim}; angular_trimmed_mean drops twice as many updates, and {n} clients answer "
                f"a round; expected {minority(n)} at most"
            )


def angles_to_others(rows: Tensor, statistic: Statistic = "mean") -> Tensor:
    """The mean or median angle [n] of each of rows [n, d] to all others, in degrees and float64, on the CPU.

    A single row has 0. A row with an entry that is not finite has infinity, and counts for no other. The median of
    an even number of angles is the mean of the two in the middle.
    """
    finite = norms(rows).isfinite()
    if not bool(finite.all()):
        found = torch.full((len(rows),), math.inf, dtype=torch.float64)
        found[finite.cpu()] = angles_to_others(rows[finite], statistic)
        return found
    n = len(rows)
    if n < 2:
        return torch.zeros(n, dtype=torch.float64)
    itself = torch.eye(n, dtype=torch.bool)
    others = angles(rows).cpu()[~itself].view(n, n - 1)
    if statistic == "mean":
        return others.mean(1)
    ordered = others.sort(1).values
    return (ordered[:, (n - 2) // 2] + ordered[:, (n - 1) // 2]) / 2


def kept_by_angle(
    rows: Tensor, trim: int, statistic: Statistic = "mean", clients: Sequence[int] | None = None
) -> Tensor:
    """Positions [n - 2 b], rising, of the rows that are not dropped.

    Args:
        rows: [n, d].
        trim: b; InputError where n <= 2 b.
        statistic: of the angles to others.
        clients: [n], the clients' numbers, of which the lowest are kept among equal angles; positions if left out.

    """
    n = len(rows)
    if not 0 <= 2 * trim < n:
        raise InputError(f"trim: got {trim} for {n} rows; expected 0 to {minority(n)}")
    left, numbers = n - 2 * trim, range(n) if clients is None else clients
    found = angles_to_others(rows, statistic)
    bound = found.kthvalue(left).values
    sure = found < bound - ALIKE
    equal = (~sure & (found <= bound + ALIKE)).nonzero()[:, 0].tolist()
    sure[sorted(equal, key=lambda row: numbers[row])[: left - int(sure.sum())]] = True
    return sure.nonzero()[:, 0]
