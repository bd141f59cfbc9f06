"""Gradient evidence: our one pass for all clients against per-example gradients formed anew for each client."""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fedsiege.models.base import build_model
from fedsiege.records import Examples
from fedsiege.signals import align
from fedsiege.task import Task, seeded

CANDIDATES, BATCH, REPEATS = 40, 10, 3


def reference(task: Task, updates: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
    """What public code does: for each client, per-example gradients [batch, d], then products and norms."""
    names = task.layout.names
    parameters = {name: p.detach() for name, p in task.module.named_parameters()}

    def loss(wanted: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return task.losses(functional_call(task.module, wanted, (x[None],)), y[None]).sum()

    per_example = vmap(grad(loss), in_dims=(None, 0, 0))
    dots, norms = [], []
    for update in updates:
        parts = []
        for x, y in zip(task.inputs(examples.x).split(BATCH), examples.y.split(BATCH), strict=True):
            gradients = per_example(parameters, x, y)
            flat = torch.cat([gradients[name].flatten(1) for name in names], 1)
            parts.append((-(flat @ update), flat.square().sum(1)))
        dots.append(torch.cat([dot for dot, _ in parts]))
        norms.append(torch.cat([norm for _, norm in parts]))
    return torch.stack(dots), norms[0]


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    since = time.process_time()
    call()
    return time.process_time() - since


def measure(model: str, clients: int) -> str:
    """One line: ratio of CPU times, reference to ours, interleaved, after both gave the same numbers."""
    task = Task(seeded(lambda: build_model(model, (3, 32, 32), 100), 0))
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (CANDIDATES, 3, 32, 32), generator=rng, dtype=torch.uint8)
    y = torch.randint(0, 100, (CANDIDATES,), generator=rng)
    examples = Examples(np.array([f"{i:04d}" for i in range(CANDIDATES)]), x, y)
    updates = torch.randn(clients, task.layout.size, generator=rng) * 0.01
    groups, start = [0] * len(task.layout.names), task.state.clone()
    found = align(task, start, updates, examples, groups)
    dot, norm2 = reference(task, updates, examples)
    # As cosines: in float32 the reference can fall on the other side of a ReLU's kink, which moves a dot product.
    sizes = norm2.sqrt() * updates.norm(dim=1)[:, None]
    torch.testing.assert_close(found.dot[0] / sizes, dot / sizes, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.gradient_norm2[0], norm2, rtol=1e-3, atol=0)
    ratios, ours = [], []
    for _ in range(REPEATS):
        theirs = seconds(lambda: reference(task, updates, examples))
        ours.append(seconds(lambda: align(task, start, updates, examples, groups)))
        ratios.append(theirs / ours[-1])
    each = 1000 * median(ours) / CANDIDATES / clients
    return (
        f"evidence {model:<9} {clients:>3} clients: {median(ratios):6.1f}x "
        f"({min(ratios):.1f} to {max(ratios):.1f}), {each:.3f} ms per candidate and client"
    )
