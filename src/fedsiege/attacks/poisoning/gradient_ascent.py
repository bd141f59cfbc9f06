"""Gradient ascent: the global model is pushed up the loss of the examples asked about."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsiege.attacks.poisoning.base import Scene
from fedsiege.attacks.poisoning.probing import Prober, Step, from_all, stepped, targets_of
from fedsiege.registry import register


@register("gradient_ascent")
class GradientAscent(Prober):
    """Send one training step on the examples asked about, with their true labels, turned around.

    The paper's active attack, as a client makes it: whoever trains on one of the examples brings its loss down
    again, the loss of all others stays up. In public code for federated learning it is one step of the honest
    clients' optimiser, times -1 or -15.

    BatchNorm's statistics are not turned around: no gradient leads to them, and a variance driven below zero would
    make the global model's outputs NaN. They go where the step took them.

    Paper: Nasr et al., Comprehensive Privacy Analysis of Deep Learning, IEEE S&P 2019, arXiv 1812.00910
    """

    title: ClassVar[str] = "Gradient ascent"

    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How long what is sent is, next to the step."""
    step: Step = "optimiser"
    """`plain` against the gradient, or, as public code has it, the first step of honest clients' `optimiser`."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Its learning rate; null: the honest clients' of the round."""

    def poison_updates(self, scene: Scene) -> Tensor:
        """The step times -factor, from each attacker [k, d]."""
        step, trained = stepped(scene, targets_of(scene), self.step, self.lr), scene.task.layout.trained
        scene.count("poisoned_updates", len(scene.clients))
        return from_all(scene, torch.cat([-self.factor * step[:trained], step[trained:]]))
