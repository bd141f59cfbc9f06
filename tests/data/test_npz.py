from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsiege.data.dataset import Dataset
from fedsiege.errors import InputError
from fedsiege.registry import build

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def load(folder: Path, options: dict[str, Any] | None = None, **arrays: Any) -> Dataset:
    path = folder / "made.npz"
    np.savez(path, **arrays)
    data = build("data", {"name": "npz", "path": str(path), **(options or {})}, "data").load()
    assert isinstance(data, Dataset)
    return data


def test_both_layouts_of_images(tmp_path: Path) -> None:
    channels_first = IMAGES.transpose(0, 3, 1, 2)
    for x in (IMAGES, channels_first):
        data = load(tmp_path, x=x, y=LABELS, x_test=x[:4], y_test=LABELS[:4])
        assert data.train.x.dtype == torch.uint8
        assert np.array_equal(data.train.x.numpy(), channels_first)
        assert np.array_equal(data.heldout.x.numpy(), channels_first[:4])
        assert data.train.y.tolist() == LABELS.tolist()
        assert data.rows[str(data.heldout.ids[2])] == "test:2"


def test_greyscale_images(tmp_path: Path) -> None:
    data = load(tmp_path, x=IMAGES[..., 0], y=LABELS)
    assert data.train.x.shape[1:] == (1, 5, 4)


def test_channels_that_are_not_clear(tmp_path: Path) -> None:
    square = RNG.integers(0, 256, (6, 3, 5, 3), dtype=np.uint8)
    with pytest.raises(InputError, match=r"'x' has shape \[6, 3, 5, 3\].*set data\.layout"):
        load(tmp_path, x=square, y=LABELS[:6])
    data = load(tmp_path, {"layout": "nhwc"}, x=square, y=LABELS[:6])
    assert data.train.x.shape[1:] == (3, 3, 5)
    assert load(tmp_path, {"layout": "nchw"}, x=square, y=LABELS[:6]).train.x.shape[1:] == (3, 5, 3)


def test_features_names_and_natural_columns(tmp_path: Path) -> None:
    x = RNG.normal(size=(12, 7))
    site = np.array(["a", "b"] * 6)
    options = {"x": "features", "y": "kind", "natural": ["site"], "classes": "names"}
    data = load(tmp_path, options, features=x, kind=LABELS, site=site, names=np.array(["p", "q", "r"]))
    assert data.classes == ("p", "q", "r")
    rows = [int(data.rows[str(name)].partition(":")[2]) for name in data.train.ids]
    assert np.array_equal(data.train.x.numpy(), x[rows].astype(np.float32))
    assert data.natural["site"].tolist() == site[rows].tolist()


def test_string_labels(tmp_path: Path) -> None:
    data = load(tmp_path, x=IMAGES, y=np.array(["cat", "ant", "bee"] * 4))
    assert data.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "no array 'y'; it has x"),
        ({"x": IMAGES, "y": LABELS[:5]}, r"'y' has shape \[5\]; expected \[12\]"),
        ({"x": IMAGES, "y": LABELS, "x_test": IMAGES}, "no array 'y_test'"),
        ({"x": IMAGES / 255, "y": LABELS}, r"'x' is float64 of shape \[12, 5, 4, 3\]"),
        ({"x": np.array(["a"] * 12), "y": LABELS}, "'x' is <U1"),
        ({"x": np.float64(1), "y": LABELS}, "'x' is a single value"),
        ({"x": IMAGES, "y": LABELS - 1}, "row 0 has label -1"),
        ({"x": np.full((12, 2), np.inf), "y": LABELS}, "row 0, feature 0 is inf"),
        ({"x": IMAGES, "y": np.array([{}] * 12)}, "without pickle"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, **arrays)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 broken"])
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="without pickle"):
        build("data", {"name": "npz", "path": str(path)}, "data").load()


def test_a_bare_array_and_no_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", LABELS)
    with pytest.raises(InputError, match="one bare array"):
        build("data", {"name": "npz", "path": str(tmp_path / "x.npy")}, "data").load()
    with pytest.raises(InputError, match=r"data\.path: .*does not exist"):
        build("data", {"name": "npz", "path": str(tmp_path / "y.npz")}, "data").load()
    with pytest.raises(InputError, match=r"data\.path: npz needs the file"):
        build("data", "npz", "data").load()
