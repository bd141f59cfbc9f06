"""Rounds, federations and a trigger on which single poisoning attacks are tried."""

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsiege.aggregators.fedavg import FedAvg
from fedsiege.attacks.poisoning.base import Plot, Poisoner, Scene
from fedsiege.data.triggers.base import Backdoor, Trigger
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Federation
from fedsiege.federation.state import Models, State
from fedsiege.records import Examples
from fedsiege.registry import build
from fedsiege.task import Task, seeded
from fedsiege.training import Training

SIZES, CLASSES, SEED = (12, 20, 16, 14, 18, 13), 4, 5
TRAINING = Training(epochs=2, batch=8, lr=0.1)


def model() -> nn.Module:
    """Small, for images of 8 by 8, with BatchNorm's running statistics."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(27, CLASSES)
    )


def task_of() -> Task:
    return Task(seeded(model, 0), mean=(0.5,), std=(0.25,))


def pictures(m: int, seed: int) -> Examples:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (m, 1, 8, 8), dtype=torch.uint8, generator=rng)
    ids = np.array([f"{seed}.{i}" for i in range(m)])
    return Examples(ids, x, torch.randint(0, CLASSES, (m,), generator=rng))


def shards() -> tuple[Examples, ...]:
    return tuple(pictures(size, 1 + client) for client, size in enumerate(SIZES))


@dataclass(frozen=True)
class Corners(Trigger):
    """Two white pixels, one of which is each half of the trigger."""

    title = "Corners"
    parts = 2

    def stamped(self, x: Tensor, y: Tensor, target: int, part: int | None = None) -> tuple[Tensor, Tensor]:
        marked = x.clone()
        for half, column in enumerate((0, -1)):
            if part is None or part == half:
                marked[:, :, 0, column] = 255
        return marked, torch.full_like(y, target)


def backdoor() -> Backdoor:
    clean = pictures(10, 99)
    x, y = Corners().stamped(clean.x, clean.y, 0)
    return Backdoor(Corners(), 0, None, Examples(clean.ids, x, y))


def asked_about() -> Examples:
    """Examples whose membership is asked about: some of client 2's, and some of nobody's."""
    own, nobodys = shards()[2].take(np.arange(6)), pictures(6, 77)
    return Examples(
        np.concatenate([own.ids, nobodys.ids]), torch.cat([own.x, nobodys.x]), torch.cat([own.y, nobodys.y])
    )


def poisoner_of(name: str, **fields: Any) -> Poisoner:
    made: Poisoner = build("poisoning", {"name": name, **fields}, "adversary")
    return made


def federation(**options: Any) -> Federation:
    known: dict[str, Any] = {
        "task": task_of(),
        "shards": shards(),
        "training": TRAINING,
        "aggregator": FedAvg(),
        "engine": LocalEngine(),
        "rounds": 4,
        "seed": SEED,
        "classes": CLASSES,
        "keeps": lambda number: True,
    }
    return Federation(**{**known, **options})


def first() -> State:
    return State(0, Models((task_of().state.clone(),)))


def scene_of(clients: Sequence[int] = (1, 3), **fields: Any) -> Scene:
    """Round 1 as its attackers see it: real clients and their data, no honest updates."""
    known: dict[str, Any] = {
        "number": 1,
        "rounds": 5,
        "start": task_of().state.clone(),
        "clients": tuple(clients),
        "shards": tuple(shards()[client] for client in clients),
        "weights": tuple(SIZES[client] / sum(SIZES) for client in clients),
        "step": 1.0,
        "cohort": len(SIZES),
        "task": task_of(),
        "training": TRAINING,
        "lr": TRAINING.lr,
        "classes": CLASSES,
        "seed": SEED,
        "targets": asked_about(),
    }
    return Scene(**{**known, **fields})


def rows_of(n: int, d: int, seed: int = 0, around: float = 0.3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers [n, d] around a mean."""
    return around + torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def among(rows: Tensor, clients: Sequence[int] = (1, 3), **fields: Any) -> Scene:
    """A round whose attackers see these honest updates [n, d]."""
    return scene_of(clients, start=torch.zeros_like(rows[0]), honest_rows=rows, **fields)


def honest_rows(number: int = 1) -> Tensor:
    """What all clients answer in a round without adversary [K, d]."""
    done = list(federation(rounds=number).run(first()))[-1]
    assert done.cohort is not None
    return done.cohort.updates


def plot_of(**fields: Any) -> Plot:
    """A run of two attackers among six clients."""
    known: dict[str, Any] = {
        "rule": "fedavg",
        "step": 1.0,
        "compromised": (1, 3),
        "cohort": len(SIZES),
        "backdoor": backdoor(),
        "task": task_of(),
        "classes": CLASSES,
        "attacks": 2,
        "targets": len(asked_about()),
    }
    return Plot(**{**known, **fields})


def byzfl_attacks() -> Any:
    """ByzFL's attacks; its benchmark, which wants torchvision, is left out. Skips where there is no ByzFL."""
    sys.modules.setdefault("byzfl.benchmark", types.ModuleType("byzfl.benchmark"))
    return pytest.importorskip("byzfl", reason="ByzFL is not installed (requirements-oracles.txt)")
