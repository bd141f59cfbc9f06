"""Cohorts, servers and a model replacement on which the server's defences are tried."""

import functools
import sys
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsiege.aggregators.base import Bench, Server
from fedsiege.records import Cohort, Examples
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.training import Training, train

FEATURES, CLASSES, CLIENTS = 8, 4, 10


def model() -> nn.Module:
    """A small network with BatchNorm, whose running statistics travel with the updates."""
    hidden = nn.Sequential(nn.Linear(FEATURES, 12), nn.BatchNorm1d(12), nn.ReLU())
    return nn.Sequential(OrderedDict(hidden=hidden, head=nn.Linear(12, CLASSES)))


def task_of() -> Task:
    return Task(seeded(model, 0))


def rows_of(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def alike(n: int, d: int, seed: int = 0, noise: float = 0.3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows with a direction in common, of length 1, and noise of length `noise`."""
    drawn = rows_of(n + 1, d, seed, torch.float64) / d**0.5
    rows: Tensor = drawn[0] / drawn[0].norm() + noise * drawn[1:]
    return rows.to(dtype)


def cohort_of(rows: Tensor, weights: Sequence[float] = (), clients: Sequence[int] = (), **given: Any) -> Cohort:
    n = len(rows)
    return Cohort(
        clients=tuple(clients) or tuple(range(n)),
        updates=rows,
        weights=torch.tensor(weights or [1.0] * n, dtype=torch.float64),
        ages=given.get("ages", (0,) * n),
        starts=given.get("starts", {0: torch.zeros(rows.shape[1], dtype=rows.dtype)}),
    )


def server_of(task: Task | None = None, seed: int = 0, number: int = 1, **given: Any) -> Server:
    """A server that knows the task and its layout, in one round."""
    known: dict[str, Any] = {"number": number, "rng": stream(seed, "server", number)}
    if task is not None:
        known |= {"task": task, "layout": task.layout, "start": task.state.clone()}
    return Server(**{**known, **given})


def bench_of(cohort: int = 7, **given: Any) -> Bench:
    known: dict[str, Any] = {"clients": 20, "root": 8, "head": True, "classes": CLASSES, "rounds": 6}
    return Bench(cohort=cohort, layout=task_of().layout, **{**known, **given})


def blobs(m: int, seed: int, trigger: bool = False) -> Examples:
    """Points around a centre for each class; with the trigger, feature 0 is large and the label is 0."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (m,), generator=rng)
    x = torch.randn(m, FEATURES, generator=rng)
    x[torch.arange(m), 1 + y] += 4.0
    if trigger:
        x[:, 0], y = 8.0, torch.zeros_like(y)
    return Examples(np.array([f"{seed}-{i:04d}" for i in range(m)]), x, y)


@dataclass(frozen=True)
class Attacked:
    """A round of model replacement: the model before, nine honest updates, and the attacker's X - G."""

    task: Task
    start: Tensor
    honest: Tensor
    backdoored: Tensor
    root: Examples

    def cohort(self, attack: Tensor) -> Cohort:
        """The round with this update from the attacker, who is client 3."""
        rows = torch.cat([self.honest[:3], attack[None], self.honest[3:]])
        return cohort_of(rows, starts={0: self.start})

    def server(self) -> Server:
        return server_of(self.task, start=self.start, root=self.root)

    @property
    def replaced(self) -> Tensor:
        """Scaled so that a plain mean of ten puts the backdoored model in place of the global one."""
        return CLIENTS * self.backdoored

    @property
    def bounded(self) -> Tensor:
        """Train-and-scale: the same, at the length of the median honest update."""
        scaled: Tensor = self.backdoored * (self.honest.norm(dim=1).median() / self.backdoored.norm())
        return scaled


ATTACKER = 3


@functools.cache
def attacked() -> Attacked:
    task = task_of()
    start, usual = task.state.clone(), Training(epochs=2, batch=16, lr=0.05)
    for number in range(3):
        start = start + train(task, start, blobs(200, 90 + number), usual, 0.05, stream(0, "before", number))
    honest = [train(task, start, blobs(80, 1 + k), usual, 0.05, stream(0, "client", k)) for k in range(CLIENTS - 1)]
    clean, poisoned = blobs(80, 50), blobs(40, 51, trigger=True)
    mixed = Examples(
        np.concatenate([clean.ids, poisoned.ids]),
        torch.cat([clean.x, poisoned.x]),
        torch.cat([clean.y, poisoned.y]),
    )
    longer = Training(epochs=6, batch=16, lr=0.05)
    backdoored = train(task, start, mixed, longer, 0.05, stream(0, "attacker"))
    return Attacked(task, start, torch.stack(honest), backdoored, blobs(200, 77))


@functools.cache
def oracle() -> ModuleType:
    """ByzFL, for its pre-aggregations; it wants torchvision for its data sets alone, so a mock of it will do."""
    wanted = ("torchvision", "torchvision.datasets", "torchvision.transforms")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not any(name in sys.modules for name in wanted):
            for name in wanted:
                patch.setitem(sys.modules, name, MagicMock())
        found: ModuleType = pytest.importorskip("byzfl", reason="needs byzfl (requirements-oracles.txt)")
    return found
