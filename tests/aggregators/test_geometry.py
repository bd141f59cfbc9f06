"""Lengths, angles and distances, against naive ones and where an attacker would like them to break."""

import math

import numpy as np
import pytest
import torch
from cohorts import normal
from torch import Tensor

from fedsiege.aggregators import geometry
from fedsiege.aggregators.geometry import angles, blocks, cosines, distances2, gram, norms, products, weighted_sum


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, the last of them not full."""
    monkeypatch.setattr(geometry, "BLOCK", 16)


def naive_distances2(rows: Tensor) -> Tensor:
    exact = rows.double()
    return torch.stack([torch.stack([(a - b).square().sum() for b in exact]) for a in exact])


def test_blocks_are_all_columns_in_float64() -> None:
    rows = normal(3, 37)
    parts = list(blocks(rows))
    assert [place for place, _ in parts] == [slice(0, 16), slice(16, 32), slice(32, 48)]
    assert torch.equal(torch.cat([part for _, part in parts], 1), rows.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_products_lengths_angles_and_distances_are_the_naive_ones(dtype: torch.dtype) -> None:
    rows = normal(6, 37).to(dtype)
    exact = rows.double().numpy()
    expected = exact @ exact.T
    lengths = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(gram(rows).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(norms(rows).numpy(), lengths, rtol=1e-12)
    np.testing.assert_allclose(cosines(rows).numpy(), expected / np.outer(lengths, lengths), rtol=0, atol=1e-12)
    np.testing.assert_allclose(distances2(rows).numpy(), naive_distances2(rows).numpy(), rtol=1e-10)


def test_products_of_differences_from_a_point() -> None:
    rows, point = normal(5, 37), normal(1, 37, seed=1)[0]
    away = rows.double() - point.double()
    found, factors = products(rows, about=point)
    assert factors.tolist() == [1.0] * 5
    np.testing.assert_allclose(found.numpy(), (away @ away.T).numpy(), rtol=1e-11)


def test_products_of_float64_rows_are_scaled_by_powers_of_two() -> None:
    rows = torch.tensor([[3e200, -4e200], [1e-200, 0.0], [0.0, 0.0], [1.0, 5.0]], dtype=torch.float64)
    point = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found, factors = products(rows)
    assert all(math.frexp(factor)[0] == 0.5 for factor in factors.tolist())
    scaled = rows * factors[:, None]
    assert bool(((scaled.abs().amax(1) <= 1) & ((scaled.abs().amax(1) >= 0.5) | (rows == 0).all(1))).all())
    torch.testing.assert_close(found, scaled @ scaled.T, rtol=1e-15, atol=0)
    found, factors = products(rows, about=point)
    away = (rows - point) * factors[:, None]
    torch.testing.assert_close(found, away @ away.T, rtol=1e-14, atol=0)
    assert bool(found.isfinite().all())


def test_cosines_of_zeros_are_zero_and_of_each_row_with_itself_one() -> None:
    rows = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-3.0, 0.0], [0.0, 1.0]])
    expected = [[1.0, 0, 0, 0], [0, 1, -1, 0], [0, -1, 1, 0], [0, 0, 0, 1]]
    assert cosines(rows).tolist() == expected


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e38), (torch.float64, 1e300)])
def test_one_enormous_row_takes_nothing_from_what_is_told_of_the_others(dtype: torch.dtype, size: float) -> None:
    rows = torch.cat([normal(4, 37).to(dtype), torch.full((1, 37), size, dtype=dtype)])
    for order in ([0, 1, 2, 3, 4], [4, 0, 1, 2, 3]):
        place = torch.tensor([order.index(i) for i in range(5)])
        squared = distances2(rows[order])[place][:, place]
        assert not bool(squared.isnan().any())
        np.testing.assert_allclose(squared[:4, :4].numpy(), naive_distances2(rows[:4]).numpy(), rtol=1e-9)
        assert bool((squared[4, :4] > 1e70).all())
        lengths = norms(rows[order])[place]
        np.testing.assert_allclose(lengths[:4], rows[:4].double().square().sum(1).sqrt(), rtol=1e-12)
        np.testing.assert_allclose(float(lengths[4]), size * math.sqrt(37), rtol=1e-6)
        inner = cosines(rows[order])[place][:, place]
        np.testing.assert_allclose(inner[:4, :4], cosines(rows[:4]), rtol=0, atol=1e-12)
        ends = rows[:4].double().sum(1) / math.sqrt(37) / rows[:4].double().square().sum(1).sqrt()
        np.testing.assert_allclose(inner[4, :4], ends, rtol=0, atol=1e-12)
        assert not bool(gram(rows[order]).isnan().any())


def test_float64_numbers_whose_squares_vanish_have_lengths_angles_and_relative_distances() -> None:
    rows = torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]], dtype=torch.float64) * 1e-200
    assert norms(rows).tolist() == pytest.approx([5e-200, 5e-200, 0], rel=1e-14)
    assert cosines(rows)[0].tolist() == pytest.approx([1, 0.96, 0], rel=1e-14)
    mixed = torch.cat([rows * 1e120, torch.full((1, 2), 1e250, dtype=torch.float64)])
    assert float(distances2(mixed)[0, 1]) == pytest.approx(2e-160, rel=1e-12)
    single = torch.tensor([[1e-45], [0.0]], dtype=torch.float32)
    assert float(distances2(single)[0, 1]) == pytest.approx(float(single[0, 0].double() ** 2), rel=1e-12)


@pytest.mark.parametrize("first", [0, 7])
def test_close_rows_far_from_the_origin_and_rows_on_many_scales_keep_their_digits(first: int) -> None:
    """Each row is a thousand times as far away as the one before it; pairs lie together at every distance."""
    rows = normal(16, 37).double()
    for pair in range(8):
        rows[2 * pair] = rows[2 * pair] * 1000.0**pair
        rows[2 * pair + 1] = rows[2 * pair] + rows[2 * pair + 1]
    rows = rows.roll(first, 0)
    expected = naive_distances2(rows).numpy()
    np.testing.assert_allclose(distances2(rows).numpy(), expected, rtol=1e-8)
    far = normal(5, 37) * 1e-3 + 100
    np.testing.assert_allclose(distances2(far).numpy(), naive_distances2(far).numpy(), rtol=1e-9)


def test_distances_between_rows_of_whole_numbers_are_whole() -> None:
    rows = normal(7, 37).mul(9).round()
    assert torch.equal(distances2(rows), naive_distances2(rows))
    assert torch.equal(distances2(rows + 1000), naive_distances2(rows))


def test_equal_rows_are_at_distance_zero_whatever_lies_around_them() -> None:
    rows = normal(4, 37)[[0, 1, 0, 2, 1, 1, 3]]
    squared = distances2(torch.cat([rows, torch.full((2, 37), 3e30)]))
    equal = [(0, 2), (1, 4), (1, 5), (4, 5), (7, 8)]
    assert all(float(squared[i, j]) == 0 for i, j in equal)
    assert int((squared == 0).sum()) == 9 + 2 * len(equal)
    assert torch.equal(distances2(normal(1, 5)), torch.zeros(1, 1, dtype=torch.float64))


def test_weighted_sums_are_made_in_float64_and_given_in_the_type_of_the_rows() -> None:
    rows = torch.tensor([[1e8, 1.0], [1.0, 1.0], [-1e8, 1.0]])
    total = weighted_sum(rows, torch.ones(3))
    assert total.dtype == torch.float32
    assert total.tolist() == [1.0, 3.0]
    many = normal(4, 37)
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    torch.testing.assert_close(weighted_sum(many, shares), (many.double().T @ shares).float(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_without_weight_do_not_count_whatever_they_hold(dtype: torch.dtype, bad: float) -> None:
    rows = normal(5, 5000).to(dtype)
    rows[1] = bad
    shares = torch.tensor([0.5, 0.0, 0.25, 0.0, -2.0])
    expected = 0.5 * rows[0].double() + 0.25 * rows[2].double() - 2 * rows[4].double()
    torch.testing.assert_close(weighted_sum(rows, shares), expected.to(dtype), rtol=1e-6, atol=1e-6)
    assert torch.equal(weighted_sum(rows, torch.zeros(5)), torch.zeros(5000, dtype=dtype))


def test_angles_are_in_degrees_and_a_row_of_zeros_is_at_90_to_every_other() -> None:
    rows = torch.tensor([[1.0, 0.0], [3.0, 3.0], [-2.0, 0.0], [0.0, 0.0]])
    expected = [[0, 45, 180, 90], [45, 0, 135, 90], [180, 135, 0, 90], [90, 90, 90, 0]]
    np.testing.assert_allclose(angles(rows), expected, rtol=0, atol=1e-12)
    assert angles(rows).dtype == torch.float64


def test_nothing_here_writes_to_the_rows() -> None:
    rows = normal(4, 37).double()
    before = rows.clone()
    gram(rows), norms(rows), distances2(rows), cosines(rows), weighted_sum(rows, torch.ones(4))
    products(rows, about=rows[0])
    assert torch.equal(rows, before)
