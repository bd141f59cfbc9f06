"""Label flipping that makes membership visible: a step on wrong labels, and nothing to hide it."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedsiege.attacks.poisoning.base import Scene
from fedsiege.attacks.poisoning.probing import Prober, Step, from_all, mislabelled, stepped
from fedsiege.registry import register


@register("label_flip_mia")
class LabelFlipMIA(Prober):
    """Send one training step on the examples asked about, with wrong labels that are drawn once for the run.

    The vector that AGREvader and FedPoisonMIA cover up, alone: a baseline of ours. Each wrong class is as likely;
    the authors' code of both permutes the labels of the examples instead until none is right.

    Paper: Mo et al., Find a Scapegoat (FedPoisonMIA), ICCV 2025, arXiv 2507.00423
    """

    title: ClassVar[str] = "Label flip (membership)"

    step: Step = "optimiser"
    """`plain` against the gradient, or, as public code has it, the first step of honest clients' `optimiser`."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Its learning rate; null: the honest clients' of the round."""

    def poison_updates(self, scene: Scene) -> Tensor:
        """The step on wrong labels, from each attacker [k, d]."""
        scene.count("poisoned_updates", len(scene.clients))
        return from_all(scene, stepped(scene, mislabelled(scene), self.step, self.lr))
