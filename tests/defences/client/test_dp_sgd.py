"""DP-SGD against gradients of single examples by plain autograd, and the privacy that it says it spent."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import examples_of, guard_of, turn_of

from fedsiege.defences.client import dp_sgd
from fedsiege.defences.client.base import Batch, Ground, Guard, Turn
from fedsiege.defences.client.dp_sgd import DPSGD, sampling_rate, steps_taken
from fedsiege.defences.privacy import sampled_gaussian_epsilon
from fedsiege.errors import InputError
from fedsiege.models.base import build_model
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.training import Training, train

CLASSES, SHAPE = 4, (2, 8, 8)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 6), nn.Tanh(), nn.Linear(6, CLASSES))


def picture() -> nn.Module:
    """Narrow convolutions, whose images lie channels last while they train."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.Flatten()
    ).append(nn.Linear(16, CLASSES))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 5), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES))


class Tied(nn.Module):
    """A layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(128, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.middle(self.middle(self.first(x.flatten(1)).tanh()).tanh()))
        return logits


class Scaled(nn.Module):
    """A parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 128))
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1) * self.scale)
        return logits


def frozen() -> nn.Module:
    module = linear()
    module[1].weight.requires_grad_(False)  # type: ignore[index]
    return module


MODELS: list[Callable[[], nn.Module]] = [linear, picture, normalised, Tied, Scaled, frozen]


def data(m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(m, *SHAPE, generator=rng), torch.randint(0, CLASSES, (m,), generator=rng)


def ground_of(module: nn.Module, sizes: tuple[int, ...] = (20,), **fields: Any) -> Ground:
    """A run of this model in which all clients use the defence."""
    known = {"using": range(len(sizes)), **fields}
    return Ground(Task(module), examples_of(*data(8)), sizes, batch=10, **known)


def single_gradients(model: Callable[[], nn.Module], state: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Gradients [m, trained] of single examples by plain autograd."""
    module = seeded(model, 0)
    trained = [p for p in module.parameters() if p.requires_grad]
    torch.nn.utils.vector_to_parameters(state, trained)
    rows = [
        torch.autograd.grad(F.cross_entropy(module(a[None]), b[None]), trained) for a, b in zip(x, y, strict=True)
    ]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def clipped_sum(gradients: Tensor, clip: float) -> Tensor:
    norms = gradients.norm(dim=1)
    shares: Tensor = (clip / norms).clamp(max=1)
    return shares @ gradients


def losses_of(task: Task) -> Callable[[Batch], Tensor]:
    return lambda batch: task.losses(task.logits(task.laid_out(batch.x)), batch.labels[0][0])


def filled(task: Task, defence: DPSGD, given: Batch, **fields: Any) -> tuple[Tensor, Turn]:
    """The gradient of one step, and the turn that it was made in."""
    turn = turn_of(task, **{"examples": 40, "batch": 10, **fields})
    task.module.train()
    guard = guard_of(defence, turn)
    task.gradient.zero_()
    with guard.training(0):
        guard.backward(losses_of(task), given)
    return task.gradient.clone(), turn


@pytest.mark.parametrize("model", MODELS)
def test_without_noise_a_step_is_the_mean_of_clipped_gradients(model: Callable[[], nn.Module]) -> None:
    task, (x, y) = Task(seeded(model, 0)), data(9)
    singles = single_gradients(model, task.state, x, y)
    clip = 1.01 * float(singles.norm(dim=1).median())
    gradient, turn = filled(task, DPSGD(clip=clip, noise_multiplier=0.0), Batch.of(x, y))
    # Opacus adds 1e-6 to each norm.
    torch.testing.assert_close(gradient, clipped_sum(singles, clip) / 10, rtol=1e-5, atol=1e-6)
    assert (turn.counters["steps"], turn.counters["examples"]) == (1, 9)
    assert turn.counters["clipped"] == int((singles.norm(dim=1) > clip).sum()) == 4


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_batch_in_parts_gives_the_same_sum_with_few_gradients_at_once(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, (x, y) = Task(seeded(normalised, 0)), data(9)
    whole, _ = filled(task, DPSGD(clip=0.3, noise_multiplier=0.7), Batch.of(x, y))
    monkeypatch.setattr(dp_sgd, "ROOM", 4 * task.layout.trained * rows)
    seen: list[int] = []
    turn, defence = turn_of(task, examples=40), DPSGD(clip=0.3, noise_multiplier=0.7)

    def losses(batch: Batch) -> Tensor:
        seen.append(len(batch))
        return losses_of(task)(batch)

    with guard_of(defence, turn).training(0):
        defence.on_gradient(losses, Batch.of(x, y), turn)
    torch.testing.assert_close(task.gradient, whole, rtol=1e-5, atol=1e-7)
    assert max(seen) == rows
    assert sum(seen) == 9
    assert turn.counters["examples"] == 9


def test_one_gradient_at_a_time_when_a_single_one_takes_more_than_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd, "ROOM", 1)
    assert dp_sgd.at_once(Task(linear())) == 1
    DPSGD().check(ground_of(linear()))


def test_an_empty_batch_is_noise_of_the_stated_size() -> None:
    task = Task(seeded(linear, 0))
    x, y = data(0)
    gradient, turn = filled(task, DPSGD(clip=0.5, noise_multiplier=3.0), Batch.of(x, y))
    assert float(gradient.std()) * 10 / 1.5 == pytest.approx(1, abs=0.08)
    assert abs(float(gradient.mean())) < 4 * 0.15 / math.sqrt(len(gradient))
    assert (turn.counters["steps"], turn.counters["examples"]) == (1, 0)


def test_noise_is_added_to_the_sum_and_is_fresh_in_every_step() -> None:
    task, (x, y) = Task(seeded(linear, 0)), data(5)
    turn, noiseless = turn_of(task, examples=40), filled(task, DPSGD(noise_multiplier=0.0), Batch.of(x, y))[0]
    defence = DPSGD(noise_multiplier=2.0)
    noises = []
    with guard_of(defence, turn).training(0):
        for _ in range(40):
            defence.on_gradient(losses_of(task), Batch.of(x, y), turn)
            noises.append((task.gradient - noiseless) * 10)
    found = torch.stack(noises)
    assert float(found.std()) == pytest.approx(2.0, rel=0.02)
    assert abs(float(found.mean())) < 4 * 2.0 / math.sqrt(found.numel())
    assert abs(float(torch.corrcoef(found[:2])[0, 1])) < 0.15


def test_noise_comes_from_the_turn_alone() -> None:
    task, (x, y) = Task(seeded(linear, 0)), data(5)
    torch.manual_seed(0)
    first, _ = filled(task, DPSGD(), Batch.of(x, y))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert torch.equal(filled(task, DPSGD(), Batch.of(x, y))[0], first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(filled(task, DPSGD(), Batch.of(x, y), seed=1)[0], first)


def test_steps_are_poisson_samples() -> None:
    task, m, batch, steps = Task(linear()), 50, 10, 4000
    turn = turn_of(task, examples=m, batch=batch)
    parts = DPSGD().on_epoch([slice(0, batch)] * steps, turn)
    assert len(parts) == steps
    taken = torch.zeros(steps, m)
    for row, part in zip(taken, parts, strict=True):
        assert isinstance(part, Tensor)
        assert len(part.unique()) == len(part)
        row[part] = 1
    sizes, rate = taken.sum(1), batch / m
    deviation = math.sqrt(m * rate * (1 - rate))
    assert float(sizes.mean()) == pytest.approx(batch, abs=4 * deviation / math.sqrt(steps))
    assert float(sizes.var()) == pytest.approx(deviation**2, rel=0.1)
    each = taken.mean(0)
    assert float((each - rate).abs().max()) < 4.5 * math.sqrt(rate * (1 - rate) / steps)
    together = (taken.T @ taken / steps).fill_diagonal_(rate**2)
    assert float((together - rate**2).abs().max()) < 5.5 * math.sqrt(rate**2 / steps)


@pytest.mark.parametrize(("batch", "examples"), [(None, 7), (10, 10), (100, 7)])
def test_a_step_that_takes_all_takes_each_example_once(batch: int | None, examples: int) -> None:
    assert sampling_rate(batch, examples) == 1
    (part,) = DPSGD().on_epoch([slice(0, 100)], turn_of(Task(linear()), examples=examples, batch=batch))
    assert isinstance(part, Tensor)
    assert part.tolist() == list(range(examples))


@pytest.mark.parametrize("batch", [None, 10])
def test_a_client_that_was_left_no_example_takes_no_step(batch: int | None) -> None:
    turn = turn_of(Task(linear()), examples=0, batch=batch)
    assert DPSGD().on_epoch([], turn) == []
    assert 0 < sampling_rate(batch, 0) <= 1


@pytest.mark.parametrize("batch", [None, 100])
def test_a_step_that_takes_all_is_divided_by_all(batch: int | None) -> None:
    task, (x, y) = Task(seeded(linear, 0)), data(7)
    singles = single_gradients(linear, task.state, x, y)
    gradient, _ = filled(task, DPSGD(clip=0.2, noise_multiplier=0.0), Batch.of(x, y), batch=batch, examples=7)
    torch.testing.assert_close(gradient, clipped_sum(singles, 0.2) / 7, rtol=1e-5, atol=1e-6)


def test_a_whole_training_is_a_plain_loop_over_poisson_samples() -> None:
    (x, y), clip, noise = data(23), 0.4, 0.8
    task, training = Task(seeded(normalised, 0)), Training(epochs=2, batch=6, lr=0.05)
    start = task.state.clone()
    turn = turn_of(task, seed=5, examples=23, batch=6)
    update = train(
        task,
        start,
        examples_of(x, y),
        training,
        0.05,
        stream(0, "c"),
        guard_of(DPSGD(clip=clip, noise_multiplier=noise), turn),
    )

    own, rng = turn_of(task, seed=5).rng, stream(0, "c")
    rng.spawn(1)
    generator = torch.Generator().manual_seed(int(own.integers(2**63)))
    state, velocity = start.clone(), torch.zeros_like(start)
    for _ in range(2):
        order = torch.as_tensor(rng.permutation(23))
        for place in [np.flatnonzero(own.random(23) < 6 / 23) for _ in range(4)]:
            rows = order[torch.as_tensor(place)]
            total = clipped_sum(single_gradients(normalised, state, x[rows], y[rows]), clip) if len(rows) else 0
            drawn = [torch.normal(0.0, noise * clip, shape, generator=generator) for shape in task.layout.shapes]
            gradient = (total + torch.cat([one.flatten() for one in drawn])) / 6 + 5e-4 * state
            velocity = 0.9 * velocity + gradient
            state = state - 0.05 * velocity
    torch.testing.assert_close(start + update, state, rtol=1e-4, atol=2e-6)
    assert turn.counters["steps"] == 8


def traces_of(module: nn.Module) -> list[str]:
    """What is left of hooks and of gradients of single examples."""
    hooks = ("_forward_hooks", "_backward_hooks", "_forward_pre_hooks", "_backward_pre_hooks")
    left = [f"{hook} of {layer}" for layer in module.modules() for hook in hooks if getattr(layer, hook)]
    plain = {layer: set(type(layer)().__dict__) for layer in module.modules() if type(layer) is nn.Tanh}
    left += [str(set(layer.__dict__) - known) for layer, known in plain.items() if set(layer.__dict__) - known]
    for layer in module.modules():
        left += [
            name for name in ("activations", "max_batch_len", "ft_compute_sample_grad") if hasattr(layer, name)
        ]
    for p in module.parameters():
        left += [name for name in vars(p) if name != "grad"]
    return left


class BrokenError(RuntimeError):
    pass


@pytest.mark.parametrize("model", [linear, Tied, Scaled, frozen])
@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_afterwards_as_it_was(model: Callable[[], nn.Module], broken: bool) -> None:
    task, (x, y) = Task(seeded(model, 0)), data(20)
    start, calls = task.state.clone(), []

    def once(training: Training, guard: Guard | None = None) -> Tensor:
        more = () if guard is None else (guard,)
        return train(task, start, examples_of(x, y), training, 0.1, stream(0, "client"), *more)

    plain = once(Training(batch=5))
    defence = DPSGD()
    turn = turn_of(task, examples=20, batch=5)
    if broken:

        class Failing(Guard):
            def on_loss(self, losses: Tensor, logits: Tensor, batch: Batch) -> Tensor:
                calls.append(len(losses))
                if len(calls) > 2:
                    raise BrokenError
                return losses

        with pytest.raises(BrokenError):
            once(Training(batch=5), Failing([(defence, turn)]))
    else:
        assert not torch.equal(once(Training(batch=5), guard_of(defence, turn)), plain)
    assert traces_of(task.module) == []
    for p in task.module.parameters():
        if p.requires_grad:
            assert p.grad is not None
            storage = task.gradient.untyped_storage()
            assert p.grad.untyped_storage().data_ptr() == storage.data_ptr()
    assert torch.equal(once(Training(batch=5)), plain)


def test_gradients_are_views_again_when_it_breaks_between_noise_and_copy() -> None:
    task = Task(seeded(linear, 0))

    def broken() -> None:
        with dp_sgd.per_example(task, 1.0, 1.0, torch.Generator()):
            for p in task.module.parameters():
                p.grad = torch.ones_like(p)
            raise BrokenError

    with pytest.raises(BrokenError):
        broken()
    task.gradient.fill_(3.0)
    assert all(p.grad is not None and bool((p.grad == 3).all()) for p in task.module.parameters())


class Meeting(nn.Module):
    """Every example sees the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1) - x.flatten(1).mean(0))
        return logits


class Folded(nn.Module):
    """Takes each of 4 x 4 patches for a row of its layers and averages their logits: 16 rows an example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.unfold(x, 2, stride=2).transpose(1, 2).reshape(-1, 8)
        logits: Tensor = self.head(self.first(rows).tanh()).view(len(x), 16, CLASSES).mean(1)
        return logits


class PositionFirst(nn.Module):
    """Its layers see positions in the first dimension and examples in the second; `parts` positions."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.first, self.head = nn.Linear(128 // parts, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.first(x.view(len(x), self.parts, -1).transpose(0, 1)).tanh()).mean(0)
        return logits


class MeetingUnseen(nn.Module):
    """Every example sees the mean of its batch, with no gradient that would tell."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1) - x.flatten(1).mean(0).detach())
        return logits


class Remembering(nn.Linear):
    """A trained layer with a number of its own that is not trained."""

    def __init__(self) -> None:
        super().__init__(128, CLASSES)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.spare = nn.Linear(128, CLASSES), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits


REFUSED = [
    (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, CLASSES)),
        r"1 \(BatchNorm2d\)",
    ),
    (
        lambda: nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(128, CLASSES)),
        r"batch statistics in 0 \(BatchNorm2d\).*norm: group",
    ),
    (
        lambda: nn.Sequential(
            nn.InstanceNorm2d(2, track_running_stats=True), nn.Flatten(), nn.Linear(128, CLASSES)
        ),
        r"batch statistics in 0 \(InstanceNorm2d\)",
    ),
    (lambda: nn.Sequential(nn.Flatten(), Remembering()), r"layers 1 \(Remembering\) cannot be trained"),
    (Meeting, "depends on the others of its batch"),
    (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES)),
        "that Opacus cannot take: .*inplace",
    ),
    (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(256, CLASSES)
        ),
        r"for whose 0\.weight Opacus finds other gradients than autograd",
    ),
    (Unused, "that Opacus cannot take: .*not updated in backward"),
    (Folded, "that shows a layer 128 rows for 8 examples"),
    (lambda: PositionFirst(4), "that shows a layer 4 rows for 8 examples"),
    (lambda: PositionFirst(8), r"for whose first\.weight Opacus finds other gradients than autograd for single"),
    (MeetingUnseen, r"for whose head\.weight Opacus finds other gradients than autograd for single"),
]


@pytest.mark.parametrize(("model", "words"), REFUSED)
def test_a_model_that_cannot_have_it_is_refused(model: Callable[[], nn.Module], words: str) -> None:
    ground = ground_of(seeded(model, 0))
    with pytest.raises(InputError, match=rf"(?is)^name: got dp_sgd with a model .*{words}"):
        DPSGD().check(ground)
    assert traces_of(ground.task.module) == []


def test_rows_that_are_no_examples_are_refused_in_every_step() -> None:
    # A model can begin to fold after the first round's check; each row would be clipped for itself.
    task, (x, y) = Task(seeded(Folded, 0)), data(5)
    with pytest.raises(InputError, match="shows a layer 80 rows for 5 examples"):
        filled(task, DPSGD(clip=0.01, noise_multiplier=0.0), Batch.of(x, y))
    assert traces_of(task.module) == []


def test_dropout_is_no_reason_to_refuse_a_model() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 40), nn.ReLU(), nn.Dropout(0.5))
    DPSGD().check(ground_of(seeded(lambda: module.append(nn.Linear(40, CLASSES)), 0)))


@pytest.mark.parametrize(
    "spec",
    ["mlp", "cnn", {"name": "resnet18_light", "norm": "group"}, {"name": "resnet20", "norm": "none"}],
)
def test_models_of_the_house_are_taken_and_left_as_they_were(spec: Any) -> None:
    shape = (3, 16, 16)
    task = Task(seeded(lambda: build_model(spec, shape, CLASSES), 0), (0.5,) * 3, (0.2,) * 3)
    before, random = task.state.clone(), torch.random.get_rng_state()
    task.module.eval()
    x = torch.randint(0, 256, (8, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    examples = examples_of(x, torch.arange(8) % CLASSES)
    DPSGD().check(Ground(task, examples, (20,), (0,), 10))
    assert torch.equal(task.state, before)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not task.gradient.any()
    assert not task.module.training
    assert traces_of(task.module) == []


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_rounded_gradients_are_refused(precision: str) -> None:
    with pytest.raises(InputError, match=rf"training\.precision {precision}.*expected fp32"):
        DPSGD().check(ground_of(linear(), precision=precision))


def test_without_opacus_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install fedsiege\[dp\]"):
        DPSGD().check(ground_of(linear()))


@pytest.mark.parametrize(
    ("field", "value"),
    [("clip", 0), ("clip", -1), ("noise_multiplier", -0.1), ("delta", 0), ("delta", 1), ("accountant", "gdp")],
)
def test_bad_fields_of_dp_sgd_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.{field}: got {value!r}"):
        build("client_defence", {"name": "dp_sgd", field: value}, "defences.0")


def test_the_worst_client_is_the_one_with_the_largest_epsilon() -> None:
    # Client 1 takes fewer steps at a higher rate; client 2 is in one round alone with part of its data.
    counters = {
        "steps": 98.0,
        "steps_of_0_100": 50.0,
        "steps_of_1_20": 30.0,
        "steps_of_2_100": 8.0,
        "steps_of_2_50": 10.0,
    }
    ground = ground_of(linear(), (100, 20, 100))
    taken = steps_taken(counters, 10)
    assert taken == {0: ((0.1, 50),), 1: ((0.5, 30),), 2: ((0.1, 8), (0.2, 10))}
    each = {k: sampled_gaussian_epsilon(1.3, steps, 1e-5, "rdp")[0] for k, steps in taken.items()}
    (spent,) = DPSGD(noise_multiplier=1.3).guarantees(counters, ground)
    assert each[1] > max(each[0], each[2])
    assert spent.epsilon == each[1]
    assert (spent.unit, spent.against, spent.delta, spent.accountant) == ("example", "server", 1e-5, "rdp")
    for words in (
        "client 1",
        "30 steps at sampling rate 0.5",
        "Poisson",
        "noise multiplier 1.3",
        "one example replaced by nothing, the client's number of examples being public",
    ):
        assert words in spent.note
    assert spent.clients == "of every client"
    assert "normalisation" not in spent.note
    some = ground_of(linear(), (100, 20, 100, 100), using=(0, 1, 2), measured=True)
    (partial,) = DPSGD(noise_multiplier=1.3).guarantees(counters, some)
    assert partial.clients == "of clients 0, 1 and 2"
    assert partial.note.endswith("constants, computed from all training data, are taken as public")
    (tighter,) = DPSGD(noise_multiplier=1.3, accountant="prv").guarantees(counters, ground)
    assert tighter.accountant == "prv"
    assert tighter.epsilon is not None
    assert 0.8 * each[1] < tighter.epsilon < each[1]


def test_clipping_alone_guarantees_nothing_and_no_steps_cost_nothing() -> None:
    ground = ground_of(linear(), (100,))
    (spent,) = DPSGD(noise_multiplier=0.0).guarantees({"steps_of_0_100": 4.0}, ground)
    assert spent.epsilon is None
    assert spent.note.startswith("no noise, no bound")
    assert DPSGD().guarantees({}, ground) == []


def test_what_dp_sgd_tells_of_its_steps() -> None:
    task, (x, y) = Task(seeded(linear, 0)), data(20)
    defence, turn = DPSGD(clip=1e9, noise_multiplier=0.0), turn_of(task, examples=20, batch=5, client=3)
    train(
        task, task.state.clone(), examples_of(x, y), Training(batch=5), 0.1, stream(0, "c"), guard_of(defence, turn)
    )
    assert turn.counters["steps_of_3_20"] == 4
    told = defence.told(turn.counters)
    assert told.pop("mean_gradient_norm") > 0
    examples = turn.counters["examples"]
    assert told == {"steps": 4, "examples": examples, "mean_clipped": 0, "changed": 0, "mean_noise_norm": 0}
    assert steps_taken(turn.counters, 5) == {3: ((0.25, 4),)}


def test_it_tells_the_norms_of_the_clipped_sum_and_of_the_noise() -> None:
    task, (x, y) = Task(seeded(linear, 0)), data(9)
    total = clipped_sum(single_gradients(linear, task.state, x, y), 0.5)
    defence, turn = DPSGD(clip=0.5, noise_multiplier=3.0), turn_of(task, examples=40)
    with guard_of(defence, turn).training(0):
        for given in (Batch.of(x, y), Batch.of(x[:0], y[:0])):
            defence.on_gradient(losses_of(task), given, turn)
    told = defence.told(turn.counters)
    assert told["mean_gradient_norm"] == pytest.approx(float(total.norm()) / 2, rel=1e-4)
    assert told["mean_noise_norm"] == pytest.approx(1.5 * math.sqrt(task.layout.trained), rel=0.05)
    assert told["changed"] == told["steps"] == 2


def test_steps_without_clipping_or_noise_changed_nothing() -> None:
    task, (x, y) = Task(seeded(linear, 0)), data(9)
    for clip, noise, changed in ((1e9, 0.0, 0), (1e-3, 0.0, 1), (1e9, 0.1, 1)):
        _, turn = filled(task, DPSGD(clip=clip, noise_multiplier=noise), Batch.of(x, y))
        assert turn.counters[DPSGD.proof] == changed


def test_a_copy_of_the_plain_module_has_the_same_forward_pass_while_it_trains() -> None:
    task, (x, _) = Task(seeded(normalised, 0)), data(6)
    expected = copy.deepcopy(task.module)(x)
    task.module.train()
    with dp_sgd.per_example(task, 1.0, 1.0, torch.Generator()):
        assert torch.equal(task.logits(x), expected)


def test_layers_keep_their_names_while_it_trains() -> None:
    task = Task(seeded(lambda: nn.Sequential(OrderedDict(flat=nn.Flatten(), head=nn.Linear(128, CLASSES))), 0))
    with dp_sgd.per_example(task, 1.0, 1.0, torch.Generator()):
        assert [name for name, _ in task.module.named_parameters()] == list(task.layout.names)
