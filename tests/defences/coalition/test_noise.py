"""Noise that cancels in the weighted mean, and what stays where it cannot."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsiege.defences.coalition import noise as module
from fedsiege.defences.coalition.noise import Form, Noise, projected

UNEVEN = {0: 5.0, 3: 1200.0, 4: 800.0, 7: 431.0}
FORMS: tuple[Form, ...] = ("scalar", "vector")


def noise_of(weights: Mapping[int, float] = UNEVEN, **fields: Any) -> Noise:
    known: dict[str, Any] = {"secret": 7, "number": 1, "sigma": 0.1, "form": "vector", "cancels": True}
    return Noise(weights=weights, **{**known, **fields})


def whole(noise: Noise, member: int, size: int) -> NDArray[np.float64]:
    made = np.full(size, np.nan)
    for place, values in noise.blocks(member, size):
        made[place] = values
    return made


def rms(values: NDArray[np.float64]) -> float:
    return math.sqrt(sum(v * v for v in values.tolist()) / len(values))


def test_the_projection_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    raw, w = rng.standard_normal((4, 3)), np.array([0.1, 0.2, 0.3, 0.4])
    found = projected(raw, w)
    for i in range(3):
        common = sum(w[j] * raw[j, i] for j in range(4)) / sum(one**2 for one in w)
        for k in range(4):
            assert found[k, i] == pytest.approx(raw[k, i] - w[k] * common, abs=1e-14)
    np.testing.assert_allclose(projected(found, w), found, atol=1e-15)


def test_two_of_equal_weight_add_opposite_noise() -> None:
    for form in FORMS:
        pair = noise_of({2: 30.0, 5: 30.0}, form=form)
        np.testing.assert_allclose(whole(pair, 2, 50), -whole(pair, 5, 50), rtol=0, atol=1e-16)


WEIGHTS = st.lists(st.floats(1e-3, 1e5), min_size=2, max_size=8)


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, form=st.sampled_from(FORMS), number=st.integers(1, 1000))
def test_the_weighted_sum_is_nothing_for_any_weights(weights: list[float], form: Form, number: int) -> None:
    # Acceptance check 1: the noise cancels, for uneven weights.
    noise = noise_of(dict(enumerate(weights)), form=form, number=number)
    shares = [weight / math.fsum(weights) for weight in weights]
    tails = [whole(noise, k, 5) for k in range(len(weights))]
    for i in range(5):
        assert abs(math.fsum(w * tail[i] for w, tail in zip(shares, tails, strict=True))) <= 1e-15


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_aggregate_is_what_it_was_without(form: Form, dtype: torch.dtype, tolerance: float) -> None:
    # Acceptance check 1, on updates, in both precisions.
    size, noise = 1000, noise_of(form=form)
    rng = torch.Generator().manual_seed(1)
    plain = {k: 0.05 * torch.randn(size, generator=rng, dtype=dtype) for k in UNEVEN}
    noisy = {k: (row.double() + torch.as_tensor(whole(noise, k, size))).to(dtype) for k, row in plain.items()}
    total = sum(UNEVEN.values())
    with_it = sum(UNEVEN[k] / total * row.double() for k, row in noisy.items())
    without = sum(UNEVEN[k] / total * row.double() for k, row in plain.items())
    assert isinstance(with_it, torch.Tensor)
    assert float((with_it - without).abs().max()) <= tolerance
    if form == "vector":
        assert all(float((noisy[k] - plain[k]).double().square().mean().sqrt()) >= 0.1 / 4 for k in UNEVEN)


def test_every_member_is_moved_by_a_quarter_of_sigma_or_more() -> None:
    for number in range(1, 20):
        vector = noise_of(number=number)
        assert all(rms(whole(vector, k, 500)) >= 0.1 / 4 for k in UNEVEN)
    # A single number may come out near nothing: over many rounds it does not.
    drawn = {k: [whole(noise_of(form="scalar", number=n), k, 1)[0] for n in range(1, 800)] for k in UNEVEN}
    for k, values in drawn.items():
        assert rms(np.array(values)) >= 0.1 / 4
        assert rms(np.array(values)) == pytest.approx(noise_of().deviation(k), rel=0.1)
        assert abs(np.mean(values)) < 4 * 0.1 / math.sqrt(800)


def test_how_much_a_member_adds_is_known_beforehand() -> None:
    norm = sum(w * w for w in UNEVEN.values())
    for k, w in UNEVEN.items():
        assert noise_of().deviation(k) == pytest.approx(0.1 * math.sqrt(1 - w * w / norm))
        assert rms(whole(noise_of(), k, 60_000)) == pytest.approx(noise_of().deviation(k), rel=0.02)
        assert noise_of(cancels=False).deviation(k) == 0.1
    assert noise_of({1: 2.0, 2: 2.0}).deviation(1) == pytest.approx(0.1 / math.sqrt(2))


def test_nearly_all_of_the_weight_leaves_a_member_nearly_no_noise() -> None:
    lopsided = noise_of({0: 1e6, 1: 3.0, 2: 4.0})
    assert lopsided.deviation(0) == pytest.approx(0.1 * 5e-6, rel=1e-6)
    assert rms(whole(lopsided, 0, 5000)) == pytest.approx(0.1 * 5e-6, rel=0.05)
    assert lopsided.deviation(1) == pytest.approx(0.1, rel=1e-6)


def test_noise_that_is_to_cancel_needs_two() -> None:
    assert noise_of().active
    assert not noise_of({3: 10.0}).active
    assert noise_of({3: 10.0}).deviation(3) == 0
    assert noise_of({3: 10.0}, cancels=False).active
    assert not noise_of({}).active
    assert not noise_of(sigma=0.0).active


def test_noise_of_ones_own_does_not_cancel() -> None:
    tails = {k: whole(noise_of(cancels=False), k, 20_000) for k in UNEVEN}
    assert all(rms(tail) == pytest.approx(0.1, rel=0.03) for tail in tails.values())
    total = sum(UNEVEN.values())
    mean = np.sum([UNEVEN[k] / total * tail for k, tail in tails.items()], axis=0)
    assert rms(mean) > 0.05
    alone = noise_of({4: 1.0}, cancels=False)
    np.testing.assert_array_equal(whole(alone, 4, 20_000), tails[4])


def test_a_scalar_is_the_same_everywhere_and_a_vector_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 64)
    scalar = whole(noise_of(form="scalar"), 3, 300)
    assert len(set(scalar.tolist())) == 1
    vector = whole(noise_of(), 3, 300)
    assert len(set(vector.tolist())) == 300
    lengths = [(place.start, place.stop, len(values)) for place, values in noise_of().blocks(3, 150)]
    assert lengths == [(0, 64, 64), (64, 128, 64), (128, 150, 22)]


@pytest.mark.parametrize("form", FORMS)
def test_other_secrets_rounds_and_members_give_other_noise(form: Form) -> None:
    one = whole(noise_of(form=form), 3, 40)
    np.testing.assert_array_equal(one, whole(noise_of(form=form), 3, 40))
    np.testing.assert_array_equal(one[:25], whole(noise_of(form=form), 3, 25))
    for other in (noise_of(form=form, secret=8), noise_of(form=form, number=2)):
        assert abs(whole(other, 3, 40) - one).max() > 1e-4
    assert abs(whole(noise_of(form=form), 4, 40) - one).max() > 1e-4


@pytest.mark.parametrize("cancels", [True, False])
def test_what_a_lost_member_leaves_in_the_aggregate(cancels: bool) -> None:
    # With others in the round, who are no members, and one member whose answer did not arrive.
    arrived = {0: 5.0, 1: 300.0, 4: 800.0, 7: 431.0, 8: 10.0}
    for number in range(1, 5):
        noise = noise_of(form="scalar", number=number, cancels=cancels)
        by_hand = sum(arrived[k] * whole(noise, k, 1)[0] for k in (0, 4, 7)) / sum(arrived.values())
        assert noise.left(arrived) == pytest.approx(abs(by_hand), rel=1e-9)
        assert noise.left(arrived) > 0
    vector = noise_of(cancels=cancels)
    tail = sum(arrived[k] * whole(vector, k, 60_000) for k in (0, 4, 7)) / sum(arrived.values())
    assert isinstance(tail, np.ndarray)
    assert vector.left(arrived) == pytest.approx(rms(tail), rel=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_left_when_all_arrive(form: Form) -> None:
    assert noise_of(form=form).left({**UNEVEN, 9: 50.0}) == 0, "rounding is nothing"
    assert noise_of(form=form).left({**UNEVEN, 0: 4.99}) > 1e-8, "what is little is not"
    assert noise_of(form=form).left({}) == 0
    assert noise_of(form=form).left({9: 50.0}) == 0, "no member arrived, and so no noise"
    assert noise_of({3: 1.0}, form=form).left({3: 1.0}) == 0
