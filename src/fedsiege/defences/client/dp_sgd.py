"""DP-SGD through Opacus: every example's gradient clipped, and noise on their sum."""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedsiege.defences.client.base import (
    Batch,
    ClientDefence,
    Clients,
    Ground,
    Guarantee,
    Part,
    Turn,
    means,
)
from fedsiege.defences.privacy import Accountant, Step, refuse_batch_statistics, sampled_gaussian_epsilon
from fedsiege.errors import InputError
from fedsiege.records import Counters, Examples
from fedsiege.registry import register
from fedsiege.task import Task

ROOM = 2**26
"""Bytes of gradients of single examples that are held at once on a CPU; a larger batch is taken in parts.

Four times as much makes AlexNet nearly twice as slow: memory that is freed and asked for anew costs more than the
arithmetic. A GPU keeps its memory, and needs larger parts to be busy.
"""

UNCLIPPED = 1e30
"""A norm that no gradient has."""

TALLY = ("examples", "clipped", "changed", "gradient_norm", "noise_norm")
"""Examples, those that were clipped, steps with clipping or noise, norms of clipped sums and of the noise."""

STEPS = "steps_of_"
"""Counters of each client's steps begin with this; its number and its number of examples follow."""


@register("dp_sgd")
class DPSGD(ClientDefence):
    """Clip each example's gradient to the norm `clip`, add Gaussian noise to their sum, divide by the batch size.

    The noise has standard deviation noise_multiplier * clip. A step's examples are a Poisson sample: each of a
    client's n examples is in it with probability batch / n, independently. So batches differ in size and can be
    empty; the sum is always divided by the expected size. An epoch has as many steps as without the defence.
    Momentum, weight decay and Adam work on the noised gradient. CoFedMID's noise multipliers: 0.05, 0.1, 0.2.

    The report gives the epsilon of the worst client against the server, for the steps that it really took:
    neighbouring data sets differ by one example replaced by nothing. A client's number of examples, from which
    sampling rate, number of steps and its weight in the aggregation follow, is taken to be known. Poisson samples
    make every run differ from a plain one, so there is no neutral setting. Needs Opacus:
    `pip install fedsiege[dp]`.

    Paper: Abadi et al., Deep Learning with Differential Privacy, CCS 2016, arXiv 1607.00133
    """

    title: ClassVar[str] = "DP-SGD"
    neutral: ClassVar[dict[str, float] | None] = None
    proof: ClassVar[str] = "changed"
    replaces: ClassVar[Literal["loss", "gradient"] | None] = "gradient"
    private: ClassVar[bool] = True

    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of an example's gradient."""
    noise_multiplier: Annotated[float, Field(ge=0)] = 1.0
    """Standard deviation of the noise on the sum of clipped gradients, over `clip`; 0 clips only."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta at which epsilon is reported."""
    accountant: Accountant = "rdp"
    """`rdp` composes Renyi divergences; `prv` convolves privacy losses, which is tighter and slower."""
    clients: Clients = "all"
    """Who uses it: all, a client's number or a list of numbers."""

    def check(self, ground: Ground) -> None:
        """Refuse arithmetic and models for which single examples' gradients would be wrong or not to be had."""
        if find_spec("opacus") is None:
            raise InputError(
                "name: got dp_sgd, which needs Opacus; expected it to be there: pip install fedsiege[dp]"
            )
        if ground.precision != "fp32":
            raise InputError(
                f"name: got dp_sgd with training.precision {ground.precision}, which rounds gradients before they "
                "are clipped; expected fp32"
            )
        refuse_batch_statistics(ground.task, "dp_sgd")
        refuse_layers(ground.task.module)
        refuse_what_fails(ground)

    @contextmanager
    def during(self, turn: Turn) -> Iterator["PerExample"]:
        """Opacus' hooks on the model, for the length of the training."""
        with per_example(turn.task, self.clip, self.noise_multiplier, turn.generator()) as tool:
            yield tool
            for name, n in tool.counted().items():
                turn.count(name, n)

    def on_epoch(self, parts: list[Part], turn: Turn) -> list[Part]:
        """As many steps as there were, each a Poisson sample of the epoch's positions."""
        rate = sampling_rate(turn.batch, turn.examples)
        device = turn.task.device
        return [
            torch.as_tensor(np.flatnonzero(turn.rng.random(turn.examples) < rate), device=device) for _ in parts
        ]

    def on_gradient(self, losses: Callable[[Batch], Tensor], batch: Batch, turn: Turn) -> None:
        """The noised sum of clipped gradients over the expected size of a batch."""
        turn.count("steps")
        turn.count(f"{STEPS}{turn.client}_{turn.examples}")
        turn.tool.fill(losses, batch)
        turn.task.gradient /= min(turn.batch or turn.examples, turn.examples)

    def told(self, counters: Counters) -> Counters:
        """Steps, examples in them, the share of those clipped, and mean norms of the clipped sum and its noise."""
        kept = {name: n for name, n in counters.items() if not name.startswith(STEPS)}
        return means(means(kept, "clipped", over="examples"), "gradient_norm", "noise_norm", over="steps")

    def guarantees(self, counters: Counters, ground: Ground) -> list[Guarantee]:
        """What the worst client spent against the server."""
        taken = steps_taken(counters, ground.batch)
        if not taken:
            return []
        spent = {
            steps: sampled_gaussian_epsilon(self.noise_multiplier, steps, self.delta, self.accountant)
            for steps in set(taken.values())
        }
        worst = max(sorted(taken), key=lambda client: spent[taken[client]][0])
        epsilon, accountant = spent[taken[worst]]
        ways = " and ".join(f"{count} steps at sampling rate {rate:.4g}" for rate, count in taken[worst])
        note = (
            f"{accountant.upper()} accountant of Opacus {metadata.version('opacus')}, Poisson sampling; client "
            f"{worst}, the worst, took {ways} with noise multiplier {self.noise_multiplier:g}; neighbours: one "
            "example replaced by nothing, the client's number of examples being public"
            f"{ground.taken_as_public()}"
        )
        whose = ground.whose()
        if math.isinf(epsilon):
            note = f"no noise, no bound: {note}"
            return [Guarantee("example", "server", None, self.delta, accountant, note, whose)]
        return [Guarantee("example", "server", epsilon, self.delta, accountant, note, whose)]


def steps_taken(counters: Counters, batch: int | None) -> dict[int, tuple[Step, ...]]:
    """By client, the sampling rates of its steps, each with how many there were."""
    taken: dict[int, list[Step]] = defaultdict(list)
    for name, n in counters.items():
        if name.startswith(STEPS):
            client, examples = map(int, name.removeprefix(STEPS).split("_"))
            taken[client].append((sampling_rate(batch, examples), int(n)))
    return {client: tuple(sorted(steps)) for client, steps in taken.items()}


def sampling_rate(batch: int | None, examples: int) -> float:
    """The probability with which each of a client's examples is in a step; without examples there is no step."""
    return 1.0 if batch is None else min(1.0, batch / max(1, examples))


@dataclass(slots=True)
class PerExample:
    """Opacus on a task's model: `hooks` collect single examples' gradients, `optimiser` clips and noises them.

    `tally` holds sums over steps, on the device until they are asked for; TALLY names them.
    """

    task: Task
    hooks: Any
    optimiser: Any
    tally: Tensor

    def counted(self) -> Counters:
        """What was done so far."""
        return dict(zip(TALLY, self.tally.tolist(), strict=True))

    def fill(self, losses: Callable[[Batch], Tensor], batch: Batch) -> None:
        """The noised sum of the clipped gradients of a batch, which may be empty, into the task's gradient."""
        self.optimiser.zero_grad()
        for p in self.optimiser.params:
            p.summed_grad = torch.zeros_like(p)
        rows, clipped = at_once(self.task), torch.zeros((), device=self.task.device)
        for first in range(0, len(batch), rows):
            singles = self.singles(losses, batch.rows(slice(first, first + rows)))
            norms = torch.stack([g.flatten(1).norm(dim=1) for g in singles]).norm(dim=0)
            clipped += (norms > self.optimiser.max_grad_norm).sum()
            self.optimiser.clip_and_accumulate()
            self.hooks.set_grad_sample_to_none()
        sums = [p.summed_grad for p in self.optimiser.params]
        self.optimiser.add_noise()
        noises = [p.grad - total.view_as(p) for p, total in zip(self.optimiser.params, sums, strict=True)]
        noisy = self.optimiser.noise_multiplier > 0
        examples, changed = clipped.new_tensor(len(batch)), (clipped > 0) | noisy
        self.tally += torch.stack([examples, clipped, changed.to(clipped), norm(sums), norm(noises)])
        self.task.take_gradients()

    def singles(self, losses: Callable[[Batch], Tensor], batch: Batch) -> list[Tensor]:
        """Gradients of single examples [m, ...], a tensor for each parameter; InputError where they are no such."""
        with warnings.catch_warnings():
            # The first layer's inputs have no gradient, and its hook does not need it.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            losses(batch).sum().backward()
        found: list[Tensor] = self.optimiser.grad_samples
        # Opacus takes a layer's rows for examples; where they are something else, clipping each bounds nobody's.
        other = next((len(one) for one in found if len(one) != len(batch)), None)
        if other is not None:
            raise InputError(
                f"name: got dp_sgd with a model that shows a layer {other} rows for {len(batch)} examples, so that "
                "gradients of single examples are not to be had; expected a model whose layers take one row for "
                "each example"
            )
        return found


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of several tensors together."""
    found: Tensor = torch.stack([one.norm() for one in tensors]).norm()
    return found


def at_once(task: Task) -> int:
    """How many examples' gradients are held at once."""
    room = ROOM if task.device.type == "cpu" else 16 * ROOM
    return max(1, room // (4 * task.layout.trained))


@contextmanager
def per_example(task: Task, clip: float, noise: float, generator: torch.Generator) -> Iterator[PerExample]:
    """Opacus on a task's model for a while; the model is afterwards as it was, also when something raised."""
    from opacus.optimizers import DPOptimizer

    hooks = hooked(task.module)
    try:
        optimiser = DPOptimizer(
            torch.optim.SGD([p for p in task.module.parameters() if p.requires_grad], lr=1.0),
            noise_multiplier=noise,
            max_grad_norm=clip,
            expected_batch_size=None,
            loss_reduction="sum",
            generator=generator,
        )
        yield PerExample(task, hooks, optimiser, torch.zeros(len(TALLY), device=task.device))
    finally:
        hooks.to_standard_module()
        for layer in task.module.modules():
            for left in ("activations", "max_batch_len"):
                layer.__dict__.pop(left, None)
        for p in task.module.parameters():
            p.__dict__.pop("summed_grad", None)
        task.take_gradients()


def hooked(module: nn.Module) -> Any:
    """Opacus' hooks on a module's layers."""
    from opacus.grad_sample import GradSampleModule

    class Contiguous(GradSampleModule):  # type: ignore[misc]
        """Opacus reads the pixels that a convolution saw as rows; images that lie channels last have other rows."""

        def rearrange_grad_samples(self, **given: Any) -> tuple[list[Tensor], Tensor]:
            activations, backprops = super().rearrange_grad_samples(**given)
            return [one.contiguous() for one in activations], backprops.contiguous()

    return Contiguous(module, loss_reduction="sum")


def refuse_layers(module: nn.Module) -> None:
    """InputError naming all layers that Opacus has no gradients of single examples for."""
    from opacus.validators import ModuleValidator

    found = []
    for place, layer in module.named_modules():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        refuses = ModuleValidator.VALIDATORS.get(type(layer))
        if own and (list(layer.buffers()) or (refuses is not None and refuses(layer))):
            found.append(f"{place or 'the model'} ({type(layer).__name__})")
    if found:
        raise InputError(
            f"name: got dp_sgd with a model whose layers {', '.join(found)} cannot be trained with gradients of "
            "single examples; expected a model without them"
        )


def refuse_what_fails(ground: Ground) -> None:
    """InputError when examples meet in the model, or Opacus gets the gradient of one of the first few wrong."""
    task = ground.task
    training = task.module.training
    task.module.train()
    try:
        with torch.random.fork_rng(devices=[task.device] if task.device.type == "cuda" else []):
            pairs = both_gradients(task, ground.examples)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
        why = str(error).partition("\n")[0]
        raise InputError(f"name: got dp_sgd with a model that Opacus cannot take: {why}") from None
    finally:
        task.module.train(training)
        task.gradient.zero_()
    names = [name for name, p in task.module.named_parameters() if p.requires_grad]
    for found, expected in pairs:
        largest = max(float(one.abs().max()) for one in expected)
        for name, one, other in zip(names, found, expected, strict=True):
            if not torch.allclose(one, other, rtol=1e-2, atol=1e-3 * largest):
                raise InputError(
                    f"name: got dp_sgd with a model for whose {name} Opacus finds other gradients than "
                    "autograd for single examples; expected layers that Opacus knows, with one row an example"
                )


def both_gradients(task: Task, examples: Examples) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Each example's gradient, a tensor for each parameter, by Opacus and by autograd without the other examples.

    For the latter a batch is filled with copies of the example, so that dropout is the same in its place.
    """

    def losses(batch: Batch) -> Tensor:
        return task.losses(task.logits(task.laid_out(batch.x)), batch.labels[0][0])

    batch = Batch.of(task.inputs(examples.x), examples.y)
    refuse_meeting(losses, batch)
    batch = batch.rows(slice(at_once(task)))
    trained = [p for p in task.module.parameters() if p.requires_grad]
    seed = int(torch.randint(2**31, ()))
    expected = []
    for place in range(len(batch)):
        torch.manual_seed(seed)
        copies = Batch.of(batch.x[[place]].expand_as(batch.x), batch.labels[0][0][[place]].expand(len(batch)))
        expected.append(
            list(torch.autograd.grad(losses(copies)[place], trained, allow_unused=True, materialize_grads=True))
        )
    torch.manual_seed(seed)
    with per_example(task, clip=UNCLIPPED, noise=0.0, generator=torch.Generator(device=task.device)) as tool:
        singles = tool.singles(losses, batch)
        found = [[one[place] for one in singles] for place in range(len(batch))]
        tool.hooks.set_grad_sample_to_none()
    return list(zip(found, expected, strict=True))


def refuse_meeting(losses: Callable[[Batch], Tensor], batch: Batch) -> None:
    """InputError when an example's loss depends on another of its batch: clipping would bound nothing."""
    x = batch.x.detach().clone().requires_grad_()
    (seen,) = torch.autograd.grad(losses(replace(batch, x=x))[0], x, allow_unused=True, materialize_grads=True)
    if bool(seen[1:].any()):
        raise InputError(
            "name: got dp_sgd with a model in which an example's loss depends on the others of its batch, so that "
            "clipping each gradient bounds nothing; expected a model that takes examples one by one"
        )
