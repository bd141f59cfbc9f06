"""Circles, turns and data on which a coalition's parts are tried."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsiege.defences.client.base import Circle, Ground, Turn
from fedsiege.records import Examples
from fedsiege.streams import stream
from fedsiege.task import Task, seeded

CLASSES = 10


def circle_of(volumes: Mapping[int, float] | None = None, classes: int = CLASSES, rounds: int = 20) -> Circle:
    """A circle of clients 0 and 1 with equal weights, if no others are given."""
    return Circle(12345, {0: 50.0, 1: 50.0} if volumes is None else volumes, classes, rounds)


def model(inputs: int, classes: int) -> nn.Module:
    """Small, with BatchNorm, whose buffers lie behind the trained parameters."""
    body = nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.Tanh())
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(8, classes)))


def task_of(inputs: int = 4, classes: int = CLASSES) -> Task:
    return Task(seeded(lambda: model(inputs, classes), 0))


def examples_of(y: Sequence[int] | Tensor, inputs: int = 4, seed: int = 0) -> Examples:
    """Random inputs [m, inputs] with these classes."""
    labels = torch.as_tensor(y, dtype=torch.int64)
    x = torch.randn(len(labels), inputs, generator=torch.Generator().manual_seed(seed))
    return Examples(np.array([f"{seed}.{i:05d}" for i in range(len(labels))]), x, labels)


def turn_of(circle: Circle, number: int = 1, client: int = 0, **fields: Any) -> Turn:
    """A turn of a member, with all members present if none are named."""
    known: dict[str, Any] = {
        "task": task_of(),
        "examples": 100,
        "batch": 10,
        "rng": stream(0, "turn", number, client),
        "present": tuple(circle.volumes),
    }
    return Turn(number=number, client=client, circle=circle, **{**known, **fields})


def ground_of(circle: Circle, sizes: Sequence[int] = (50, 50, 50, 50), **fields: Any) -> Ground:
    """A run in which all clients take part in every round."""
    known: dict[str, Any] = {
        "task": task_of(),
        "examples": examples_of([0, 1]),
        "using": sorted(circle.volumes),
        "batch": 10,
        "weights": [float(size) for size in sizes],
        "cohort": len(sizes),
        "rounds": circle.rounds,
        "classes": circle.classes,
        "validation": 30,
    }
    return Ground(sizes=sizes, circle=circle, **{**known, **fields})
