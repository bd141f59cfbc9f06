"""What an aggregation rule is: a function of a cohort, or a sum that never holds the matrix of updates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsiege.records import Cohort, Counters


class Aggregator:
    """A rule that reads the whole cohort.

    Rules work on updates (`local - start`), never on whole models, and count distances in float64: on whole
    models in float32 the differences between clients drown in the models' own size.
    """

    def __call__(self, cohort: Cohort) -> tuple[Tensor, Counters]:
        """The combined update [d] and what the rule did."""
        raise NotImplementedError


@dataclass(slots=True)
class Sum:
    """The running weighted sum of a linear rule: total [d] float64, the rows' type, weight, rows."""

    total: Tensor
    dtype: torch.dtype
    weight: float = 0.0
    rows: int = 0


class LinearAggregator(Aggregator):
    """A weighted mean with weights known row by row; memory does not grow with the number of clients."""

    def weigh(self, weight: float) -> float:
        """The weight of a row of a client with `weight` examples."""
        raise NotImplementedError

    def begin(self, like: Tensor) -> Sum:
        """An empty sum for rows shaped like this one."""
        return Sum(torch.zeros_like(like, dtype=torch.float64), like.dtype)

    def add(self, state: Sum, row: Tensor, weight: float) -> None:
        """Take one client's update [d]."""
        share = self.weigh(weight)
        state.total.add_(row, alpha=share)
        state.weight += share
        state.rows += 1

    def finish(self, state: Sum) -> tuple[Tensor, Counters]:
        """The weighted mean [d], in the type of the rows."""
        return (state.total / state.weight).to(state.dtype), {"rows": state.rows}

    def __call__(self, cohort: Cohort) -> tuple[Tensor, Counters]:
        """The weighted mean of the cohort's rows, in the same order of additions as row by row."""
        state = self.begin(cohort.updates[0])
        for row, weight in zip(cohort.updates, cohort.weights.tolist(), strict=True):
            self.add(state, row, weight)
        return self.finish(state)
