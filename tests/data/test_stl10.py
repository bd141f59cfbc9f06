"""STL-10's published binary files, written here byte by byte."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedsiege.data.dataset import Dataset
from fedsiege.data.sources.stl10 import FILES
from fedsiege.errors import InputError
from fedsiege.registry import build

NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
TRAIN, TEST = (1, 10, 4), (2, 2)


def pictures(count: int, seed: int) -> NDArray[np.uint8]:
    """Random pictures [n, 3, 96, 96]: channel, row, column."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)


def by_columns(images: NDArray[np.uint8]) -> bytes:
    """The published order of bytes: picture, channel, column, and in it from top to bottom."""
    found = bytearray()
    for image in images:
        for channel in image:
            for column in range(96):
                found += bytes(channel[:, column].tolist())
    return bytes(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "stl10_binary"
    place.mkdir()
    for split, labels, seed in (("train", TRAIN, 1), ("test", TEST, 2)):
        (place / f"{split}_X.bin").write_bytes(by_columns(pictures(len(labels), seed)))
        (place / f"{split}_y.bin").write_bytes(bytes(labels))
    (place / "class_names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    (place / "unlabeled_X.bin").write_bytes(b"left alone")
    (place / "fold_indices.txt").write_text("0 1\n")
    return place


def load(path: Path | str = "", **options: object) -> Dataset:
    data = build("data", {"name": "stl10", "path": str(path), **options}, "data").load()
    assert isinstance(data, Dataset)
    return data


def test_pixels_stand_where_they_were_written(folder: Path) -> None:
    data = load(folder)
    assert np.array_equal(data.train.x.numpy(), pictures(3, 1))
    assert np.array_equal(data.heldout.x.numpy(), pictures(2, 2))
    assert data.train.x.dtype == torch.uint8
    assert data.train.y.tolist() == [0, 9, 3]
    assert data.heldout.y.tolist() == [1, 1]
    assert data.classes == NAMES
    assert [data.rows[str(name)] for name in data.heldout.ids] == ["test:0", "test:1"]
    assert data.origin == "stl10"


def test_the_first_bytes_of_a_file_are_the_left_edge_of_red(folder: Path) -> None:
    file = folder / "train_X.bin"
    content = bytearray(file.read_bytes())
    content[0], content[1], content[96], content[96 * 96] = 11, 22, 33, 44
    file.write_bytes(content)
    first = load(folder).train.x[0]
    assert (int(first[0, 0, 0]), int(first[0, 1, 0]), int(first[0, 0, 1]), int(first[1, 0, 0])) == (11, 22, 33, 44)


@pytest.mark.parametrize("size", [48, 32])
def test_smaller_images_are_means_of_squares(folder: Path, size: int) -> None:
    factor, whole = 96 // size, pictures(3, 1).astype(float)
    made = load(folder, size=size).train.x
    assert made.shape == (3, 3, size, size)
    for row, column in ((0, 0), (5, size - 1), (size - 1, 7)):
        square = whole[:, :, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        expected = np.floor(square.mean(axis=(2, 3)) + 0.5)
        assert np.array_equal(made[:, :, row, column].numpy(), expected)
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(whole), factor)
    assert float((made.double() - pooled).abs().max()) <= 0.5


def test_halves_are_rounded_upwards_and_white_stays_white(folder: Path) -> None:
    images = np.full((3, 3, 96, 96), 255, dtype=np.uint8)
    images[0, 0, :2, :2] = [[1, 2], [1, 2]]
    (folder / "train_X.bin").write_bytes(by_columns(images))
    made = load(folder, size=48).train.x
    assert int(made[0, 0, 0, 0]) == 2
    assert int(made.flatten()[1:].min()) == 255
    assert int(load(folder, size=32).train.x[1].min()) == 255


def test_channel_statistics_are_measured_or_given(folder: Path) -> None:
    data = load(folder)
    pixels = pictures(3, 1) / 255
    assert data.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert data.std == pytest.approx(pixels.std(axis=(0, 2, 3)))
    given = load(folder, mean=[0.4, 0.5, 0.6], std=[0.1, 0.2, 0.3])
    assert (given.mean, given.std, given.measured) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), False)


def test_files_are_found_below_a_folder_and_below_the_data_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(load(tmp_path).train) == 3
    (tmp_path / "stl10").mkdir()
    folder.rename(tmp_path / "stl10" / "stl10_binary")
    monkeypatch.setenv("FEDSIEGE_DATA", str(tmp_path))
    assert len(load().train) == 3


@pytest.mark.parametrize("lacking", [["test_X.bin"], ["train_y.bin", "class_names.txt"], list(FILES)])
def test_one_message_names_all_that_is_missing(folder: Path, lacking: list[str]) -> None:
    for name in lacking:
        (folder / name).unlink()
    with pytest.raises(InputError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"data.path: no {', '.join(lacking)} in {str(folder)!r}; expected the folder with train_X.bin, "
        "train_y.bin, test_X.bin, test_y.bin, class_names.txt of the published stl10_binary.tar.gz"
    )


def test_the_fullest_folder_is_the_one_complained_about(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "test_X.bin").write_bytes(b"")
    (folder / "test_y.bin").unlink()
    with pytest.raises(InputError, match=r"data\.path: no test_y\.bin in '.*stl10_binary'"):
        load(tmp_path)


def test_a_path_has_to_be_a_folder_that_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"data\.path: .*train_X\.bin' is a file; expected the folder with"):
        load(folder / "train_X.bin")
    with pytest.raises(InputError, match=r"data\.path: .*nowhere' does not exist; expected .* stl10"):
        load(folder / "nowhere")
    monkeypatch.delenv("FEDSIEGE_DATA", raising=False)
    with pytest.raises(InputError, match=r"data\.path: stl10 .*FEDSIEGE_DATA.*got none"):
        load()


@pytest.mark.parametrize("change", [-1, 1, -96 * 96 * 3, 96 * 96 * 3])
def test_images_and_labels_go_together(folder: Path, change: int) -> None:
    content = (folder / "train_X.bin").read_bytes()
    (folder / "train_X.bin").write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(
        InputError, match=rf"train_X\.bin: got {82944 + change} bytes; expected 82944, 27648 for each"
    ):
        load(folder)


def test_files_without_images_are_refused(folder: Path) -> None:
    for name in ("train_X.bin", "train_y.bin"):
        (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match="split 'train' has no rows"):
        load(folder)


@pytest.mark.parametrize("label", [0, 11, 255])
def test_a_label_out_of_range_is_named(folder: Path, label: int) -> None:
    (folder / "test_y.bin").write_bytes(bytes([10, label]))
    with pytest.raises(InputError, match=rf"test_y\.bin: row 1 has label {label}; expected 1 to 10"):
        load(folder)


def test_there_are_ten_class_names(folder: Path) -> None:
    (folder / "class_names.txt").write_text("\n".join(NAMES[:9]))
    with pytest.raises(InputError, match=r"class_names\.txt: got 9 class names; expected 10"):
        load(folder)
    (folder / "class_names.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InputError, match=r"class_names\.txt: not text; expected 10 class names"):
        load(folder)


@pytest.mark.parametrize("size", [0, 24, 64, 97])
def test_a_size_is_one_of_three(folder: Path, size: int) -> None:
    with pytest.raises(InputError, match=rf"data\.size: got {size}; "):
        load(folder, size=size)
