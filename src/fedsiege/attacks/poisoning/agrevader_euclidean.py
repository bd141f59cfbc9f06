"""AGREvader within bounds: sent only where it lies no farther from benign updates than they do from each other."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsiege.aggregators.geometry import distances2
from fedsiege.attacks.poisoning.base import Knowledge, Scene
from fedsiege.attacks.poisoning.probing import (
    Prober,
    Step,
    from_all,
    mislabelled,
    own_of,
    passed_over,
    references,
    stepped,
)
from fedsiege.records import Counters
from fedsiege.registry import register


@register("agrevader_euclidean")
class AGREvaderEuclidean(Prober):
    """Send AGREvader's update where its largest distance to a benign one is no larger than any between two of them.

    Elsewhere, the cover alone is sent: one honest pass over the attackers' own data, which is no poisoned update.
    AGREvader's own code holds no distance; this is the baseline that FedPoisonMIA is compared with, rebuilt from
    its authors' public code. Distances run over all float state. With fewer than two updates to go by there is no
    bound, which `no_reference` counts, and the cover is sent.

    An attack that never finds itself within the bound has poisoned nothing: see `within_share`.

    Paper: Mo et al., Find a Scapegoat (FedPoisonMIA), ICCV 2025, arXiv 2507.00423
    """

    title: ClassVar[str] = "AGREvader (Euclidean)"

    cover: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Lambda, what the pass over own data is multiplied with."""
    mask: Annotated[int, Field(ge=1)] | None = None
    """How many of the attackers' own examples the pass is over at most, drawn once for the run; null: all."""
    step: Step = "optimiser"
    """Steps: `plain` against the gradient, or of the honest clients' `optimiser`, as public code has them."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Their learning rate; null: the honest clients' of the round."""
    knowledge: Knowledge = "full"
    """Whose updates it goes by: `full` the honest clients', `partial` what the attackers would send themselves."""

    def poison_updates(self, scene: Scene) -> Tensor:
        """The covered step, or the cover alone, from each attacker [k, d]."""
        rows = references(scene)
        cover = passed_over(scene, own_of(scene, self.mask), self.step, self.lr)
        row = stepped(scene, mislabelled(scene), self.step, self.lr) + self.cover * cover
        hidden = within(row, rows)
        scene.count("rounds")
        scene.count("within", float(hidden))
        scene.count("fallbacks", float(not hidden))
        scene.count("no_reference", float(len(rows) < 2))
        scene.count("poisoned_updates", len(scene.clients) if hidden else 0)
        return from_all(scene, row if hidden else cover)

    def told(self, counters: Counters) -> Counters:
        """What was done, and in which share of its rounds the bound held, or the cover alone was sent."""
        told, rounds = dict(counters), counters.get("rounds", 0)
        for counter, share in (("within", "within_share"), ("fallbacks", "fallback_share")):
            told[share] = told.pop(counter, 0) / rounds if rounds else 0
        return told


def within(row: Tensor, rows: Tensor) -> bool:
    """Whether a vector [d] is no farther from any of rows [n, d] than two of them from each other.

    False for fewer than two rows, which set no bound, and where something is not finite.
    """
    if len(rows) < 2:
        return False
    found = distances2(torch.cat([rows, row[None]]))
    return bool(found[-1, :-1].max() <= found[:-1, :-1].max())
