"""Each answer is tried by what the global model would be without it."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsiege.aggregators.base import Bench, Server, Treatment, check_f
from fedsiege.aggregators.choice import minority
from fedsiege.aggregators.geometry import weighted_sum
from fedsiege.defences.server.base import ServerDefence
from fedsiege.defences.server.verdict import judged
from fedsiege.errors import InputError
from fedsiege.records import Cohort, Examples
from fedsiege.registry import register
from fedsiege.task import Task

NEEDS = "fang_lrr_err needs examples of the server's own, to try the model without each answer on: set root"


@register("fang_lrr_err")
class FangLrrErr(ServerDefence):
    """Drop the answers without which the model would have the lowest loss, and those for the lowest error.

    For each answer i the server takes the global model plus the mean of all other answers, and measures its loss
    and its error on examples of its own (`root`). Loss-function-based rejection (LRR) drops the f answers whose
    removal lowers the loss most, error-rate-based rejection (ERR) the f for the error; both together drop what
    either drops, up to 2 f answers. Needs n > 2 f. It costs a mean and an evaluation for each answer.

    The paper measures the impact with the aggregation rule itself; the plain mean, whatever the weights and the
    rule behind it, is a choice of ours, and so is that stale answers are added to the present global model. As
    published, f answers go even where nobody attacks. Of equal figures the lowest client numbers stay. An answer
    whose removal helps no more than any other's never goes, which is ours: few examples tell few errors apart, and
    clients should not go by their numbers. A figure that is not finite is the worst.

    Attackers cover for each other: while two of them each ruin the mean, it is as bad without either.

    Paper: Fang et al., Local Model Poisoning Attacks to Byzantine-Robust Federated Learning, USENIX Security 2020
    """

    title: ClassVar[str] = "LRR and ERR"
    neutral: ClassVar[dict[str, int] | None] = {"f": 0}
    proof: ClassVar[str] = "rejected"

    f: Annotated[int, Field(ge=0)] = 1
    """How many answers each of the two drops; 0 drops nothing."""
    mode: Literal["lrr", "err", "both"] = "both"
    """What is measured: the loss (lrr), the error (err), or both, and what either drops is dropped."""

    def check(self, bench: Bench) -> None:
        """Refuse a server without examples of its own, and n <= 2 f."""
        if self.f == 0:
            return
        if bench.root == 0:
            raise InputError(f"root: got 0; {NEEDS}; expected 1 or more")
        check_f("fang_lrr_err", self.f, minority(bench.cohort), bench.cohort, "n > 2 f")

    def on_cohort(self, cohort: Cohort, server: Server) -> tuple[Cohort, Treatment]:
        """The cohort without the rows that are dropped."""
        n = len(cohort.clients)
        kept, f = torch.ones(n, dtype=torch.bool), min(self.f, minority(n))
        if f:
            if server.root is None or server.task is None or not len(server.root):
                raise InputError(NEEDS)
            if server.start is None:
                raise InputError("fang_lrr_err: got no global model; expected the one that the round began with")
            losses, errors = without_each(cohort.updates, server.start, server.task, server.root)
            if self.mode != "err":
                kept[harmful(losses, f)] = False
            if self.mode != "lrr":
                kept[harmful(errors, f)] = False
        rest, treatment = judged(cohort, kept)
        treatment.counters["f_lowered"] = float(f < self.f)
        return rest, treatment


def without_each(rows: Tensor, start: Tensor, task: Task, examples: Examples) -> tuple[Tensor, Tensor]:
    """Loss and error, [n] float64 each, of the models that rows [n, d] would make without each one of them.

    Args:
        rows: updates, n >= 2.
        start: the global model [d].
        task: what measures.
        examples: what it measures on.

    Returns:
        Both infinite where the loss is not finite.

    """
    n = len(rows)
    figures = torch.full((2, n), torch.inf, dtype=torch.float64)
    for row in range(n):
        # Summed anew for each: the sum of all, less an enormous row, has lost the others.
        shares = torch.full((n,), 1 / (n - 1), dtype=torch.float64)
        shares[row] = 0
        accuracy, loss = task.measure(start + weighted_sum(rows, shares), examples)
        found = torch.tensor([loss, 1 - accuracy], dtype=torch.float64)
        if bool(found.isfinite().all()):
            figures[:, row] = found
    return figures[0], figures[1]


def harmful(without: Tensor, f: int) -> Tensor:
    """Positions of the f answers without which a figure [n] is lowest, those with the highest figure excepted."""
    # From the back, so that of equal figures the last rows go.
    order = without.flip(0).argsort(stable=True)[:f]
    found = len(without) - 1 - order
    return found[without[found] < without.max()]
