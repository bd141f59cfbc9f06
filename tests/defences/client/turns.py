"""Turns, tasks and data on which single defences are tried."""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsiege.defences.client.base import ClientDefence, Ground, Guard, Turn
from fedsiege.records import Examples
from fedsiege.streams import stream
from fedsiege.task import Task, seeded

TENSORS = ("b", "conv", "w")
"""Of the golden file's state dicts, as a dictionary of parameters sorts them."""


def flat_task(*sizes: int) -> Task:
    """A task whose model is a chain of linear layers, with BatchNorm's buffers behind the first."""

    def chain() -> nn.Module:
        first, *more = [nn.Linear(one, other) for one, other in pairwise(sizes)]
        return nn.Sequential(first, nn.BatchNorm1d(sizes[1]), *more)

    return Task(seeded(chain, 0))


def turn_of(task: Task, seed: int = 0, **fields: Any) -> Turn:
    """A turn of client 0 in round 1."""
    known: dict[str, Any] = {"number": 1, "client": 0, "examples": 100, "batch": 10, "rng": stream(seed, "turn")}
    return Turn(task, **{**known, **fields})


def ground_of(x: Tensor, sizes: tuple[int, ...], batch: int | None = 10, **fields: Any) -> Ground:
    """A run on inputs x, in which all clients use the defence."""
    known: dict[str, Any] = {"task": flat_task(4, 3), "using": range(len(sizes))}
    return Ground(examples=examples_of(x), sizes=sizes, batch=batch, **{**known, **fields})


def examples_of(x: Tensor, y: Tensor | None = None) -> Examples:
    """Inputs with labels, of ten classes in turn if none are given."""
    return Examples(np.array([f"{i:04d}" for i in range(len(x))]), x, torch.arange(len(x)) % 10 if y is None else y)


def guard_of(defence: ClientDefence, turn: Turn) -> Guard:
    """A guard with this defence alone."""
    return Guard([(defence, turn)])


def update_of(task: Task, seed: int = 0) -> Tensor:
    """A random update of a task's model [d]."""
    return torch.randn(task.layout.size, generator=torch.Generator().manual_seed(seed))


def micro() -> nn.Module:
    """The golden files' small network of 2,198 parameters."""
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 6, 5, 2, 2),
        "gn": nn.GroupNorm(3, 6),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(6, 8, 3, 2, 1),
        "relu2": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
        "flat": nn.Flatten(),
        "fc": nn.Linear(128, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def golden(folder: Path) -> dict[str, NDArray[Any]]:
    """The official functions' numbers for defences; shared/golden/README.md says how they were made."""
    with np.load(folder / "defences.npz", allow_pickle=False) as stored:
        return dict(stored)


def golden_task(stored: Mapping[str, NDArray[Any]]) -> Task:
    """A task whose tensors are those of the golden file's global model."""
    return Task(nn.ParameterDict({name: torch.as_tensor(stored[f"global_{name}"]) for name in TENSORS}))


def golden_vector(stored: Mapping[str, NDArray[Any]], which: str) -> Tensor:
    """Three tensors of the golden file as one vector: the global or local model, or what a defence made of it."""
    return torch.cat([torch.as_tensor(stored[f"{which}_{name}"]).flatten() for name in TENSORS])
