"""Levels of an upload: the official numbers, exact levels, the size of the error, and degenerate tensors."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from turns import flat_task, golden, golden_task, golden_vector, turn_of, update_of

from fedsiege.defences.client.quantize import Quantize, on_levels
from fedsiege.errors import InputError
from fedsiege.registry import build


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10])
def test_quantised_weights_are_the_official_ones(bits: int, shared_golden: Path) -> None:
    stored = golden(shared_golden)
    start, local, official = (golden_vector(stored, which) for which in ("global", "local", f"quant_{bits}"))
    update = Quantize(bits=bits).on_update(local - start, turn_of(golden_task(stored)))
    torch.testing.assert_close(start + update, official, rtol=0, atol=1e-6)


def test_levels_by_hand() -> None:
    entries = torch.tensor([-1.0, -0.6, -0.5, 0.0, 0.74, 0.75, 1.0])
    assert on_levels(entries, 2).tolist() == [-1, -1, -0.5, 0, 0.5, 0.5, 1]
    assert on_levels(entries, 1).tolist() == [-1, -1, -1, 0, 0, 0, 1]


@given(
    st.lists(st.floats(-1e3, 1e3, width=32, allow_subnormal=False), min_size=2, max_size=50),
    st.integers(1, 10),
)
def test_no_entry_moves_by_more_than_a_step_nor_up(entries: list[float], bits: int) -> None:
    given = torch.tensor(entries)
    coarse = on_levels(given, bits)
    step = float(given.max() - given.min()) / 2**bits
    slack = 1e-6 * (float(given.abs().max()) + 1e-6)
    assert float((coarse - given).max()) <= slack
    assert float((given - coarse).max()) <= step + slack
    assert len(coarse.unique()) <= 2**bits + 1


def test_a_constant_tensor_and_buffers_stay() -> None:
    assert torch.equal(on_levels(torch.full((7,), 0.3), 4), torch.full((7,), 0.3))
    assert torch.equal(on_levels(torch.tensor([0.3]), 1), torch.tensor([0.3]))
    task = flat_task(30, 20)
    update = update_of(task)
    coarse = Quantize(bits=2).on_update(update, turn_of(task))
    assert torch.equal(coarse[task.layout.trained :], update[task.layout.trained :])
    assert len(update) > task.layout.trained
    for name, place in task.layout.slices():
        if place.stop <= task.layout.trained:
            assert len(coarse[place].unique()) <= 5, name


def test_it_tells_how_large_the_rounding_is() -> None:
    task, defence = flat_task(30, 20), Quantize(bits=3)
    turn, update = turn_of(task), update_of(task)
    error = defence.on_update(update, turn) - update
    defence.on_update(torch.zeros_like(update), turn)
    told = defence.told(turn.counters)
    assert (told["updates"], told["changed"]) == (2, 1)
    assert told["mean_update_norm"] == pytest.approx(float(update[: task.layout.trained].norm()) / 2)
    assert told["mean_error_norm"] == pytest.approx(float(error.norm()) / 2)


def test_without_bits_nothing_happens_and_nothing_is_counted() -> None:
    task = flat_task(4, 3)
    turn, update = turn_of(task), update_of(task)
    assert Quantize(bits=None).on_update(update, turn) is update
    assert not turn.counters


def test_a_broken_update_is_not_mended_by_levels() -> None:
    assert on_levels(torch.tensor([1.0, float("nan"), 2.0]), 2).isnan().any()
    assert not on_levels(torch.tensor([1.0, float("inf"), 2.0]), 2).isfinite().all()


@pytest.mark.parametrize("bits", [0, -1, 25, 2.5])
def test_numbers_of_bits_that_make_no_levels_are_refused(bits: float) -> None:
    with pytest.raises(InputError, match=rf"defences\.0\.bits: got {bits!r}"):
        build("client_defence", {"name": "quantize", "bits": bits}, "defences.0")
