"""Gradient evidence: our one pass for all clients against per-example gradients formed anew for each client.

The reference has the structure of public code: for each client, per-example gradients of all parameters, ten
candidates at a time, then products and norms. It is written twice, with Opacus and with `torch.func`, and the
quicker of the two counts. Both sides give loss, squared gradient norm and the product with every update, from which
cosine and difference follow; what each costs per candidate is compared, since both are linear in the candidates.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.hardware import matmul_rate, one_thread
from benchmarks.measure import Figure, bench, cpu_seconds, interleaved, ratios, spread
from fedsiege.models.base import build_model
from fedsiege.records import Examples
from fedsiege.signals import Alignment, align, losses_of
from fedsiege.task import Task, seeded

BATCH, REPEATS = 10, 3
"""Candidates a batch of the reference, as in public code; turns that count."""

Evidence = tuple[Tensor, Tensor, Tensor]
"""Losses [m], squared gradient norms [m], products with the updates [n, m]."""

PerExample = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Prepared inputs and labels of a batch -> losses [b] and gradients [b, d]."""


@bench(
    "evidence_alexnet_k5", "x", "higher", "CPU time to one pass for 5 clients, AlexNet, of per-client recomputation"
)
def alexnet_k5() -> list[Figure]:
    return compared("evidence_alexnet_k5", Setting("alexnet", 5, ours=512, theirs=20))


@bench("evidence_alexnet_k10", "x", "higher", "the same for 10 clients")
def alexnet_k10() -> list[Figure]:
    return compared("evidence_alexnet_k10", Setting("alexnet", 10, ours=512, theirs=20))


@bench("evidence_resnet18_k10", "x", "higher", "the same for ResNet18 with GroupNorm and 10 clients")
def resnet18_k10() -> list[Figure]:
    return compared("evidence_resnet18_k10", Setting("resnet18", 10, ours=216, theirs=10))


@bench("evidence_growth_5_100", "x", "lower", "what 100 clients cost to what 5 cost, AlexNet")
def growth_5_100() -> list[Figure]:
    few, many = (Setting("alexnet", clients, ours=256) for clients in (5, 100))
    with one_thread():
        times = interleaved({"few": few.align, "many": many.align}, REPEATS)
    return [spread("evidence_growth_5_100", ratios(times["many"], times["few"]), "x", "lower")]


@dataclass
class Setting:
    """A model, updates of so many clients, and candidates: many for our side, some of them for the reference."""

    model: str
    clients: int
    ours: int
    theirs: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.task = Task(seeded(lambda: build_model(self.model, (3, 32, 32), 100), 0), device=self.device)
        rng = torch.Generator().manual_seed(0)
        self.x = torch.randint(0, 256, (self.ours, 3, 32, 32), generator=rng, dtype=torch.uint8)
        self.y = torch.randint(0, 100, (self.ours,), generator=rng)
        self.updates = torch.randn(self.clients, self.task.layout.size, generator=rng) * 0.01
        self.x, self.y, self.updates = (t.to(self.device) for t in (self.x, self.y, self.updates))
        self.start = self.task.state.clone()

    def align(self) -> Alignment:
        """Our evidence."""
        examples = Examples(np.array([f"{i:05d}" for i in range(self.ours)]), self.x, self.y)
        return align(self.task, self.start, self.updates, examples, [0] * len(self.task.layout.names))

    def losses(self) -> Tensor:
        """The losses of the models that the clients uploaded, which a recorded round needs besides."""
        examples = Examples(np.array([f"{i:05d}" for i in range(self.ours)]), self.x, self.y)
        return losses_of(self.task, (self.start + update for update in self.updates), examples).loss

    def recomputed(self, per_example: PerExample) -> Evidence:
        """The reference: every client's evidence by itself."""
        x, y = self.task.inputs(self.x[: self.theirs]), self.y[: self.theirs]
        rows: list[Evidence] = []
        for update in self.updates:
            parts = []
            for inputs, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
                losses, gradients = per_example(inputs, labels)
                parts.append((losses, gradients.square().sum(1), -(gradients @ update)))
            losses, norm2, dot = (torch.cat(part) for part in zip(*parts, strict=True))
            rows.append((losses, norm2, dot))
        return rows[0][0], rows[0][1], torch.stack([dot for _, _, dot in rows])

    def check(self, per_example: PerExample) -> None:
        """Both sides give the same, or AssertionError.

        Products are compared as cosines: in float32 a side can fall on the other side of a ReLU's kink.
        """
        found, (losses, norm2, dot) = self.align(), self.recomputed(per_example)
        some = slice(self.theirs)
        torch.testing.assert_close(found.start_loss[some], losses, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.gradient_norm2[0, some], norm2, rtol=1e-3, atol=0)
        sizes = norm2.sqrt() * self.updates.norm(dim=1)[:, None]
        torch.testing.assert_close(found.dot[0, :, some] / sizes, dot / sizes, rtol=0, atol=1e-5)


def compared(name: str, setting: Setting) -> list[Figure]:
    """The ratio of CPU times per candidate, and our side in absolute terms and against the machine's limit."""
    with one_thread():
        sides = {"opacus": by_opacus(setting), "torch.func": by_torch_func(setting)}
        for per_example in sides.values():
            setting.check(per_example)
        once = {side: cpu_seconds(partial(setting.recomputed, f)) for side, f in sides.items()}
        quicker = sides[min(once, key=lambda side: once[side])]
        times = interleaved(
            {"theirs": lambda: setting.recomputed(quicker), "ours": setting.align, "losses": setting.losses},
            REPEATS,
        )
        with FlopCounterMode(display=False) as counter:
            setting.align()
        limit = counter.get_total_flops() / matmul_rate()
    theirs = [seconds / setting.theirs for seconds in times["theirs"]]
    ours = [seconds / setting.ours for seconds in times["ours"]]
    losses = [seconds / setting.ours for seconds in times["losses"]]
    return [
        spread(name, ratios(theirs, ours), "x", "higher"),
        spread(f"{name}_ms", [1000 * t / setting.clients for t in ours], "ms per candidate and client", "lower"),
        spread(f"{name}_reference_ms", [1000 * t / setting.clients for t in theirs], "ms", "lower"),
        spread(f"{name}_losses_ms", [1000 * t / setting.clients for t in losses], "ms", "lower"),
        spread(f"{name}_limit", [100 * limit / seconds for seconds in times["ours"]], "% of matmul", "higher"),
    ]


def by_torch_func(setting: Setting) -> PerExample:
    """Per-example gradients by vectorised automatic differentiation."""
    task = setting.task
    task.load(setting.start)
    task.module.eval()
    parameters = {name: p.detach().clone() for name, p in task.module.named_parameters()}

    def loss(wanted: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        value = task.losses(functional_call(task.module, wanted, (x[None],)), y[None]).sum()
        return value, value

    vectorised = vmap(grad(loss, has_aux=True), in_dims=(None, 0, 0))

    def per_example(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        gradients, losses = vectorised(parameters, x, y)
        return losses, torch.cat([gradients[name].flatten(1) for name in task.layout.names], 1)

    return per_example


def by_opacus(setting: Setting) -> PerExample:
    """Per-example gradients by Opacus's hooks, which public code uses."""
    from opacus.grad_sample import GradSampleModule

    # Opacus looks on in training mode only; these models do the same in both.
    module = seeded(lambda: build_model(setting.model, (3, 32, 32), 100), 0).train().to(setting.device)
    sampled = GradSampleModule(module, loss_reduction="sum")

    def per_example(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        sampled.zero_grad()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            losses = setting.task.losses(sampled(x), y)
            losses.sum().backward()
        return losses.detach(), torch.cat([p.grad_sample.flatten(1) for p in sampled.parameters()], 1)

    return per_example
