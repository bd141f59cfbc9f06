"""DBA: each attacker plants one part of a trigger that is tested as a whole."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsiege.attacks.poisoning.base import Plot, Poisoner, Scene
from fedsiege.attacks.poisoning.gamma import Gamma, check_gamma, factor
from fedsiege.attacks.poisoning.mixing import backdoor_of, check_recipe, count_sent, mixed, told
from fedsiege.errors import InputError
from fedsiege.records import Counters
from fedsiege.registry import register

PLANTED = "planted"
"""What the attack keeps: the parts of the trigger that were planted so far."""


@register("dba")
class DBA(Poisoner):
    """Split the trigger: each attacker trains on its own part of it, and the backdoor is tested with all of them.

    Attackers have the parts in the order of `compromised.clients`, in every round; where there are more attackers
    than parts, it begins anew. Each scales its own update. With `compromised.turns: one_by_one` each attacks in a
    round of its own, as in the paper's single-shot attack, and `auto` makes the global model each of theirs in
    turn; where they attack together, it becomes the weighted mean of their models.

    The defaults are those of the authors' code for CIFAR-10, which divides the learning rate after 20 % and 80 % of
    the epochs, has as many triggered examples in a last, smaller batch as in any, and multiplies with 100, which is
    `auto` for its 10 clients a round and its server step of 0.1. It trains at 0.05.

    Paper: Xie et al., DBA: Distributed Backdoor Attacks against Federated Learning, ICLR 2020
    """

    title: ClassVar[str] = "DBA"
    plants: ClassVar[bool] = True

    gamma: Gamma | None = "auto"
    """What each attacker's update is multiplied with; `auto`: as much as replaces the global model, if the rule is
    a weighted mean; null: nothing, as in the paper's attack in every round."""
    poisoned: Annotated[int, Field(ge=1)] = 5
    """c, how many examples of a full batch are replaced by triggered ones; in smaller batches as large a share."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """B, examples per step; null: as honest clients. The paper: 64."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of normal noise on triggered inputs, after normalisation."""
    moved: bool | None = None
    """Crop and mirror triggered images anew each time; null: those that the trigger found, not stamped ones."""
    epochs: Annotated[int, Field(ge=1)] | None = 6
    """Passes over the clean examples; null: as honest clients."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the first epoch; null: the round's."""
    step_every: Annotated[int, Field(ge=1)] | None = 2
    """Epochs after which the learning rate is divided; null: never."""
    step_rate: Annotated[float, Field(ge=1)] = 10.0
    """What it is divided by."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of sgd; null: as honest clients."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """L2 penalty; null: as honest clients."""
    stop: Annotated[float, Field(gt=0)] | None = None
    """No further epoch once the mean loss on triggered examples is below this; null: all epochs."""

    def check(self, plot: Plot) -> None:
        """Refuse runs without a backdoor, a trigger that cannot be split, and a gamma that cannot be had."""
        backdoor = check_recipe(self, plot, "dba")
        if backdoor.trigger.parts < 2:
            raise InputError(
                f"trigger: dba splits it among attackers, and {backdoor.trigger.title} is one piece; "
                "expected a trigger in two or more parts, such as distributed"
            )
        check_gamma(self.gamma, plot, "a number or null")

    def poison_updates(self, scene: Scene) -> Tensor:
        """gamma (X_i - G) of each attacker i [k, d], trained with its own part of the trigger."""
        parts, gamma, sent = self._parts(scene), factor(self.gamma, scene), []
        for client, shard, part in zip(scene.clients, scene.shards, parts, strict=True):
            update, poisoned = mixed(scene, self, shard, client, part=part)
            count_sent(scene, update, gamma, poisoned)
            sent.append(gamma * update)
        return torch.stack(sent)

    def told(self, counters: Counters) -> Counters:
        """Means of gamma, and of the norms before and after scaling; how many parts of the trigger were planted."""
        return told(counters)

    def _parts(self, scene: Scene) -> list[int]:
        """The part of each attacker of the round; parts that nobody planted before are counted and kept."""
        seats = scene.compromised or scene.clients
        parts = [seats.index(client) % backdoor_of(scene).trigger.parts for client in scene.clients]
        before = scene.memory[PLANTED].tolist() if PLANTED in scene.memory else []
        after = sorted({*before, *parts})
        scene.count("parts", len(after) - len(before))
        scene.memory = {**scene.memory, PLANTED: torch.tensor(after, dtype=torch.int64)}
        return parts
