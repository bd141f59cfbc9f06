"""HAMP's labels by hand, and its loss against its definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import examples_of, guard_of, turn_of

from fedsiege.defences.client.base import Batch
from fedsiege.defences.client.hamp import HAMP, label_entropy, top_probability
from fedsiege.defences.client.mixup import mixed
from fedsiege.errors import InputError
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task, seeded
from fedsiege.training import Training, train

CLASSES = 5


def logits_of(m: int, scale: float = 1.5, seed: int = 0) -> tuple[Tensor, Batch]:
    rng = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(m, CLASSES, generator=rng)).requires_grad_()
    return logits, Batch.of(torch.zeros(m, 3), torch.randint(0, CLASSES, (m,), generator=rng))


def label(classes: int, y: int, top: float) -> Tensor:
    """A soft label, written out."""
    others = (1 - top) / (classes - 1)
    return torch.tensor([top if c == y else others for c in range(classes)], dtype=torch.float64)


def defined(logits: Tensor, y: Tensor, defence: HAMP, top: float) -> Tensor:
    """The definition in float64, with torch's own divergence and entropy."""
    log_p = torch.log_softmax(logits.double(), 1)
    labels = torch.stack([label(logits.shape[1], int(one), top) for one in y])
    over = labels.numel() if defence.reduction == "published" else len(labels)
    entropy: Tensor = torch.distributions.Categorical(logits=log_p).entropy()
    return F.kl_div(log_p, labels, reduction="sum") / over - defence.alpha * entropy.mean()


def loss_of(defence: HAMP, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    turn = turn_of(Task(nn.Linear(3, CLASSES)))
    guard = guard_of(defence, turn)
    plain = batch.weighted(lambda y: F.cross_entropy(logits, y, reduction="none"))
    with guard.training(0):
        losses = guard.on_loss(plain, logits, batch)
    assert losses.shape == (len(logits),)
    return losses.mean(), defence.told(turn.counters)


@pytest.mark.parametrize(
    ("classes", "gamma", "top"),
    [
        # CIFAR-100: H(0.64) = 2.3077 and H(0.65) = 2.2557 around log(100) / 2 = 2.3026.
        (100, 0.5, 0.64),
        # CIFAR-10: H(0.26) = 2.1990 and H(0.27) = 2.1872 around 0.95 log(10) = 2.1875.
        (10, 0.95, 0.26),
        (2, 0.5, 0.88),
        (2, 0.0, 1.0),
        (5, 0.0, 1.0),
        (5, 1.0, 0.2),
        (100, 1.0, 0.01),
        (3, 1.0, 1 / 3),
        (1000, 1.0, 0.001),
    ],
)
def test_the_largest_probability_of_a_label(classes: int, gamma: float, top: float) -> None:
    assert top_probability(classes, gamma) == pytest.approx(top, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_a_label_has_its_entropy_and_a_hundredth_more_would_have_too_little(classes: int, gamma: float) -> None:
    top, least = top_probability(classes, gamma), gamma * math.log(classes)

    def entropy(p: float) -> float:
        return float(torch.distributions.Categorical(probs=label(classes, 0, p)).entropy())

    assert entropy(top) >= least - 1e-6
    assert label_entropy(classes, top) == pytest.approx(entropy(top), abs=1e-6)
    assert top == 1 or entropy(min(1.0, math.floor(top * 100 + 1 + 1e-9) / 100)) < least
    assert top * classes >= 1 - 1e-12


@pytest.mark.parametrize("reduction", ["batch", "published"])
@pytest.mark.parametrize(("gamma", "alpha"), [(0.5, 0.005), (0.95, 0.3), (0.0, 0.0), (1.0, 1.0)])
def test_hamp_and_its_gradient_are_those_of_the_definition(reduction: str, gamma: float, alpha: float) -> None:
    defence = HAMP(gamma=gamma, alpha=alpha, reduction=reduction)  # type: ignore[arg-type]
    logits, batch = logits_of(12)
    loss, _ = loss_of(defence, logits, batch)
    expected = defined(logits, batch.labels[0][0], defence, top_probability(CLASSES, gamma))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    (found,), (wanted,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_hard_labels_without_reward_are_the_cross_entropy() -> None:
    logits, batch = logits_of(12)
    loss, _ = loss_of(HAMP(gamma=0.0, alpha=0.0), logits, batch)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, batch.labels[0][0]).item(), rel=1e-6)


def test_mixed_classes_of_hamp_count_with_their_weights() -> None:
    logits, batch = logits_of(8)
    order = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    y, defence = batch.labels[0][0], HAMP(alpha=0.2)
    loss, _ = loss_of(defence, logits, mixed(batch, 0.7, order))
    top = top_probability(CLASSES, 0.5)
    expected = 0.7 * defined(logits, y, defence, top) + 0.3 * defined(logits, y[order], defence, top)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_weight_of_hamp_mixes_and_zero_returns_the_plain_losses_untouched() -> None:
    logits, batch = logits_of(12)
    plain = F.cross_entropy(logits, batch.labels[0][0], reduction="none")
    whole, _ = loss_of(HAMP(), logits, batch)
    part, _ = loss_of(HAMP(weight=0.25), logits, batch)
    assert part.item() == pytest.approx((0.75 * plain.mean() + 0.25 * whole).item(), rel=1e-5)
    assert HAMP(weight=0.0).on_loss(plain, logits, batch, turn_of(Task(nn.Linear(3, CLASSES)))) is plain


def test_it_tells_of_the_entropies_of_labels_and_outputs() -> None:
    logits, batch = logits_of(12)
    _, told = loss_of(HAMP(), logits, batch)
    assert told["examples"] == 12
    assert told["mean_label_entropy"] == pytest.approx(
        label_entropy(CLASSES, top_probability(CLASSES, 0.5)), rel=1e-6
    )
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert told["mean_output_entropy"] == pytest.approx(entropy.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "changed"),
    [({"gamma": 0.0, "alpha": 0.0}, 0), ({"gamma": 0.0}, 12), ({"alpha": 0.0}, 12), ({"weight": 0.0}, 0)],
)
def test_hamp_says_that_it_acted_only_where_the_loss_is_another(fields: dict[str, float], changed: int) -> None:
    logits, batch = logits_of(12)
    _, told = loss_of(HAMP(**fields), logits, batch)  # type: ignore[arg-type]
    assert told[HAMP.proof] == changed


def test_extreme_logits_have_finite_hamp_losses() -> None:
    logits, batch = logits_of(12, scale=200.0)
    loss, _ = loss_of(HAMP(gamma=0.95, alpha=1.0), logits, batch)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_a_trained_model_has_the_labels_entropy_where_a_plain_one_is_certain() -> None:
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 6, generator=rng), torch.randint(0, CLASSES, (40,), generator=rng)
    task = Task(seeded(lambda: nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, CLASSES)), 0))
    start, training, data = task.state.clone(), Training(epochs=150, batch=20, weight_decay=0.0), examples_of(x, y)

    def entropy(*guards: object) -> float:
        update = train(task, start, data, training, 0.1, stream(0, "c"), *guards)  # type: ignore[arg-type]
        logits = task.predict(start + update, data)
        return float(torch.distributions.Categorical(logits=logits).entropy().mean())

    wanted = label_entropy(CLASSES, top_probability(CLASSES, 0.8))
    assert entropy() < 0.3
    assert entropy(guard_of(HAMP(gamma=0.8), turn_of(task))) == pytest.approx(wanted, abs=0.1)


@pytest.mark.parametrize(
    ("field", "value"), [("gamma", 1.1), ("gamma", -0.1), ("alpha", -1), ("weight", 2), ("reduction", "sum")]
)
def test_bad_fields_of_hamp_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.{field}: got {value!r}"):
        build("client_defence", {"name": "hamp", field: value}, "defences.0")
