"""Local training against a plain torch loop on an ordinary module."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from fedsiege.errors import InputError
from fedsiege.records import Examples
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.training import Training, train

M, CLASSES = 23, 4


def model() -> nn.Module:
    # No bias before BatchNorm: its gradient is rounding noise, which Adam would blow up.
    return nn.Sequential(nn.Linear(6, 9, bias=False), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, CLASSES))


def client() -> Examples:
    rng = torch.Generator().manual_seed(2)
    x, y = torch.randn(M, 6, generator=rng), torch.randint(0, CLASSES, (M,), generator=rng)
    return Examples(np.array([f"{i}" for i in range(M)]), x, y)


def plain(
    module: nn.Module, data: Examples, optimiser: torch.optim.Optimizer, orders: list[Any], batch: int
) -> Tensor:
    """The loop of every tutorial; returns the flat parameters and running statistics."""
    module.train()
    for order in orders:
        for first in range(0, len(order), batch):
            rows = torch.as_tensor(order[first : first + batch])
            optimiser.zero_grad()
            F.cross_entropy(module(data.x[rows]), data.y[rows]).backward()
            optimiser.step()
    norm: Any = module[1]  # type: ignore[index]
    return torch.cat([t.detach().reshape(-1) for t in (*module.parameters(), norm.running_mean, norm.running_var)])


@pytest.mark.parametrize(
    ("fields", "make"),
    [
        ({"momentum": 0.0, "weight_decay": 0.0}, lambda p, lr: torch.optim.SGD(p, lr=lr)),
        (
            {"momentum": 0.9, "weight_decay": 0.01},
            lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.01),
        ),
        ({"optimiser": "adam", "weight_decay": 0.02}, lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=0.02)),
        ({"optimiser": "adamw", "weight_decay": 0.3}, lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.3)),
    ],
)
def test_local_training_is_a_plain_loop(fields: dict[str, Any], make: Any) -> None:
    module, data, lr = seeded(model, 0), client(), 0.05
    twin = copy.deepcopy(module)
    task, training = Task(module), Training(epochs=3, batch=5, **fields)
    start = task.state.clone()
    update = train(task, start, data, training, lr, stream(0, "test"))
    rng = stream(0, "test")
    expected = plain(twin, data, make(twin.parameters(), lr), [rng.permutation(M) for _ in range(3)], 5)
    torch.testing.assert_close(start + update, expected, rtol=1e-5, atol=1e-6)
    assert update[: task.layout.trained].abs().max() > 0.01


def test_fedsgd_is_one_plain_step_on_all_data_whatever_the_other_fields_say() -> None:
    module, data = seeded(model, 0), client()
    twin = copy.deepcopy(module)
    task = Task(module)
    training = Training(algorithm="fedsgd", epochs=7, batch=3, optimiser="adam", momentum=0.9, weight_decay=0.5)
    start = task.state.clone()
    update = train(task, start, data, training, 0.3, stream(0, "test"))
    expected = plain(twin, data, torch.optim.SGD(twin.parameters(), lr=0.3), [np.arange(M)], M)
    torch.testing.assert_close(start + update, expected, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_do_not_train() -> None:
    module = seeded(model, 0)
    module[0].requires_grad_(False)  # type: ignore[index]
    before = module[0].weight.detach().clone()  # type: ignore[index]
    task = Task(module)
    update = train(task, task.state.clone(), client(), Training(weight_decay=0.1), 0.1, stream(0, "test"))
    assert torch.equal(module[0].weight.detach(), before)  # type: ignore[index]
    assert len(update) == task.layout.size == 9 + 9 + 36 + 4 + 18


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_every_call_begins_with_a_fresh_optimiser_and_the_same_rng_gives_the_same_update(optimiser: Any) -> None:
    task, data, training = Task(seeded(model, 0)), client(), Training(epochs=2, batch=4, optimiser=optimiser)
    start = task.state.clone()
    first = train(task, start, data, training, 0.05, stream(0, "a"))
    train(task, start + first, data, training, 0.05, stream(0, "b"))
    again = train(task, start, data, training, 0.05, stream(0, "a"))
    other = train(task, start, data, training, 0.05, stream(0, "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_is_in_training_mode_and_returns_its_own_memory() -> None:
    task, data = Task(seeded(model, 0)), client()
    task.module.eval()
    start = task.state.clone()
    update = train(task, start, data, Training(), 0.1, stream(0, "test"))
    kept = update.clone()
    assert update[task.layout.trained :].abs().min() > 0, "running statistics moved"
    task.load(start)
    assert torch.equal(update, kept)


def test_a_client_without_examples_is_refused() -> None:
    task = Task(seeded(model, 0))
    empty = client().take(np.arange(0))
    with pytest.raises(InputError, match="a client without examples cannot train"):
        train(task, task.state.clone(), empty, Training(), 0.1, stream(0, "test"))


def test_a_lone_example_that_batch_norm_cannot_train_on_is_named() -> None:
    task = Task(seeded(model, 0))
    with pytest.raises(
        InputError, match=r"training\.batch: it leaves a client a batch of 1, which BatchNorm cannot train on"
    ):
        train(task, task.state.clone(), client(), Training(batch=11), 0.1, stream(0, "test"))


def test_schedules_by_hand() -> None:
    assert [Training(lr=0.5).rate(n, 4) for n in (1, 2, 4)] == [0.5, 0.5, 0.5]
    factor = Training(lr=0.5, schedule="factor", factor=0.9)
    assert [factor.rate(n, 4) for n in (1, 2, 4)] == pytest.approx([0.5, 0.45, 0.5 * 0.9**3])
    cosine = Training(lr=0.8, schedule="cosine")
    expected = [0.8, 0.8 * (1 + math.sqrt(0.5)) / 2, 0.4, 0.8 * (1 - math.sqrt(0.5)) / 2]
    assert [cosine.rate(n, 4) for n in (1, 2, 3, 4)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": 0.0},
        {"lr": math.inf},
        {"lr": math.nan},
        {"momentum": 1.0},
        {"epochs": 0},
        {"batch": 0},
        {"factor": 1.5},
        {"optimiser": "sgdd"},
        {"learning_rate": 0.1},
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Training(**fields)


def test_dropout_draws_from_the_clients_own_stream_and_leaves_torchs_alone() -> None:
    task = Task(nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, CLASSES)))
    start = task.state.clone()

    def update(*name: str | int) -> Tensor:
        return train(task, start, client(), Training(batch=8, epochs=2), 0.05, stream(0, *name))

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = update("client", 1, 4)
    torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)
    torch.manual_seed(2)
    torch.testing.assert_close(update("client", 1, 4), first, rtol=0, atol=0)
    assert not torch.equal(update("client", 1, 5), first)
