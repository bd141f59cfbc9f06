"""The values that flow: where a tensor lies in the flat vector, and examples that are joined by id."""

import numpy as np
import pytest
import torch

from fedsiege.errors import InputError
from fedsiege.records import Examples, Layout, joined

LAYOUT = Layout(
    names=("conv.weight", "conv.bias", "norm.weight", "head.fc.weight", "head.fc.bias", "norm.running_mean"),
    shapes=((2, 1, 3, 3), (2,), (2,), (5, 8), (5,), (2,)),
    kinds=("trained", "trained", "trained", "trained", "trained", "buffer"),
    groups=("conv", "conv", "norm", "head", "head", "norm"),
)


def examples(rows: int = 4) -> Examples:
    ids = np.array([f"id{row}" for row in range(rows)])
    return Examples(ids, torch.arange(rows * 3, dtype=torch.float32).view(rows, 3), torch.arange(rows))


def test_layout_sizes() -> None:
    assert LAYOUT.sizes == (18, 2, 2, 40, 5, 2)
    assert LAYOUT.size == 69
    assert LAYOUT.trained == 67


def test_layout_slices_tile_the_vector() -> None:
    places = dict(LAYOUT.slices())
    assert list(places) == list(LAYOUT.names)
    covered = np.concatenate([np.arange(LAYOUT.size)[place] for place in places.values()])
    assert covered.tolist() == list(range(LAYOUT.size))
    assert places["head.fc.weight"] == slice(22, 62)


def test_the_head_is_the_last_layer_without_the_buffers() -> None:
    assert LAYOUT.head == slice(22, 67)


def test_a_model_of_one_layer_is_all_head() -> None:
    layout = Layout(("weight", "bias"), ((2, 3), (2,)), ("trained", "trained"), ("weight", "bias"))
    assert layout.head == slice(0, 8)


def test_a_scalar_takes_one_entry() -> None:
    assert Layout(("scale",), ((),), ("trained",), ("scale",)).size == 1


def test_take_keeps_rows_together_and_in_the_order_asked() -> None:
    taken = examples().take(np.array([2, 0]))
    assert taken.ids.tolist() == ["id2", "id0"]
    assert taken.x.tolist() == [[6.0, 7.0, 8.0], [0.0, 1.0, 2.0]]
    assert taken.y.tolist() == [2, 0]


def test_parts_are_joined_in_their_order() -> None:
    parts = [examples().take(np.array(rows)) for rows in ([3], [0, 2], [1])]
    union = joined(parts)
    assert union.ids.tolist() == ["id3", "id0", "id2", "id1"]
    assert union.x[:, 0].tolist() == [9.0, 0.0, 6.0, 3.0]
    assert union.y.tolist() == [3, 0, 2, 1]


def test_one_part_is_joined_as_it_is_and_two_with_the_same_example_are_refused() -> None:
    alone = examples()
    assert joined([alone]) is alone
    with pytest.raises(InputError, match="duplicate id 'id2'"):
        joined([alone, alone.take(np.array([2]))])


def test_take_nothing() -> None:
    assert len(examples().take(np.array([], dtype=np.int64))) == 0


def test_duplicate_ids_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="duplicate id 'b'"):
        Examples(np.array(["a", "b", "b"]), torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(InputError, match="2 ids, 3 inputs and 3 labels"):
        Examples(np.array(["a", "b"]), torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


def test_to_moves_the_tensors() -> None:
    assert examples().to(torch.device("meta")).x.device.type == "meta"
