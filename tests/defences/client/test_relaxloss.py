"""RelaxLoss against its definition, one example at a time, and which of its three ways a step takes."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import examples_of, guard_of, turn_of

from fedsiege.defences.client.base import Batch
from fedsiege.defences.client.mixup import mixed
from fedsiege.defences.client.relaxloss import RelaxLoss, flattened
from fedsiege.errors import InputError
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.training import Training, train

CLASSES = 5


def logits_of(m: int, scale: float, seed: int = 0) -> tuple[Tensor, Batch]:
    rng = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(m, CLASSES, generator=rng)).requires_grad_()
    return logits, Batch.of(torch.zeros(m, 3), torch.randint(0, CLASSES, (m,), generator=rng))


def defined(logits: Tensor, y: Tensor, alpha: float, even: bool) -> Tensor:
    """The published definition in float64, with a loop over the examples."""
    logits = logits.double()
    mean = F.cross_entropy(logits, y)
    if even:
        return (mean - alpha).abs()
    if mean > alpha:
        return mean
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits, y.tolist(), strict=True):
        p = torch.softmax(row, 0)
        target = torch.stack([p[c] if c == label else (1 - p[label]) / (CLASSES - 1) for c in range(CLASSES)])
        wrong = 0.0 if int(row.argmax()) == label else 1.0
        total = total + wrong * -(target * p.log()).sum() + p[label].log()
    return total / len(y)


def loss_of(defence: RelaxLoss, logits: Tensor, batch: Batch, epoch: int) -> tuple[Tensor, dict[str, float]]:
    """The mean loss of a step in this epoch, and what was counted."""
    turn = turn_of(Task(nn.Linear(3, CLASSES)))
    guard = guard_of(defence, turn)
    plain = batch.weighted(lambda y: F.cross_entropy(logits, y, reduction="none"))
    with guard.training(epoch):
        losses = guard.on_loss(plain, logits, batch)
    assert losses.shape == (len(logits),)
    return losses.mean(), turn.counters


@pytest.mark.parametrize("epoch", [0, 1, 6, 7])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0, 50.0])
def test_the_loss_and_its_gradient_are_those_of_the_definition(epoch: int, alpha: float) -> None:
    logits, batch = logits_of(12, scale=1.5)
    loss, _ = loss_of(RelaxLoss(alpha=alpha), logits, batch, epoch)
    expected = defined(logits, batch.labels[0][0], alpha, epoch % 2 == 0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,), (wanted,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_each_way_has_its_time() -> None:
    logits, batch = logits_of(12, scale=1.5)
    ways = {
        (epoch, alpha): {name for name, n in loss_of(RelaxLoss(alpha=alpha), logits, batch, epoch)[1].items() if n}
        for epoch in (0, 1)
        for alpha in (0.1, 50.0)
    }
    assert ways == {
        (0, 0.1): {"steps_of_descent"},
        (1, 0.1): {"steps_of_descent"},
        (0, 50.0): {"steps_of_ascent", "steps_relaxed"},
        (1, 50.0): {"steps_of_flattening", "steps_relaxed"},
    }


def test_above_alpha_the_gradient_is_the_plain_one_to_the_bit() -> None:
    logits, batch = logits_of(12, scale=1.5)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, batch.labels[0][0], reduction="none").mean(), logits)
    for epoch in (0, 1):
        loss, _ = loss_of(RelaxLoss(alpha=0.1), logits, batch, epoch)
        assert torch.equal(torch.autograd.grad(loss, logits)[0], plain)


def test_flattening_moves_the_targets_too() -> None:
    # With targets outside the graph a wrong example would have another gradient.
    logits = torch.tensor([[1.0, 0.2, 0.0]], requires_grad=True)
    y = torch.tensor([1])
    (found,) = torch.autograd.grad(flattened(logits, y).sum(), logits)
    p = torch.softmax(logits.detach(), 1)[0]
    fixed = torch.stack([(1 - p[1]) / 2, p[1], (1 - p[1]) / 2])
    assert float((found[0] - (p - fixed)).abs().max()) > 0.05


def test_examples_that_are_right_are_not_flattened() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    found = flattened(logits, torch.tensor([0, 0]))
    log_p = torch.log_softmax(logits[1], 0)
    own = float(log_p[0].exp())
    others = (1 - own) / 2
    by_hand = -(own * float(log_p[0]) + others * float(log_p[1] + log_p[2]))
    assert found.tolist() == [0.0, pytest.approx(by_hand, rel=1e-5)]


def test_mixed_classes_count_with_their_weights() -> None:
    logits, batch = logits_of(8, scale=1.5)
    order = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    both = mixed(batch, 0.7, order)
    y = batch.labels[0][0]
    loss, _ = loss_of(RelaxLoss(alpha=50.0), logits, both, 1)
    expected = 0.7 * defined(logits, y, 50.0, False) + 0.3 * defined(logits, y[order], 50.0, False)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_weight_mixes_with_the_cross_entropy_and_zero_returns_it_untouched() -> None:
    logits, batch = logits_of(12, scale=1.5)
    plain = F.cross_entropy(logits, batch.labels[0][0], reduction="none")
    relaxed, _ = loss_of(RelaxLoss(alpha=50.0), logits, batch, 1)
    part, _ = loss_of(RelaxLoss(alpha=50.0, weight=0.25), logits, batch, 1)
    assert part.item() == pytest.approx((0.75 * plain.mean() + 0.25 * relaxed).item(), rel=1e-5)
    turn = turn_of(Task(nn.Linear(3, CLASSES)))
    assert RelaxLoss(weight=0.0).on_loss(plain, logits, batch, turn) is plain


@pytest.mark.parametrize("scale", [0.0, 200.0])
@pytest.mark.parametrize("epoch", [0, 1])
def test_extreme_logits_have_finite_losses_and_gradients(scale: float, epoch: int) -> None:
    logits, batch = logits_of(12, scale=scale)
    loss, _ = loss_of(RelaxLoss(alpha=1e6), logits, batch, epoch)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_training_stops_at_alpha_where_plain_training_goes_on() -> None:
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(60, 6, generator=rng), torch.randint(0, CLASSES, (60,), generator=rng)
    task = Task(seeded(lambda: nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, CLASSES)), 0))
    start, training, data = task.state.clone(), Training(epochs=80, batch=20, weight_decay=0.0), examples_of(x, y)

    def final(*guard: Any) -> float:
        return task.measure(start + train(task, start, data, training, 0.1, stream(0, "c"), *guard), data)[1]

    turn = turn_of(task)
    assert final() < 0.2
    assert final(guard_of(RelaxLoss(alpha=1.0), turn)) == pytest.approx(1.0, abs=0.3)
    counted = turn.counters
    ways = ("steps_of_descent", "steps_of_ascent", "steps_of_flattening")
    assert sum(counted[way] for way in ways) == 80 * 3
    assert all(counted[way] > 0 for way in ways)
    assert counted["steps_relaxed"] == counted["steps_of_ascent"] + counted["steps_of_flattening"]


def test_epochs_are_counted_over_rounds() -> None:
    # In the second round of one epoch the client is in its epoch 1, which is odd: it flattens.
    data = examples_of(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.arange(4))
    task = Task(seeded(lambda: nn.Linear(3, CLASSES), 0))
    for number, way in ((1, "steps_of_ascent"), (2, "steps_of_flattening"), (3, "steps_of_ascent")):
        turn = turn_of(task, number=number)
        guard = guard_of(RelaxLoss(alpha=50.0), turn)
        train(task, task.state.clone(), data, Training(), 0.1, stream(0, "c"), guard, number)
        assert turn.counters[way] == 1


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", -0.1), ("weight", 1.5), ("weight", -1), ("alpha", math.nan)]
)
def test_bad_fields_of_relaxloss_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.{field}: got {value!r}"):
        build("client_defence", {"name": "relaxloss", field: value}, "defences.0")
