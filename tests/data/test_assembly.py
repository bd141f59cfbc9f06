import numpy as np
import pytest
import torch
from made_data import toy

from fedsiege.data.assembly import Table, assemble, drawn_rows, encode_labels, moments
from fedsiege.errors import InputError


def table(x: torch.Tensor, y: list[int], split: str = "train") -> Table:
    return Table(split, x, np.array(y, dtype=np.int64), np.arange(len(y), dtype=np.int64))


def test_holdout_is_a_split_of_the_rows() -> None:
    x = torch.arange(10.0)[:, None]
    data = assemble(table(x, [0] * 10), None, classes=("a",), origin="", holdout=0.3)
    assert (len(data.train), len(data.heldout)) == (7, 3)
    both = torch.cat([data.train.x, data.heldout.x]).flatten()
    assert both.sort().values.tolist() == list(range(10))
    places = [data.rows[str(name)] for name in data.heldout.ids]
    assert places == [f"train:{int(value)}" for value in data.heldout.x.flatten()]
    assert data.heldout.x.flatten().tolist() == sorted(data.heldout.x.flatten().tolist())


def test_the_same_rows_are_held_out_every_time() -> None:
    x = torch.arange(40.0)[:, None]
    first, second = (assemble(table(x, [0] * 40), None, classes=("a",), origin="", holdout=0.5) for _ in range(2))
    assert first.heldout.ids.tolist() == second.heldout.ids.tolist()
    assert first.heldout.x.flatten().tolist() != list(range(20))


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_neither_side_of_the_holdout_is_empty(share: float) -> None:
    with pytest.raises(InputError, match=r"data\.holdout: a share"):
        assemble(table(torch.zeros(10, 1), [0] * 10), None, classes=("a",), origin="", holdout=share)


def test_moments_of_images_are_exact() -> None:
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8))
    mean, std = moments(x)
    scaled = x.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-12)


def test_moments_of_features() -> None:
    x = torch.from_numpy(np.random.default_rng(1).normal(3, 2, (9000, 5)).astype(np.float32))
    x[:, 2] = 7.0
    mean, std = moments(x)
    np.testing.assert_allclose(mean, x.numpy().astype(np.float64).mean(axis=0), rtol=1e-12)
    expected = x.numpy().astype(np.float64).std(axis=0)
    expected[2] = 1.0
    np.testing.assert_allclose(std, expected, rtol=1e-9)


def test_binary_features_stay_as_they_are() -> None:
    assert moments(torch.tensor([[0.0, 1.0], [1.0, 1.0]])) == ((), ())


def test_given_moments_are_kept_and_checked() -> None:
    def make(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[float, ...]:
        x = torch.randn(10, 2)
        return assemble(table(x, [0] * 10), None, classes=("a",), origin="", holdout=0.5, mean=mean, std=std).mean

    assert make((1.0, 2.0), (1.0, 1.0)) == (1.0, 2.0)
    with pytest.raises(InputError, match=r"data\.mean: got 1 values; expected 2"):
        make((1.0,), (1.0, 1.0))
    with pytest.raises(InputError, match=r"data\.std: got 0 values; expected 2"):
        make((1.0, 2.0), ())
    with pytest.raises(InputError, match=r"data\.std: got 0\.0"):
        make((1.0, 2.0), (1.0, 0.0))


def test_moments_come_from_train_alone() -> None:
    data = toy()
    assert data.mean == moments(data.train.x)[0]


def test_splits_of_unlike_shape_are_refused() -> None:
    with pytest.raises(InputError, match="'train' are 2, those of 'test' are 3"):
        assemble(
            table(torch.zeros(2, 2), [0, 0]),
            table(torch.zeros(2, 3), [0, 0], "test"),
            classes=("a",),
            origin="",
            holdout=0.5,
        )


def test_a_feature_that_is_not_finite_is_named() -> None:
    x = torch.zeros(5000, 2)
    x[4500, 1] = float("nan")
    with pytest.raises(InputError, match="row 4500, feature 1 is nan"):
        assemble(table(x, [0] * 5000), None, classes=("a",), origin="", holdout=0.5)


def test_strings_become_sorted_classes_over_all_splits() -> None:
    labels, classes = encode_labels({"train": np.array(["dog", "ant", "dog"]), "test": np.array(["cat"])})
    assert classes == ("ant", "cat", "dog")
    assert labels["train"].tolist() == [2, 0, 2]
    assert labels["test"].tolist() == [1]


def test_whole_numbers_keep_their_value() -> None:
    labels, classes = encode_labels({"train": np.array([2.0, 0.0]), "test": np.array([True, False])})
    assert classes == ("0", "1", "2")
    assert labels["train"].tolist() == [2, 0]
    assert labels["test"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, -1], r"'train', row 2 has label -1; expected 0 to 1"),
        ([0, 7, 1], r"'train', row 1 has label 7; expected 0 to 1"),
        ([0.0, 0.5], r"'train', row 1 has label 0\.5; expected a whole number"),
        ([0.0, float("nan")], r"'train', row 1 has label nan"),
    ],
)
def test_a_label_out_of_range_is_named(values: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_labels({"train": np.array(values)}, ("a", "b"))


def test_drawn_rows_are_fixed_and_in_order() -> None:
    rows = drawn_rows(100, 10, "train")
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert rows.tolist() == drawn_rows(100, 10, "train").tolist()
    assert rows.tolist() != list(range(10))
    assert drawn_rows(100, None, "train").tolist() == list(range(100)) == drawn_rows(100, 200, "train").tolist()
