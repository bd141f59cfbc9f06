import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine

from fedsiege.data.dataset import Dataset
from fedsiege.errors import InputError
from fedsiege.registry import build


def load(spec: object) -> Dataset:
    data = build("data", spec, "data").load()
    assert isinstance(data, Dataset)
    return data


def test_digits_are_images() -> None:
    data = load("digits")
    assert data.train.x.dtype == torch.uint8
    assert (len(data.train), len(data.heldout)) == (1258, 539)
    assert data.train.x.shape[1:] == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    rows = [int(data.rows[str(name)].partition(":")[2]) for name in data.train.ids]
    bunch = load_digits()
    assert np.array_equal(data.train.x[:, 0].numpy(), np.round(bunch.images[rows] / 16 * 255).astype(np.uint8))
    assert np.array_equal(data.train.y.numpy(), bunch.target[rows])
    assert int(data.train.x.max()) == 255


@pytest.mark.parametrize(
    ("name", "rows", "features", "classes"), [("breast_cancer", 569, 30, 2), ("wine", 178, 13, 3)]
)
def test_tables(name: str, rows: int, features: int, classes: int) -> None:
    data = load(name)
    assert data.train.x.dtype == torch.float32
    assert data.train.x.shape[1:] == (features,)
    assert len(data.train) + len(data.heldout) == rows
    assert len(data.classes) == classes == len(data.train.y.unique())
    assert len(data.mean) == len(data.std) == features


def test_wine_keeps_its_values() -> None:
    data = load({"name": "wine", "holdout": 0.5})
    rows = [int(data.rows[str(name)].partition(":")[2]) for name in data.heldout.ids]
    assert len(rows) == 89
    assert np.array_equal(data.heldout.x.numpy(), load_wine().data[rows].astype(np.float32))


@pytest.mark.parametrize("share", [0, 1, -0.1, "much"])
def test_holdout_is_a_share(share: object) -> None:
    with pytest.raises(InputError, match=r"data\.holdout"):
        load({"name": "digits", "holdout": share})
