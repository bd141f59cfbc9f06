"""Triggers, data and scenes on which attacks with a backdoor are tried."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsiege.aggregators.fedavg import FedAvg
from fedsiege.attacks.poisoning.base import Plot, Scene
from fedsiege.attacks.poisoning.campaign import Campaign
from fedsiege.data.triggers.base import Backdoor, Trigger
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation
from fedsiege.federation.state import Answer, Models, State
from fedsiege.records import NOTHING, Examples, Memory, Round
from fedsiege.task import UNCOUNTED, Task, seeded
from fedsiege.training import Training

CLASSES, FEATURES, TARGET, MARK = 3, 6, 2, 9.0

HONEST = Training(epochs=2, batch=8, lr=0.05, momentum=0.9, weight_decay=0.01)


class Stamp(Trigger):
    """A large last feature, or, where it is split, the last features, one a part."""

    title: ClassVar[str] = "Stamp"

    def __init__(self, parts: int = 1) -> None:
        self.parts = parts

    def stamped(self, x: Tensor, y: Tensor, target: int, part: int | None = None) -> tuple[Tensor, Tensor]:
        x = x.clone()
        for one in range(self.parts) if part is None else (part,):
            x[:, -1 - one] = MARK
        return x, torch.full_like(y, target)


class Suffix(Trigger):
    """Two words at the end of a sequence, the label of whose last position is then the target."""

    title: ClassVar[str] = "Suffix"
    words = (4, 5)

    def stampable(self, x: Tensor, y: Tensor, target: int) -> Tensor:
        return y[:, -1] != target

    def stamped(self, x: Tensor, y: Tensor, target: int, part: int | None = None) -> tuple[Tensor, Tensor]:
        x, y = x.clone(), torch.full_like(y, UNCOUNTED)
        x[:, -2:], y[:, -1] = torch.tensor(self.words), target
        return x, y


class Found(Trigger):
    """Examples that a trigger found."""

    title: ClassVar[str] = "Found"
    stamps: ClassVar[bool] = False


def task_of(batch_norm: bool = True, seed: int = 0) -> Task:
    norm = [nn.BatchNorm1d(8)] if batch_norm else []
    return Task(
        seeded(lambda: nn.Sequential(nn.Linear(FEATURES, 8), *norm, nn.Tanh(), nn.Linear(8, CLASSES)), seed)
    )


def client(number: int, size: int = 24) -> Examples:
    """A client's examples, in classes that can be told apart."""
    rng = torch.Generator().manual_seed(number)
    y = torch.randint(0, CLASSES, (size,), generator=rng)
    x = torch.randn(size, FEATURES, generator=rng) * 0.5
    x[torch.arange(size), y] += 2
    return Examples(np.array([f"{number}.{i}" for i in range(size)]), x, y)


def backdoor_of(trigger: Trigger | None = None, own: Examples | None = None) -> Backdoor:
    trigger = Stamp() if trigger is None else trigger
    clean = client(99)
    keep = (clean.y != TARGET).nonzero()[:, 0].numpy()
    test = clean.take(keep)
    if own is None:
        x, y = trigger.stamped(test.x, test.y, TARGET)
        test = replace(test, x=x, y=y)
    return Backdoor(trigger, TARGET, own, test)


def scene_of(shards: Sequence[Examples] | None = None, **given: Any) -> Scene:
    """A round with these attackers, numbered from 0, of ten clients of equal weight."""
    shards = (client(0),) if shards is None else shards
    task = given.pop("task", None) or task_of()
    fields: dict[str, Any] = {
        "number": 3,
        "rounds": 9,
        "start": task.state.clone(),
        "clients": tuple(range(len(shards))),
        "shards": tuple(shards),
        "weights": (0.1,) * len(shards),
        "step": 1.0,
        "cohort": 10,
        "task": task,
        "training": HONEST,
        "lr": HONEST.lr,
        "classes": CLASSES,
        "seed": 7,
        "backdoor": backdoor_of(),
    }
    return Scene(**{**fields, **given})


def plot_of(**given: Any) -> Plot:
    """A run with one attacker of ten clients, in two rounds."""
    fields: dict[str, Any] = {
        "rule": "fedavg",
        "step": 1.0,
        "compromised": (0,),
        "cohort": 10,
        "backdoor": backdoor_of(),
        "task": task_of(),
        "classes": CLASSES,
        "attacks": 2,
    }
    return Plot(**{**fields, **given})


class Still(LocalEngine):
    """Honest clients whose updates are all zero."""

    def answers(
        self, federation: Federation, number: int, invited: list[int], models: Models, memory: Memory = NOTHING
    ) -> Iterator[Answer]:
        for one in invited:
            yield Answer(one, torch.zeros_like(models[0]), float(len(federation.shards[one])), 0)


def rounds_of(campaign: Campaign | None, shards: Sequence[Examples], **given: Any) -> list[Round]:
    """The rounds of a federation of these clients."""
    fields: dict[str, Any] = {
        "task": task_of(),
        "training": HONEST,
        "aggregator": FedAvg(),
        "engine": LocalEngine(),
        "rounds": 1,
        "seed": 7,
        "classes": CLASSES,
    }
    made = Federation(**{**fields, **given}, shards=tuple(shards), campaign=campaign)
    return list(made.run(State(0, Models((made.task.state.clone(),)))))
