"""The largest entries of each tensor: the official numbers, a plain restatement, ties, and what is left alone."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from turns import flat_task, golden, golden_task, golden_vector, ground_of, turn_of, update_of

from fedsiege.defences.client.sparsify import Sparsify, largest
from fedsiege.errors import InputError
from fedsiege.registry import build


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_sparse_weights_are_the_official_ones(share: float, shared_golden: Path) -> None:
    stored = golden(shared_golden)
    start, local, official = (golden_vector(stored, which) for which in ("global", "local", f"sparse_{share:g}"))
    update = Sparsify(share=share).on_update(local - start, turn_of(golden_task(stored)))
    torch.testing.assert_close(start + update, official, rtol=0, atol=1e-7)
    assert torch.equal(update == 0, official == start)


def plain(entries: list[float], share: float) -> list[float]:
    """Sorted by size; what is as large as the last one kept is kept."""
    keep = int(len(entries) * (1 - share))
    if keep == 0:
        return [0.0] * len(entries)
    smallest = sorted((abs(u) for u in entries), reverse=True)[keep - 1]
    return [u if abs(u) >= smallest else 0.0 for u in entries]


@given(
    st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40),
    st.floats(0, 1, exclude_max=True, allow_subnormal=False),
)
def test_the_largest_entries_as_by_sorting(entries: list[float], share: float) -> None:
    assert largest(torch.tensor(entries), share).tolist() == plain(entries, share)


def test_ties_with_the_smallest_kept_stay() -> None:
    assert largest(torch.tensor([3.0, -2.0, 2.0, 1.0]), 0.5).tolist() == [3, -2, 2, 0]


def test_small_tensors_and_buffers_are_left_alone() -> None:
    task = flat_task(30, 20, 6)
    update = update_of(task)
    places = dict(task.layout.slices())
    sparse = Sparsify(share=0.75, spare=120).on_update(update, turn_of(task))
    for name, place in places.items():
        if name == "0.weight":
            assert int((sparse[place] != 0).sum()) == 150
        else:
            assert torch.equal(sparse[place], update[place]), name
    # 120 entries are spared at 120, and not at 119.
    stricter = Sparsify(share=0.75, spare=119).on_update(update, turn_of(task))
    assert int((stricter[places["2.weight"]] != 0).sum()) == 30


def test_statistics_stay_even_where_no_tensor_is_spared() -> None:
    task = flat_task(30, 20, 6)
    update, trained = update_of(task), task.layout.trained
    sparse = Sparsify(share=0.75, spare=0).on_update(update, turn_of(task))
    assert torch.equal(sparse[trained:], update[trained:])
    for name, place in task.layout.slices():
        if place.stop <= trained:
            n = place.stop - place.start
            assert int((sparse[place] != 0).sum()) == int(n * 0.25), name


def test_a_model_of_small_tensors_alone_is_refused() -> None:
    # Of the trained tensors; the largest has 600 entries.
    ground = ground_of(torch.zeros(5, 30), (10,), task=flat_task(30, 20, 6))
    Sparsify(spare=599).check(ground)
    Sparsify(share=0.0).check(ground)
    with pytest.raises(InputError, match=r"^spare: got 600, .* expected less than 600$"):
        Sparsify(spare=600).check(ground)


def test_it_leaves_the_given_update_and_share_0_as_they_are() -> None:
    task = flat_task(30, 20, 6)
    update = update_of(task)
    before = update.clone()
    Sparsify(share=0.9, spare=0).on_update(update, turn_of(task))
    assert torch.equal(update, before)
    turn = turn_of(task)
    assert torch.equal(Sparsify(share=0.0, spare=0).on_update(update, turn), before)
    assert turn.counters["zeroed"] == 0


def test_it_tells_the_share_of_all_trained_coordinates() -> None:
    task, defence = flat_task(30, 20, 6), Sparsify(share=0.9, spare=500)
    turn, trained = turn_of(task), task.layout.trained
    update = update_of(task)
    gone = update - defence.on_update(update, turn)
    defence.on_update(torch.zeros_like(update), turn)
    told = defence.told(turn.counters)
    assert told["updates"] == 2
    # 540 of the 600 weights of the first layer are zeroed in the one update, none in the other.
    assert told["mean_zeroed"] == pytest.approx((600 - int(600 * (1 - 0.9))) / trained / 2)
    assert told["mean_update_norm"] == pytest.approx(float(update[:trained].norm()) / 2)
    assert told["mean_dropped_norm"] == pytest.approx(float(gone.norm()) / 2)


def test_a_broken_update_stays_broken() -> None:
    assert largest(torch.tensor([1.0, float("nan"), 0.5, 0.1]), 0.5).isnan().any()


@pytest.mark.parametrize(("field", "value"), [("share", 1), ("share", -0.1), ("share", 1.5), ("spare", -1)])
def test_bad_shares_to_zero_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"defences\.2\.{field}: got {value!r}"):
        build("client_defence", {"name": "sparsify", field: value}, "defences.2")
