"""Rounds with examples that are asked about, and local training written out once more, for attacks that probe."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from plain_scenes import CLASSES, SEED, SIZES, TRAINING, model, pictures, scene_of, task_of
from torch import Tensor, nn

from fedsiege.attacks.poisoning.base import Plot, Scene
from fedsiege.records import Examples
from fedsiege.streams import stream
from fedsiege.task import seeded

Optimiser = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

BASELINES = (
    "passive",
    "gradient_ascent",
    "label_flip_mia",
    "agrevader",
    "agrevader_gray",
    "agrevader_euclidean",
    "adaptive_atm",
)


def targets(m: int = 9) -> Examples:
    """The examples asked about, which no client has."""
    return pictures(m, 77)


def trained() -> int:
    """How many entries of the flat vector are trained; BatchNorm's statistics follow."""
    return task_of().layout.trained


def begun() -> Tensor:
    """A global model that is not the initial one."""
    start = task_of().state.clone()
    start[: trained()] += 0.1 * torch.randn(trained(), generator=torch.Generator().manual_seed(3))
    return start


def probe(clients: Sequence[int] = (1, 3), **fields: Any) -> Scene:
    """A round with something asked about."""
    return scene_of(clients, **{"targets": targets(), "start": begun(), **fields})


def plot(**fields: Any) -> Plot:
    """A run of two attackers among six clients, with something asked about."""
    known: dict[str, Any] = {
        "rule": "fedavg",
        "step": 1.0,
        "compromised": (1, 3),
        "cohort": len(SIZES),
        "backdoor": None,
        "task": task_of(),
        "classes": CLASSES,
        "attacks": 2,
        "training": TRAINING,
        "sizes": SIZES,
        "targets": 9,
    }
    return Plot(**{**known, **fields})


def sgd(lr: float, **options: float) -> Optimiser:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)  # type: ignore[arg-type]


def adam(lr: float) -> Optimiser:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def naive(
    start: Tensor, examples: Examples, optimiser: Optimiser, batches: Sequence[Any] = (slice(None),)
) -> Tensor:
    """The update [d] after a step on each of these rows, as the textbook has it; one step on all by default."""
    module = seeded(model, 0)
    values = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    with torch.no_grad():
        for value, part in zip(values, start.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))
    module.train()
    steps = optimiser(module.parameters())
    for rows in batches:
        steps.zero_grad()
        x = (examples.x[rows].float() / 255 - 0.5) / 0.25
        F.cross_entropy(module(x), examples.y[rows]).backward()
        steps.step()
    return torch.cat([value.detach().reshape(-1) for value in values]) - start


def pass_order(m: int, number: int = 1, batch: int = TRAINING.batch) -> list[Tensor]:
    """The batches of a pass over m examples in a round."""
    order = torch.as_tensor(stream(SEED, "adversary", number, "pass").permutation(m))
    return list(order.split(batch))


def wrong(shuffle: int = 0, m: int = 9, seed: int = SEED) -> Examples:
    """The examples asked about with the wrong labels of a draw, written out one at a time."""
    asked = targets(m)
    draws = stream(seed, "adversary", "wrong labels", shuffle).integers(0, CLASSES - 1, size=m)
    others = [[c for c in range(CLASSES) if c != int(label)] for label in asked.y]
    labels = [choice[draw] for choice, draw in zip(others, draws.tolist(), strict=True)]
    return Examples(asked.ids, asked.x, torch.tensor(labels))


def own(clients: Sequence[int] = (1, 3)) -> Examples:
    """All that these clients have."""
    shards = scene_of(clients).shards
    ids = np.concatenate([shard.ids for shard in shards])
    return Examples(ids, torch.cat([shard.x for shard in shards]), torch.cat([shard.y for shard in shards]))


def near(direction: Tensor, n: int, spread: float, seed: int = 0) -> Tensor:
    """Rows [n, d] of a direction's length around it, `spread` of that length away from it."""
    noise = torch.randn(n, len(direction), generator=torch.Generator().manual_seed(seed))
    noise *= spread * direction.norm() / noise.norm(dim=1, keepdim=True)
    return direction + noise
