"""AGREvader's gray-box attack: descent on own data, ascent on the examples asked about, and misleading labels."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsiege.aggregators.geometry import norms
from fedsiege.attacks.poisoning.base import Scene
from fedsiege.attacks.poisoning.probing import (
    Prober,
    Step,
    from_all,
    mislabelled,
    own_of,
    passed_over,
    targets_of,
)
from fedsiege.registry import register


@register("agrevader_gray")
class AGREvaderGray(Prober):
    """Send a share of honest training, less a pass over the examples asked about, and a share of one that misleads.

    With passes over own data (descent), over the examples asked about with true labels (ascent) and with wrong ones
    (misled), what is sent is `descent` times the first, less the second, and `misled` times the third. The wrong
    labels are those of `shuffles` draws whose pass is farthest from the ascent's. The draws are made once for the
    run, each wrong class as likely; with two classes they are all the same. The public code permutes the labels of
    the examples instead.

    BatchNorm's statistics go where the pass over own data takes them, and are neither subtracted nor scaled, which
    is ours: a variance driven below zero would make the global model's outputs NaN.

    The code begins with rounds of honest training on own data: that warm-up is what the attackers do in the rounds
    before `compromised.first`.

    Paper: Zhang et al., AgrEvader: Poisoning Membership Inference against Byzantine-robust FL, WWW 2023
    """

    title: ClassVar[str] = "AGREvader (gray-box)"

    descent: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Lambda, what the pass over own data is multiplied with; 0.5 against Fang, 0.65 against the median."""
    misled: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.8
    """Mu, what the pass over wrong labels is multiplied with; 0.8 against Fang, 1 against the median."""
    shuffles: Annotated[int, Field(ge=1)] = 5
    """K, among how many draws of wrong labels it chooses."""
    mask: Annotated[int, Field(ge=1)] | None = None
    """How many of the attackers' own examples the pass is over at most, drawn once for the run; null: all."""
    step: Step = "optimiser"
    """Steps: `plain` against the gradient, or of the honest clients' `optimiser`, as public code has them."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Their learning rate; null: the honest clients' of the round."""

    def poison_updates(self, scene: Scene) -> Tensor:
        """The three passes together, from each attacker [k, d]."""
        descent = passed_over(scene, own_of(scene, self.mask), self.step, self.lr)
        ascent = passed_over(scene, targets_of(scene), self.step, self.lr)
        draws = (mislabelled(scene, shuffle) for shuffle in range(self.shuffles))
        misled = torch.stack([passed_over(scene, wrong, self.step, self.lr) for wrong in draws])
        farthest = misled[int(norms(misled, ascent).argmax())]
        row, trained = self.descent * descent - ascent + self.misled * farthest, scene.task.layout.trained
        scene.count("poisoned_updates", len(scene.clients))
        return from_all(scene, torch.cat([row[:trained], descent[trained:]]))
