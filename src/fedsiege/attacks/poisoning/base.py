"""What a poisoning attack is: compromised clients that answer with something else than they should.

One object plays all compromised clients, because collusion is the normal case. It may change the data that they
train on, or make their updates itself, from what a `Scene` shows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsiege.data.triggers.base import Backdoor
from fedsiege.defences.client.base import UNGUARDED, Guard
from fedsiege.errors import InputError
from fedsiege.records import Counters, Examples
from fedsiege.streams import stream
from fedsiege.task import Task
from fedsiege.training import PLAIN, Training, train

Knowledge = Literal["full", "partial"]
"""Whether attackers see the honest updates of the round, or only what they would have sent themselves."""


@dataclass(slots=True)
class Scene:
    """A round as the compromised clients that attack in it see it.

    Args:
        number: the round, from 1; `rounds` are all of the federation.
        start: the global model [d] that they were sent.
        clients: the attackers of the round, sorted, none in most rounds.
        shards: their data.
        weights: what each of them would weigh, of all invited clients, in the aggregation rule's mean.
        step: what the server multiplies the mean with, None where its rule is no weighted mean; what defences do to
            updates before the rule, attackers do not know.
        cohort: how many clients were invited.
        task: the resident model and its loss.
        training: how honest clients train, at this learning rate `lr`.
        classes: C, of the task.
        seed: of the run.
        backdoor: what is to be planted, where a backdoor is.
        others: other clients' data, for attackers that are told to use it.
        honest_rows: the honest clients' updates [n, d], for attackers that see them.
        compromised: all clients that the adversary plays, in the order of the config's list; () says no order.
        targets: the examples whose membership is asked about, for attacks that make it visible; sorted by id, which
            says nothing of who has them.
        memory: what the attack kept of earlier rounds, by name; assign another mapping to change it.
        counters: what it did, by name.
        seconds: what crafting the attackers' answers took.

    """

    number: int
    rounds: int
    start: Tensor
    clients: tuple[int, ...]
    shards: tuple[Examples, ...]
    weights: tuple[float, ...]
    step: float | None
    cohort: int
    task: Task
    training: Training
    lr: float
    classes: int
    seed: int
    backdoor: Backdoor | None = None
    others: Callable[[], Examples] | None = None
    honest_rows: Tensor | None = None
    compromised: tuple[int, ...] = ()
    targets: Examples | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    counters: Counters = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, name: str, n: float = 1) -> None:
        """Add n to a counter of what the attack did; counters add up over rounds.

        What is no number, of an attacker whose own training diverged, is counted as such: it would spoil the sum.
        """
        name, n = (name, n) if math.isfinite(n) else (f"nonfinite_{name}", 1)
        self.counters[name] = self.counters.get(name, 0) + n

    def rng(self, *name: str | int) -> np.random.Generator:
        """A stream of this round's attack."""
        return stream(self.seed, "adversary", self.number, *name)

    def train(
        self,
        examples: Examples,
        rng: np.random.Generator,
        guard: Guard = UNGUARDED,
        training: Training | None = None,
        lr: float | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Train locally as honest clients do, but for what is given; returns the update [d]."""
        how = self.training if training is None else training
        begun = self.start if start is None else start
        return train(self.task, begun, examples, how, self.lr if lr is None else lr, rng, guard, self.number)

    def honest(self, at: int, examples: Examples | None = None) -> Tensor:
        """The update [d] that attacker `at` (from 0) would send if it trained honestly, on other data if given."""
        own = self.shards[at] if examples is None else examples
        return self.train(own, stream(self.seed, "client", self.number, self.clients[at]))

    def benign(self) -> Tensor:
        """The updates [n, d] that attackers go by: the honest clients', or what they would have sent themselves."""
        if self.honest_rows is not None and len(self.honest_rows):
            return self.honest_rows
        self.count("went_by_own_updates")
        return torch.stack([self.honest(at) for at in range(len(self.clients))])


class Poisoner:
    """A way for compromised clients to change what the federation learns.

    Override `poison_data` for what they train on, or `poison_updates` for what they send.
    """

    title: ClassVar[str]
    """Its name in tables and figures."""
    plants: ClassVar[bool] = False
    """Whether it plants a backdoor, which the config then has to name."""
    probes: ClassVar[bool] = False
    """Whether it makes membership visible: it is told the examples asked about, and attackers have none of them."""
    proof: ClassVar[str] = "poisoned_updates"
    """The counter that is above zero when it did something."""

    @property
    def sees_honest(self) -> bool:
        """Whether it reads the honest clients' updates of the round."""
        return getattr(self, "knowledge", "partial") == "full"

    @property
    def uses_others(self) -> bool:
        """Whether it was told to train on other clients' data too."""
        return False

    def check(self, plot: "Plot") -> None:
        """Refuse, before the first round, what this run cannot do; InputError says why."""

    def poison_data(self, examples: Examples, scene: Scene, at: int) -> Examples:  # noqa: ARG002
        """What attacker `at` (from 0) trains on, from its own examples."""
        return examples

    def poison_updates(self, scene: Scene) -> Tensor:
        """What the attackers send [k, d], in their order. Without an override: honest training on poisoned data."""
        sent = []
        for at, shard in enumerate(scene.shards):
            sent.append(scene.honest(at, self.poison_data(shard, scene, at)))
            scene.count("poisoned_updates")
        return torch.stack(sent)

    def observe(self, scene: Scene, end: Tensor) -> None:
        """See the global model [d] that a round ended with, attacked or not; `scene.memory` may change."""

    def told(self, counters: Counters) -> Counters:
        """What the report says it did, from the counters of all rounds."""
        return counters


@dataclass(frozen=True, slots=True)
class Plot:
    """What is known of a run before the first round, for an attack to check itself against.

    Args:
        rule: the name of the aggregation rule; `step` is what the server multiplies its mean with, whatever stands
            before it, None where it is no weighted mean.
        compromised: the compromised clients.
        cohort: n, how many clients are invited to a round.
        backdoor: what is to be planted; None where the config names no backdoor.
        task: the model and its loss; `classes` C of the task.
        attacks: in how many rounds somebody attacks.
        secure_aggregation: whether the server sees sums alone.
        training: how honest clients train.
        sizes: how many examples each client has, by number; () where that is not known.
        targets: how many examples are asked about, where the attack makes membership visible.

    """

    rule: str
    step: float | None
    compromised: Sequence[int]
    cohort: int
    backdoor: Backdoor | None
    task: Task
    classes: int
    attacks: int
    secure_aggregation: bool = False
    training: Training = PLAIN
    sizes: Sequence[int] = ()
    targets: int = 0


def relabelled(examples: Examples, y: Tensor) -> Examples:
    """The same examples with other labels."""
    return replace(examples, y=y)


def require_backdoor(plot: Plot, name: str) -> Backdoor:
    """The backdoor of a run; InputError where the config has none."""
    if plot.backdoor is None:
        raise InputError(
            f"{name} plants a backdoor, and the config names none; expected backdoor: {{trigger: ..., target: ...}}"
        )
    return plot.backdoor
