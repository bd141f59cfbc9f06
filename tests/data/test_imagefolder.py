from pathlib import Path

import numpy as np
import pytest
from made_data import class_folder
from PIL import Image

from fedsiege.data.dataset import Dataset
from fedsiege.errors import InputError
from fedsiege.registry import build


def load(path: Path, name: str = "imagefolder", **options: object) -> Dataset:
    data = build("data", {"name": name, "path": str(path), **options}, "data").load()
    assert isinstance(data, Dataset)
    return data


def test_train_and_test_folders(tmp_path: Path) -> None:
    class_folder(tmp_path / "train", {"b": 3, "a": 11})
    class_folder(tmp_path / "test", {"b": 2}, seed=50)
    data = load(tmp_path)
    assert data.classes == ("a", "b")
    assert data.train.x.shape == (14, 3, 6, 5)
    assert data.train.y.tolist() == [0] * 11 + [1] * 3
    assert data.heldout.y.tolist() == [1, 1]
    names = sorted(str(number) for number in range(11))  # as file names sort
    for row, name in enumerate(names):
        with Image.open(tmp_path / "train" / "a" / f"{name}.png") as image:
            assert np.array_equal(data.train.x[row].numpy(), np.asarray(image).transpose(2, 0, 1))


def test_one_folder_with_a_share_held_out(tmp_path: Path) -> None:
    class_folder(tmp_path, {"cat": 6, "dog": 4})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "cat" / "Thumbs.db").write_text("no image")
    data = load(tmp_path, holdout=0.2)
    assert (len(data.train), len(data.heldout)) == (8, 2)


def test_validation_folder_and_resizing(tmp_path: Path) -> None:
    class_folder(tmp_path / "train", {"a": 2}, 9, 7, 3)
    class_folder(tmp_path / "train", {"b": 2}, 5, 5, 3)
    class_folder(tmp_path / "val", {"a": 1, "b": 1}, seed=50, kind="webp")
    with pytest.raises(InputError, match=r"image train/b/0\.png: 5 x 5 pixels.*data\.size"):
        load(tmp_path)
    data = load(tmp_path, size=4)
    assert data.heldout.x.shape == (2, 3, 4, 4)
    assert data.rows[str(data.heldout.ids[0])] == "validation:0"


def test_greyscale(tmp_path: Path) -> None:
    class_folder(tmp_path, {"a": 3, "b": 3}, 6, 5)
    assert load(tmp_path).train.x.shape[1:] == (1, 6, 5)


def test_a_class_folder_without_images(tmp_path: Path) -> None:
    class_folder(tmp_path, {"a": 2, "b": 0})
    with pytest.raises(InputError, match=r"class folder '.*/b' has no image"):
        load(tmp_path)


def test_an_unreadable_image(tmp_path: Path) -> None:
    class_folder(tmp_path, {"a": 2})
    (tmp_path / "a" / "9.jpg").write_bytes(b"no")
    with pytest.raises(InputError, match=r"image a/9\.jpg: cannot be read"):
        load(tmp_path)


def test_other_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no class folder in"):
        load(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        load(tmp_path / "file")
    with pytest.raises(InputError, match=r"data\.path: imagefolder needs"):
        build("data", "imagefolder", "data").load()
    class_folder(tmp_path / "train", {"a": 1})
    class_folder(tmp_path / "test", {"z": 1})
    with pytest.raises(InputError, match="has no counterpart among the training classes"):
        load(tmp_path)


def test_dermnet_is_pooled_and_drawn_again(tmp_path: Path) -> None:
    class_folder(tmp_path / "train", {"acne": 8, "eczema": 7}, 9, 7, 3, kind="jpeg")
    class_folder(tmp_path / "test", {"acne": 3, "eczema": 2}, 7, 9, 3, kind="jpeg", seed=50)
    data = load(tmp_path, "dermnet", train=12, heldout=5)
    assert data.train.x.shape == (12, 3, 64, 64)
    assert len(data.heldout) == 5
    assert data.mean == (0.4914, 0.4822, 0.4465)
    rows = {int(place.partition(":")[2]) for place in data.rows.values()}
    assert len(rows) == 17
    assert any(int(data.rows[str(name)].partition(":")[2]) >= 15 for name in data.train.ids)
    with pytest.raises(InputError, match=r"15000 training and 4000 held-out images asked; .* has 20"):
        load(tmp_path, "dermnet")
