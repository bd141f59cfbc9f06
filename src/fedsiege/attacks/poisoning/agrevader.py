"""AGREvader: a step on wrong labels, behind a share of honest training."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedsiege.attacks.poisoning.base import Scene
from fedsiege.attacks.poisoning.probing import Prober, Step, from_all, mislabelled, own_of, passed_over, stepped
from fedsiege.registry import register


@register("agrevader")
class AGREvader(Prober):
    """Send a step on wrong labels of the examples asked about, and a share of a pass over the attackers' own data.

    The black-box attack as its public code has it: `cover` is set by hand, and no distance is held. Wrong labels
    are drawn once for the run, each as likely; the code permutes the labels of the examples instead. The code
    begins with 30 rounds in which the attacker trains on the examples asked about, rightly labelled, which makes
    members of them. Here it trains on its own data as long: in the rounds before `compromised.first` it is honest.

    Paper: Zhang et al., AgrEvader: Poisoning Membership Inference against Byzantine-robust FL, WWW 2023
    """

    title: ClassVar[str] = "AGREvader"

    cover: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    """Lambda, what the pass over own data is multiplied with; the code's default is 0.5, its settings have 0.2."""
    mask: Annotated[int, Field(ge=1)] | None = None
    """How many of the attackers' own examples the pass is over at most, drawn once for the run; null: all."""
    step: Step = "optimiser"
    """Steps: `plain` against the gradient, or of the honest clients' `optimiser`, as public code has them."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Their learning rate; null: the honest clients' of the round."""

    def poison_updates(self, scene: Scene) -> Tensor:
        """The step, and the cover of it, from each attacker [k, d]."""
        flip = stepped(scene, mislabelled(scene), self.step, self.lr)
        cover = passed_over(scene, own_of(scene, self.mask), self.step, self.lr)
        scene.count("poisoned_updates", len(scene.clients))
        return from_all(scene, flip + self.cover * cover)
