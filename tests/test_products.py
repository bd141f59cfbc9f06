"""Products of gradients with updates: both ways against the gradients written out, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsiege import products
from fedsiege.products import Piece, cheaper_moved, formed, gram_norm2, moved

SIZES = [(1, 3, 5), (4, 6, 2), (7, 1, 3), (70, 5, 4), (2, 70, 300)]


def drawn(
    positions: int, outputs: int, inputs: int, updates: int = 4, b: int = 19
) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    g, a, rows = (
        torch.randn(*shape, generator=rng, dtype=torch.float64)
        for shape in ((b, outputs, positions), (b, inputs, positions), (updates, outputs * inputs))
    )
    return g, a, rows


@pytest.mark.parametrize(("positions", "outputs", "inputs"), SIZES)
@pytest.mark.parametrize("tile", [(64, 256, 16), (2, 3, 2)])
def test_both_ways_agree_with_the_gradients_written_out(
    positions: int, outputs: int, inputs: int, tile: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(products.TILE, "cpu", tile)
    monkeypatch.setitem(products.MOVED, "cpu", tile[0] * 1000)
    g, a, rows = drawn(positions, outputs, inputs)
    gradients = torch.einsum("bop,bip->boi", g, a).flatten(1)
    piece = Piece("weight", 0, g, a)
    assert piece.entries == outputs * inputs
    torch.testing.assert_close(piece.formed(), gradients)
    torch.testing.assert_close(gram_norm2(g, a), gradients.square().sum(1))
    stacks = [rows[:3], rows[3:]]
    plain = Piece("weight", 0, gradients).against(stacks)
    for dot, norm2 in (moved(g, a, stacks), formed(g, a, stacks), piece.against(stacks), plain):
        torch.testing.assert_close(dot, rows @ gradients.T)
        torch.testing.assert_close(norm2, gradients.square().sum(1))


@pytest.mark.parametrize(("positions", "outputs", "inputs"), SIZES)
@pytest.mark.parametrize("tile", [(64, 256, 16), (2, 3, 2)])
def test_sums_and_squares_on_a_support_are_those_of_the_gradients_written_out(
    positions: int, outputs: int, inputs: int, tile: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(products.TILE, "cpu", tile)
    g, a, rows = drawn(positions, outputs, inputs)
    rows[0] = 0
    rows[1:3][rows[1:3].abs() < 1] = 0
    gradients = torch.einsum("bop,bip->boi", g, a).flatten(1)
    naive = torch.stack([gradients[:, row != 0].square().sum(1) for row in rows])
    for piece in (Piece("weight", 0, g, a), Piece("weight", 0, gradients)):
        torch.testing.assert_close(piece.total(), gradients.sum(1))
        torch.testing.assert_close(piece.squares_on(rows), naive)


@pytest.mark.parametrize("way", [moved, formed])
def test_updates_may_be_some_columns_of_longer_rows(way: products.Way) -> None:
    g, a, rows = drawn(3, 4, 5)
    longer = torch.randn(4, 50, dtype=torch.float64)
    longer[:, 11:31] = rows
    dot, _ = way(g, a, [longer[:, 11:31]])
    torch.testing.assert_close(dot, way(g, a, [rows])[0])


def test_norms_where_positions_cancel_keep_their_digits() -> None:
    rng = torch.Generator().manual_seed(0)
    g = torch.randn(6, 8, 9, generator=rng)
    g -= g.mean(2, keepdim=True)  # as after GroupNorm
    a = 1 + 1e-3 * torch.randn(6, 20, 9, generator=rng)  # an almost constant image
    a[0], g[1] = 1.0, 0.0
    exact = (g.double() @ a.double().transpose(1, 2)).square().sum((1, 2))
    for way in (formed, moved):
        _, norm2 = way(g, a, [torch.randn(3, 160, generator=rng)])
        assert (norm2 >= 0).all()
        torch.testing.assert_close(norm2[2:].double(), exact[2:], rtol=1e-4, atol=0)
        assert (norm2[:2] < 1e-8).all()


@given(st.integers(1, 2000), st.integers(1, 5000), st.integers(1, 600), st.integers(1, 200))
def test_more_updates_never_speak_for_moving(positions: int, inputs: int, outputs: int, updates: int) -> None:
    if cheaper_moved(positions, inputs, outputs, updates + 1) and positions > products.READ:
        assert cheaper_moved(positions, inputs, outputs, updates)


def test_the_cheaper_way_of_known_layers() -> None:
    # AlexNet's late convolutions have four positions: moving five updates costs less than forming a gradient.
    assert cheaper_moved(positions=4, inputs=3456, outputs=256, updates=5)
    assert not cheaper_moved(positions=4, inputs=3456, outputs=256, updates=100)
    # ResNet18's first stage has 1,024 positions.
    assert not cheaper_moved(positions=1024, inputs=576, outputs=64, updates=1)
    assert cheaper_moved(positions=1, inputs=256, outputs=100, updates=1)
