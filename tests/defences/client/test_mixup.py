"""Mixtures of two images: the official numbers, the gradient of a mixed loss, and how much is mixed."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import betainc
from torch import Tensor, nn
from turns import flat_task, golden, guard_of, micro, turn_of

from fedsiege.defences.client.base import Batch
from fedsiege.defences.client.mixup import NOTICEABLE, Mixup, mixed
from fedsiege.errors import InputError
from fedsiege.registry import build
from fedsiege.task import Task, seeded
from fedsiege.training import Training, step


def batch_of(m: int, classes: int = 4, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return Batch.of(torch.randn(m, 5, generator=rng), torch.randint(0, classes, (m,), generator=rng))


def test_the_mixture_and_its_loss_are_the_official_ones(shared_golden: Path) -> None:
    stored = {
        name: torch.as_tensor(of)
        for name, of in golden(shared_golden).items()
        if name.startswith(("perturb", "mix"))
    }
    x, y, weight = stored["perturb_X"], stored["perturb_Y"], float(stored["mixup_lam"])
    apart = torch.cdist(
        stored["mixup_x"].flatten(1), (weight * x[:, None] + (1 - weight) * x).flatten(2).flatten(0, 1)
    )
    order = apart.view(16, 16, 16).diagonal(dim1=0, dim2=1).argmin(0)
    made = mixed(Batch.of(x, y), weight, order)
    torch.testing.assert_close(made.x, stored["mixup_x"], rtol=0, atol=1e-6)
    assert torch.equal(made.labels[0][0], stored["mixup_ya"])
    assert torch.equal(made.labels[1][0], stored["mixup_yb"])
    task = Task(micro())
    task.load(stored["perturb_init"])
    losses = made.weighted(lambda classes: task.losses(task.logits(made.x), classes)).detach()
    assert float(losses.mean()) == pytest.approx(float(stored["mixup_loss_correct"]), abs=1e-6)
    # And not the number of the code that trains on unmixed inputs.
    assert abs(float(losses.mean()) - float(stored["mixup_loss_shipped"])) > 1e-3


def test_a_step_has_the_gradient_of_the_mixed_loss() -> None:
    batch = batch_of(12)
    task = Task(seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), 0))
    turn = turn_of(task, seed=3)
    start = task.state.clone()
    training = Training(lr=1.0, momentum=0.0, weight_decay=0.0)
    step(task, training.optimiser_of(task, 1.0), batch.x, batch.labels[0][0], guard=guard_of(Mixup(), turn))
    moved = start - task.state

    again = turn_of(task, seed=3).rng
    assert again.random() < 1
    weight, order = again.beta(1.0, 1.0), again.permutation(12)
    task.load(start)
    task.gradient.zero_()
    y = batch.labels[0][0]
    logits = task.logits(weight * batch.x + (1 - weight) * batch.x[order])
    (weight * F.cross_entropy(logits, y) + (1 - weight) * F.cross_entropy(logits, y[order])).backward()
    torch.testing.assert_close(moved, task.gradient)
    assert 0.05 < weight < 0.95


def test_weights_of_labels_sum_to_one_however_often_a_batch_is_mixed() -> None:
    batch, turn = batch_of(9), turn_of(flat_task(4, 3))
    for times in range(1, 4):
        batch = Mixup().on_batch(batch, turn)
        assert len(batch.labels) == 2**times
        torch.testing.assert_close(torch.stack([weight for _, weight in batch.labels]).sum(0), torch.ones(9))


def soft(batch: Batch, classes: int) -> Tensor:
    return torch.stack([weight[:, None] * F.one_hot(y, classes) for y, weight in batch.labels]).sum(0)


def test_inputs_and_labels_are_mixed_alike() -> None:
    # Inputs that are their own labels stay so, also after a second mixing.
    y = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(5))
    batch, turn = Batch.of(F.one_hot(y, 4).float(), y), turn_of(flat_task(4, 3))
    for _ in range(2):
        batch = Mixup(alpha=2.0).on_batch(batch, turn)
        torch.testing.assert_close(batch.x, soft(batch, 4))
    assert not torch.equal(batch.x, F.one_hot(y, 4).float())


def test_examples_with_labels_of_their_own_weights_are_mixed_with_them() -> None:
    # As another defence leaves them: inputs that are their own labels, parts of two classes.
    y, weight = torch.arange(8), torch.linspace(0.1, 0.9, 8)
    batch = Batch(torch.empty(0), ((y, weight), ((y + 1) % 8, 1 - weight)))
    batch = Batch(soft(batch, 8), batch.labels)
    made = mixed(batch, 0.7, torch.roll(y, 3))
    torch.testing.assert_close(made.x, soft(made, 8))


@pytest.mark.parametrize(("alpha", "share"), [(1.0, 0.02), (0.01, 0.955)])
def test_the_share_of_batches_that_are_hardly_mixed(alpha: float, share: float) -> None:
    assert 2 * float(betainc(alpha, alpha, NOTICEABLE)) == pytest.approx(share, abs=5e-4)
    defence, turn, batch = Mixup(alpha=alpha), turn_of(flat_task(4, 3)), batch_of(2)
    for _ in range(4000):
        defence.on_batch(batch, turn)
    told = defence.told(turn.counters)
    assert told["batches"] == 4000
    assert 1 - told["mixed"] / 4000 == pytest.approx(share, abs=0.012)


def test_the_mean_weight_of_the_lesser_image() -> None:
    defence, turn, batch = Mixup(), turn_of(flat_task(4, 3)), batch_of(2)
    for _ in range(4000):
        defence.on_batch(batch, turn)
    # A uniform lambda's lesser part is 1/4 on average.
    assert defence.told(turn.counters)["mean_lesser_weight"] == pytest.approx(0.25, abs=0.01)


def test_a_share_of_the_batches_is_mixed_and_the_others_are_the_same_object() -> None:
    defence, turn, batch = Mixup(probability=0.3), turn_of(flat_task(4, 3)), batch_of(6)
    untouched = sum(defence.on_batch(batch, turn) is batch for _ in range(2000))
    assert untouched / 2000 == pytest.approx(0.7, abs=0.04)
    never, turn = Mixup(probability=0.0), turn_of(flat_task(4, 3))
    assert all(never.on_batch(batch, turn) is batch for _ in range(50))
    assert turn.counters.get(Mixup.proof, 0) == 0


@pytest.mark.parametrize("alpha", [1e-5, 1e5])
def test_the_published_extremes_give_finite_mixtures(alpha: float) -> None:
    defence, turn, batch = Mixup(alpha=alpha), turn_of(flat_task(4, 3)), batch_of(6)
    for _ in range(200):
        made = defence.on_batch(batch, turn)
        assert made.x.isfinite().all()
    lesser = defence.told(turn.counters)["mean_lesser_weight"]
    assert lesser == pytest.approx(0.5 if alpha > 1 else 0.0, abs=5e-3)


def test_a_batch_of_one_is_itself() -> None:
    batch = batch_of(1)
    made = Mixup().on_batch(batch, turn_of(flat_task(4, 3)))
    torch.testing.assert_close(made.x, batch.x)
    np.testing.assert_allclose(float(made.weighted(lambda y: torch.ones(1))), 1, rtol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("alpha", 0), ("alpha", -1), ("probability", 1.2)])
def test_bad_mixtures_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.{field}: got {value!r}"):
        build("client_defence", {"name": "mixup", field: value}, "defences.0")
