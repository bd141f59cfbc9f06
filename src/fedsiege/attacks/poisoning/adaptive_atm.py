"""The adaptive attack on the angular trimmed mean: wrong labels, averaged with benign updates until it is kept."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsiege.aggregators.angular_trimmed_mean import Statistic, kept_by_angle
from fedsiege.aggregators.choice import minority
from fedsiege.aggregators.geometry import angles
from fedsiege.attacks.poisoning.base import Knowledge, Plot, Scene
from fedsiege.attacks.poisoning.probing import (
    SHARDS,
    Prober,
    Step,
    from_all,
    mislabelled,
    references,
    stepped,
)
from fedsiege.errors import InputError
from fedsiege.records import Counters
from fedsiege.registry import register


@register("adaptive_atm")
class AdaptiveATM(Prober):
    """Send a step on wrong labels, moved halfway to the benign update at the largest angle until ATM would keep it.

    The attackers know the rule: the angular trimmed mean (ATM) drops the 2 `trim` updates whose mean angle to the
    others is largest. While it would drop one of theirs, of the benign updates and as many copies of theirs as
    there are attackers, they average it with the benign update that it makes the largest angle with. Angles run
    over all float state.

    Rebuilt from the authors' public code, which makes this vector and returns without sending it. There the rule
    sees one copy, and the loop has no limit. With no update to go by, the step is sent as it is, which
    `no_reference` counts; where there are too few to drop 2 `trim`, fewer are dropped: `trim_lowered` counts it.

    Paper: Mo et al., Find a Scapegoat (FedPoisonMIA), ICCV 2025, arXiv 2507.00423
    """

    title: ClassVar[str] = "Adaptive to ATM"

    trim: Annotated[int, Field(ge=0)] = 1
    """b: the rule is expected to drop 2 b updates."""
    statistic: Statistic = "mean"
    """Which of the rule's two ways to sum up angles it is expected to have."""
    iterations: Annotated[int, Field(ge=1)] = 50
    """Averagings after which the update is sent even if the rule would drop it, which `unsettled` counts."""
    step: Step = "optimiser"
    """`plain` against the gradient, or, as public code has it, the first step of honest clients' `optimiser`."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Its learning rate; null: the honest clients' of the round."""
    knowledge: Knowledge = "full"
    """Whose updates it goes by: `full` the honest clients', `partial` what the attackers would send themselves."""

    def check(self, plot: Plot) -> None:
        """Refuse what no attack of this kind can do, and to drop more updates than the attackers compare."""
        super().check(plot)
        n = plot.cohort if self.knowledge == "full" else 2 * len(plot.compromised)
        if self.knowledge == "partial" and len(plot.compromised) == 1:
            n = SHARDS + 1
        if 2 * self.trim >= n:
            raise InputError(
                f"trim: got {self.trim}, so that {2 * self.trim} of the {n} updates that the attackers compare are "
                f"dropped; expected {minority(n)} at most"
            )

    def poison_updates(self, scene: Scene) -> Tensor:
        """The averaged step, from each attacker [k, d]."""
        rows, row = references(scene), stepped(scene, mislabelled(scene), self.step, self.lr)
        copies = len(scene.clients)
        trim = min(self.trim, minority(len(rows) + copies))
        halvings, stands_out = 0, dropped(row, rows, copies, trim, self.statistic)
        while stands_out and halvings < self.iterations:
            row = (row + rows[farthest(row, rows)]) / 2
            halvings, stands_out = halvings + 1, dropped(row, rows, copies, trim, self.statistic)
        scene.count("rounds")
        scene.count("halvings", halvings)
        scene.count("unsettled", float(stands_out))
        scene.count("no_reference", float(not len(rows)))
        scene.count("trim_lowered", float(trim < self.trim))
        scene.count("poisoned_updates", copies)
        return from_all(scene, row)

    def told(self, counters: Counters) -> Counters:
        """What was done; how often the step was averaged with a benign update, on average over rounds of attack."""
        told, rounds = dict(counters), counters.get("rounds", 0)
        told["mean_halvings"] = told.pop("halvings", 0) / rounds if rounds else 0
        return told


def dropped(row: Tensor, rows: Tensor, copies: int, trim: int, statistic: Statistic = "mean") -> bool:
    """Whether the rule would drop a copy of a vector [d], among rows [n, d] and all its copies.

    Of equal angles those of the copies count as larger: attackers do not know whose updates the rule prefers. Among
    no rows nothing is dropped.
    """
    if not len(rows):
        return False
    kept = kept_by_angle(torch.cat([rows, row.expand(copies, -1)]), trim, statistic)
    return int((kept >= len(rows)).sum()) < copies


def farthest(row: Tensor, rows: Tensor) -> int:
    """Which of rows [n, d] makes the largest angle with a vector [d]; the first of several."""
    return int(angles(torch.cat([rows, row[None]]))[-1, :-1].argmax())
