"""The passive attacker: it takes part honestly, and only looks at the models that come back."""

from typing import ClassVar

import torch
from torch import Tensor

from fedsiege.attacks.poisoning.base import Scene
from fedsiege.attacks.poisoning.probing import Prober
from fedsiege.registry import register


@register("passive")
class Passive(Prober):
    """Train honestly, each attacker on its own data: what membership shows without any poisoning.

    The baseline of FedPoisonMIA's tables. The attackers have none of the examples asked about, like those of every
    attack that this one is compared with; nothing else sets them apart from honest clients. Their updates are
    counted as `honest_updates`.

    Paper: Mo et al., Find a Scapegoat (FedPoisonMIA), ICCV 2025, arXiv 2507.00423
    """

    title: ClassVar[str] = "Passive"
    proof: ClassVar[str] = "honest_updates"

    def poison_updates(self, scene: Scene) -> Tensor:
        """The attackers' own honest updates [k, d]."""
        scene.count("honest_updates", len(scene.clients))
        return torch.stack([scene.honest(at) for at in range(len(scene.clients))])
