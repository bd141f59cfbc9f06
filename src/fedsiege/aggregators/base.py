"""What an aggregation rule is: a function of a cohort, or a sum that never holds the matrix of updates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsiege.errors import InputError
from fedsiege.records import Cohort, Counters, Examples, Layout
from fedsiege.task import Task

Scope = Literal["all", "trained"]
"""What norms and distances run over: all float state, or trained parameters without BatchNorm's statistics."""

Property = Literal["permutation", "translation", "unanimity"]
"""What a rule may promise.

permutation: the order of the clients decides nothing. translation: the same vector added to every update is added
to the result. unanimity: where all updates are equal, the result is that update.
"""


@dataclass(frozen=True, slots=True)
class Treatment:
    """What became of each row of a cohort, and what a rule did.

    Args:
        kept: [n] float64, the share of a row that had a say in the result: 0 is rejected, 1 taken whole. Rules that
            weigh clients give the weight relative to the largest possible one, rules that go by coordinates the
            share of coordinates at which the row was used.
        scale: [n] float64, what the row was multiplied with; 1 where it was not clipped.
        counters: what the rule did, for the report; they add up over rounds.
        shares: [n, n'] float64, how much of each row goes on in each row of the outgoing cohort, relative to the
            most that any row could: zeros for a row that goes on in none. None: rows go on by their clients'
            numbers.

    """

    kept: Tensor
    scale: Tensor
    counters: Counters = field(default_factory=dict)
    shares: Tensor | None = None

    @classmethod
    def plain(cls, n: int, counters: Counters) -> "Treatment":
        """Every one of n rows taken as it is."""
        return cls(torch.ones(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64), counters)


@dataclass(slots=True)
class Server:
    """What the server knows while it combines the answers of a round, for one rule or defence.

    Args:
        number: the round, from 1.
        rng: the component's own stream of this round.
        start: the global model [d] that the round began with; None where a rule is applied to a plain matrix.
        layout: where each tensor of the model lies.
        task: the resident model and its loss.
        root: examples of the server's own that no client has, where it has any.
        train: trains the global model on examples as a client of this round would, and returns the update [d].
        memory: what the component kept of earlier rounds, by name; assign another mapping to change it.

    """

    number: int = 1
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    start: Tensor | None = None
    layout: Layout | None = None
    task: Task | None = None
    root: Examples | None = None
    train: Callable[[Examples], Tensor] | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def scoped(self, rows: Tensor, scope: Scope) -> Tensor:
        """The columns of rows [n, d] that `scope` names, without a copy; all where there is no layout."""
        return rows if scope == "all" or self.layout is None else rows[:, : self.layout.trained]


@dataclass(frozen=True, slots=True)
class Bench:
    """What is known of a run before the first round, for a rule or a server's defence to check itself against.

    Args:
        cohort: n, how many clients answer a round, or how many rows the server's defences before it leave of them.
        clients: K, all clients of the federation.
        root: how many examples the server has of its own.
        layout: of the model.
        head: whether the model's last layer makes its logits.
        classes: C, of the task.
        rounds: T, of the federation.

    """

    cohort: int
    clients: int
    root: int
    layout: Layout
    head: bool
    classes: int
    rounds: int


class Aggregator:
    """A rule that reads the whole cohort.

    Rules work on updates (`local - start`), never on whole models, and count distances in float64: on whole
    models in float32 the differences between clients drown in the models' own size.
    """

    promises: ClassVar[frozenset[Property]] = frozenset({"permutation", "translation", "unanimity"})
    """What holds for every cohort; the conformance tests hold a rule to it, and show where the others fail."""
    draws: ClassVar[bool] = False
    """Whether it draws random numbers."""
    follows: ClassVar[bool] = False
    """Whether it compares a client's answers of several rounds, and so needs rows that stay the same clients'."""

    def __call__(self, cohort: Cohort, server: Server) -> tuple[Tensor, Treatment]:
        """The combined update [d], in the type of the rows, and what became of each row."""
        raise NotImplementedError

    def withstands(self, n: int) -> int:  # noqa: ARG002 - for those who withstand any
        """With how many of n rows replaced by anything at all the result stays within reach of the others."""
        return 0

    def check(self, bench: Bench) -> None:
        """Refuse, before the first round, what this rule cannot do; InputError says why."""


def check_f(name: str, f: int, most: int, n: int, bound: str) -> None:
    """InputError where a rule is to withstand more clients than it can.

    Args:
        name: the rule's.
        f: how many it is to withstand.
        most: how many it can, of n.
        n: the clients of a round.
        bound: the condition, in symbols.

    """
    if f > most:
        raise InputError(
            f"f: got {f}; {name} needs {bound}, and {n} clients answer a round; expected {max(most, 0)} at most"
        )


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

    def finish(self, state: Sum) -> tuple[Tensor, Treatment]:
        """The weighted mean [d], in the type of the rows."""
        return (state.total / state.weight).to(state.dtype), Treatment.plain(state.rows, {"rows": state.rows})

    def __call__(self, cohort: Cohort, server: Server) -> tuple[Tensor, Treatment]:  # noqa: ARG002
        """The weighted mean of the cohort's rows, in the same order of additions as row by row."""
        state = self.begin(cohort.updates[0])
        for row, weight in zip(cohort.updates, cohort.weights.tolist(), strict=True):
            self.add(state, row, weight)
        return self.finish(state)
