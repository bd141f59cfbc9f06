"""Hidden images: the official numbers, weights within their bounds, signs, partners and labels."""

from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from turns import flat_task, golden, micro, turn_of

from fedsiege.defences.client.base import Batch
from fedsiege.defences.client.instahide import InstaHide, hidden, mixture_weights
from fedsiege.errors import InputError
from fedsiege.registry import build
from fedsiege.streams import stream
from fedsiege.task import Task


class Recovered:
    """The partners and signs behind the golden file's hidden batch, found by trying all pairs of partners."""

    def __init__(self, stored: dict[str, NDArray[Any]]) -> None:
        self.x = torch.as_tensor(stored["perturb_X"])
        self.y = torch.as_tensor(stored["perturb_Y"])
        self.hidden = torch.as_tensor(stored["instahide_x"])
        self.weights = torch.as_tensor(stored["instahide_lams"])
        m = len(self.x)
        self.orders = torch.empty(2, m, dtype=torch.long)
        self.signs = torch.empty(2, *self.x.shape)
        for i in range(m):
            own, first, second = self.weights[i]
            # The first flip decides whether the last image is added to or taken from the rest.
            tried = [
                self._tried(i, own * self.x[i] + first * self.x[a], second * self.x[b]) for a, b in self._pairs(m)
            ]
            misfit, place = min((misfit, place) for place, (misfit, _) in enumerate(tried))
            assert misfit < 1e-5
            self.orders[:, i] = torch.tensor(self._pairs(m)[place])
            self.signs[0, i], self.signs[1, i] = tried[place][1]

    @staticmethod
    def _pairs(m: int) -> list[tuple[int, int]]:
        return list(product(range(m), range(m)))

    def _tried(self, i: int, rest: Tensor, last: Tensor) -> tuple[float, tuple[Tensor, Tensor]]:
        target = self.hidden[i]
        added, taken = rest + last, last - rest
        misfits = torch.stack([(one.abs() - target.abs()).abs() for one in (added, taken)])
        inner = torch.where(misfits[0] <= misfits[1], 1.0, -1.0)
        whole = inner * rest + last
        return float(misfits.amin(0).max()), (inner, torch.where(whole * target >= 0, 1.0, -1.0))


@pytest.fixture(scope="module")
def recovered(shared_golden: Path) -> Recovered:
    return Recovered(golden(shared_golden))


def test_the_hidden_batch_and_its_loss_are_the_official_ones(recovered: Recovered, shared_golden: Path) -> None:
    stored = golden(shared_golden)
    given = Batch.of(recovered.x, recovered.y)
    made = hidden(given, recovered.weights, recovered.orders, recovered.signs)
    torch.testing.assert_close(made.x, recovered.hidden, rtol=0, atol=1e-5)
    for (y, weight), official, share in zip(made.labels, stored["instahide_y"], recovered.weights.T, strict=True):
        assert y.tolist() == official.tolist()
        torch.testing.assert_close(weight, share)
    task = Task(micro())
    task.load(torch.as_tensor(stored["perturb_init"]))
    losses = made.weighted(lambda classes: task.losses(task.logits(made.x), classes)).detach()
    assert float(losses.mean()) == pytest.approx(float(stored["instahide_loss"]), abs=1e-6)


def test_the_official_weights_lie_where_ours_do(recovered: Recovered) -> None:
    for weights in (recovered.weights.numpy(), mixture_weights(500, 3, 0.65, stream(0, "test"))):
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
        assert weights.min() > 0
        assert weights.max(1).min() >= 0.5
        assert weights.max() <= 0.65
        # Any image of a mixture may be the largest, the own one included.
        assert set(weights.argmax(1)) == {0, 1, 2}


@pytest.mark.parametrize(("k", "largest"), [(2, 0.55), (4, 0.85), (6, 0.55), (6, 1.0)])
def test_weights_of_every_size_of_mixture(k: int, largest: float) -> None:
    weights = mixture_weights(300, k, largest, stream(1, "test"))
    np.testing.assert_allclose(weights.sum(1), 1)
    assert ((weights.max(1) >= 0.5) & (weights.max(1) <= largest)).all()


def test_accepted_weights_have_the_distribution_of_the_published_draw() -> None:
    drawn = np.abs(stream(2, "plain").standard_normal((60_000, 3)))
    drawn /= drawn.sum(1, keepdims=True)
    kept = drawn[(drawn.max(1) >= 0.5) & (drawn.max(1) <= 0.65)]
    ours = mixture_weights(20_000, 3, 0.65, stream(2, "ours"))
    quantiles = np.linspace(0.05, 0.95, 19)
    for image in range(3):
        np.testing.assert_allclose(
            np.quantile(ours[:, image], quantiles), np.quantile(kept[:, image], quantiles), atol=0.01
        )


def images(m: int) -> Batch:
    rng = torch.Generator().manual_seed(0)
    return Batch.of(torch.randn(m, 3, 8, 8, generator=rng), torch.arange(m))


def soft(batch: Batch) -> Tensor:
    """The labels as shares of eight classes."""
    return torch.stack([weight[:, None] * F.one_hot(y, 8) for y, weight in batch.labels]).sum(0)


def mixture_before_signs(batch: Batch, made: Batch) -> Tensor:
    """The plain mixture, from the labels: they tell who was mixed in, and how much."""
    return torch.stack([weight.view(-1, 1, 1, 1) * batch.x[y] for y, weight in made.labels]).sum(0)


def test_signs_flipped_once_leave_the_sizes_of_the_mixture() -> None:
    batch = images(40)
    made = InstaHide(k=4, largest=0.85).on_batch(batch, turn_of(flat_task(4, 3)))
    plain = mixture_before_signs(batch, made)
    torch.testing.assert_close(made.x.abs(), plain.abs())
    flipped = (made.x.sign() != plain.sign()).float()
    assert float(flipped.mean()) == pytest.approx(0.5, abs=0.02)
    # Every pixel, channel and image by itself.
    for axes in ((0, 1), (1, 2, 3), (0, 2, 3)):
        shares = flipped.mean(axes)
        assert float(shares.min()) > 0.2
        assert float(shares.max()) < 0.8
    assert float(torch.corrcoef(flipped.flatten(2).permute(1, 0, 2).flatten(1))[0, 1].abs()) < 0.06


def test_signs_flipped_after_each_image_do_not() -> None:
    batch = images(40)
    made = InstaHide(k=3, mask="each").on_batch(batch, turn_of(flat_task(4, 3)))
    plain = mixture_before_signs(batch, made)
    assert not torch.allclose(made.x.abs(), plain.abs())
    # With two images there is one flip, which is both.
    for mask in ("once", "each"):
        made = InstaHide(k=2, mask=mask).on_batch(batch, turn_of(flat_task(4, 3)))
        torch.testing.assert_close(made.x.abs(), mixture_before_signs(batch, made).abs())


@pytest.mark.parametrize("mask", ["once", "each"])
@pytest.mark.parametrize("k", [2, 3, 6])
def test_labels_hold_every_image_of_the_mixture(mask: Literal["once", "each"], k: int) -> None:
    made = InstaHide(k=k, largest=0.85, mask=mask).on_batch(images(20), turn_of(flat_task(4, 3)))
    assert made.x.shape == (20, 3, 8, 8)
    assert len(made.labels) == k
    torch.testing.assert_close(torch.stack([weight for _, weight in made.labels]).sum(0), torch.ones(20))
    assert made.labels[0][0].tolist() == list(range(20))
    for y, _ in made.labels[1:]:
        assert sorted(y.tolist()) == list(range(20))
        assert y.tolist() != list(range(20))


def test_labels_that_were_mixed_before_go_with_their_images() -> None:
    # Inputs that are their own labels, in uneven parts, stay so until their signs are flipped.
    y, part = torch.arange(8), torch.linspace(0.1, 0.9, 8)
    labels = ((y, part), ((y + 1) % 8, 1 - part))
    batch = Batch(soft(Batch(torch.empty(0), labels)), labels)
    made = InstaHide(k=3).on_batch(batch, turn_of(flat_task(4, 3)))
    assert len(made.labels) == 6
    torch.testing.assert_close(made.x.abs(), soft(made))


@pytest.mark.parametrize("m", [1, 2])
def test_a_batch_smaller_than_a_mixture_repeats_its_images(m: int) -> None:
    batch = images(m)
    made = InstaHide(k=4).on_batch(batch, turn_of(flat_task(4, 3)))
    torch.testing.assert_close(made.x.abs(), mixture_before_signs(batch, made).abs())
    if m == 1:
        torch.testing.assert_close(made.x.abs(), batch.x.abs())


def test_it_tells_the_mean_weights() -> None:
    defence, turn = InstaHide(), turn_of(flat_task(4, 3))
    for _ in range(20):
        defence.on_batch(images(50), turn)
    told = defence.told(turn.counters)
    assert told["images"] == 1000
    assert told["mean_own_weight"] == pytest.approx(1 / 3, abs=0.02)
    assert 0.55 < told["mean_largest_weight"] < 0.6


@pytest.mark.parametrize(
    ("field", "value"), [("k", 1), ("k", 7), ("largest", 0.5), ("largest", 1.1), ("mask", "twice")]
)
def test_bad_mixtures_of_hidden_images_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.{field}: got {value!r}"):
        build("client_defence", {"name": "instahide", field: value}, "defences.0")
