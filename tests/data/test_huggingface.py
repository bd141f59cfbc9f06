import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_data import encode, image_column, parquet, pictures
from numpy.typing import NDArray
from PIL import Image

from fedsiege.data.dataset import Dataset
from fedsiege.data.fingerprint import fingerprint
from fedsiege.errors import InputError
from fedsiege.registry import build

COLOUR = pictures(8, 5, 4, 3)


def load(path: object, **options: object) -> Dataset:
    data = build("data", {"name": "huggingface", "path": str(path), **options}, "data").load()
    assert isinstance(data, Dataset)
    return data


def images(folder: Path, labels: Sequence[object], split: str = "train", **columns: object) -> Path:
    """One parquet file of colour images."""
    column = image_column(COLOUR[: len(labels)])
    parquet(folder / "data" / f"{split}-00000-of-00001.parquet", {"img": column, "label": list(labels), **columns})
    return folder


def stacked(some: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(some).transpose(0, 3, 1, 2)


def test_shards_splits_and_class_names(tmp_path: Path) -> None:
    names = {"label": ["ant", "bee"], "site": ["north", "south"]}
    for shard in range(2):
        some = slice(4 * shard, 4 * shard + 4)
        columns = {"image": image_column(COLOUR[some]), "label": [0, 1, 0, 1], "site": [0, 0, 1, 1]}
        parquet(tmp_path / "data" / f"train-0000{shard}-of-00002.parquet", columns, names)
    columns = {"image": image_column(COLOUR[:2]), "label": [1, 1], "site": [0, 1]}
    parquet(tmp_path / "data" / "valid-00000-of-00001.parquet", columns, names)
    data = load(tmp_path)
    assert np.array_equal(data.train.x.numpy(), stacked(COLOUR))
    assert data.train.y.tolist() == [0, 1] * 4
    assert data.classes == ("ant", "bee")
    assert data.natural["site"].tolist() == ["north", "north", "south", "south"] * 2
    assert np.array_equal(data.heldout.x.numpy(), stacked(COLOUR[:2]))
    assert data.rows[str(data.heldout.ids[1])] == "validation:1"


@pytest.mark.parametrize("place", ["test.parquet", "default/test/0000.parquet", "my-data-test-0-of-9.parquet"])
def test_where_a_split_is_named(tmp_path: Path, place: str) -> None:
    parquet(tmp_path / "part.parquet", {"features": [[1.0], [2.0]], "label": [0, 1]})
    parquet(tmp_path / place, {"features": [[3.0]], "label": [1]})
    data = load(tmp_path)
    assert data.train.x.tolist() == [[1.0], [2.0]]
    assert data.heldout.x.tolist() == [[3.0]]


def test_config_is_a_folder(tmp_path: Path) -> None:
    parquet(tmp_path / "small" / "train.parquet", {"x": [[1.0], [2.0]], "y": [0, 1]})
    parquet(tmp_path / "large" / "train.parquet", {"x": [[5.0], [6.0]], "y": [0, 1]})
    assert load(tmp_path, config="large", holdout=0.5).train.x.sum() > 4


def test_unusual_splits_by_name(tmp_path: Path) -> None:
    parquet(tmp_path / "winter-0.parquet", {"x": [[1.0], [2.0]], "y": [0, 1]})
    parquet(tmp_path / "summer-0.parquet", {"x": [[3.0]], "y": [1]})
    data = load(tmp_path, train_split="winter", heldout_split="summer")
    assert data.train.x.tolist() == [[1.0], [2.0]]
    assert data.heldout.x.tolist() == [[3.0]]


def test_a_share_is_held_out_without_a_split(tmp_path: Path) -> None:
    data = load(images(tmp_path, [0, 1] * 4), holdout=0.25)
    assert (len(data.train), len(data.heldout)) == (6, 2)


def test_one_file_string_labels_and_kept_columns(tmp_path: Path) -> None:
    columns = {"img": image_column(COLOUR), "label": ["b", "a"] * 4, "who": list("stuvwxyz"), "score": [0.5] * 8}
    path = parquet(tmp_path / "train.parquet", columns)
    data = load(path, holdout=0.5)
    assert data.classes == ("a", "b")
    assert set(data.natural) == {"who"}
    rows = [int(data.rows[str(name)].partition(":")[2]) for name in data.train.ids]
    assert data.natural["who"].tolist() == [list("stuvwxyz")[row] for row in rows]
    assert set(load(path, natural=["score"]).natural) == {"score"}


def test_columns_that_are_named(tmp_path: Path) -> None:
    other = image_column(pictures(8, 3, 3, seed=9))
    columns = {"img": image_column(COLOUR), "scan": other, "label": [0] * 8, "kind": [0, 1] * 4}
    path = parquet(tmp_path / "train.parquet", columns)
    data = load(path, image="scan", label="kind")
    assert data.train.x.shape[1:] == (1, 3, 3)
    assert len(data.classes) == 2


def test_bytes_and_paths(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encode(COLOUR[0]))
    struct = [{"bytes": None, "path": str(tmp_path / "0.png")}, {"bytes": encode(COLOUR[1]), "path": "1.png"}]
    parquet(tmp_path / "a" / "train.parquet", {"image": struct, "label": [0, 1]})
    parquet(tmp_path / "a" / "test.parquet", {"image": struct, "label": [0, 1]})
    assert np.array_equal(load(tmp_path / "a").train.x.numpy(), stacked(COLOUR[:2]))
    parquet(tmp_path / "b" / "train.parquet", {"jpg": [encode(image) for image in COLOUR], "label": [0] * 8})
    assert load(tmp_path / "b").train.x.shape[1:] == (3, 5, 4)
    gone = [{"bytes": None, "path": "nowhere.png"}] * 2
    with pytest.raises(InputError, match="image train:0: no bytes"):
        load(parquet(tmp_path / "c.parquet", {"image": gone, "label": [0, 1]}))


def test_resizing_and_rows(tmp_path: Path) -> None:
    data = load(images(tmp_path, list(range(8))), size=2, rows=4, holdout=0.25)
    assert data.train.x.shape == (3, 3, 2, 2)
    row = int(data.rows[str(data.train.ids[0])].partition(":")[2])
    expected = np.asarray(Image.fromarray(COLOUR[row]).resize((2, 2), Image.Resampling.BILINEAR))
    assert np.array_equal(data.train.x[0].numpy(), expected.transpose(2, 0, 1))
    assert data.train.y[0] == row
    assert len(data.classes) == 8  # the classes are those of the data, not of the rows drawn


def test_lists_and_columns_of_numbers(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(4, 3)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 3)
    for name, columns in (
        ("fixed", {"features": fixed}),
        ("free", {"features": values.tolist()}),
        ("wide", {f"f{number}": values[:, number] for number in range(3)}),
    ):
        for split in ("train", "test"):
            parquet(tmp_path / name / f"{split}.parquet", {**columns, "label": [0, 1, 0, 1]})
        data = load(tmp_path / name)
        assert data.train.x.dtype == torch.float32
        assert data.train.x.tolist() == values.tolist()
        assert len(data.mean) == 3
    assert load(tmp_path / "wide", natural=["f1"]).train.x.shape == (4, 2)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": image_column(COLOUR[:2])}, "data.label: none of .* the data has img"),
        ({"text": ["a", "b"], "label": [0, 1]}, r"data\.image: no column holds.*text \(string\)"),
        ({"x": [[1.0], [2.0]], "label": [0, None]}, "row 1 has no 'label'"),
        ({"x": [[1.0], [2.0]], "label": [0, -1]}, "row 1 has label -1"),
        ({"x": [[1.0], [2.0, 3.0]], "label": [0, 1]}, "row 1 has 2 values in 'x'; expected 1"),
        ({"x": [[1.0], None], "label": [0, 1]}, "row 1 has 0 values in 'x'"),
        ({"x": [[1.0], [None]], "label": [0, 1]}, "row 1, feature 0 is nan"),
        ({"a": [1.0, None], "label": [0, 1]}, "row 1 has no 'a'"),
        ({"image": [{"bytes": b"no", "path": ""}] * 2, "label": [0, 1]}, "image train:0: cannot be read"),
    ],
)
def test_bad_tables(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(parquet(tmp_path / "train.parquet", columns))


def test_a_label_beyond_the_names(tmp_path: Path) -> None:
    columns = {"x": [[1.0], [2.0], [3.0]], "label": [0, 1, 2]}
    path = parquet(tmp_path / "train.parquet", columns, {"label": ["a", "b"]})
    with pytest.raises(InputError, match=r"'train', row 2 has label 2; expected 0 to 1"):
        load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "tram"}, r"data\.train_split: no split 'tram'; the data has train"),
        ({"heldout_split": "test"}, r"data\.heldout_split: no split 'test'"),
        ({"heldout_split": "training"}, r"data\.heldout_split: 'training' is the training split too"),
        ({"image": "photo"}, r"data\.image: no column 'photo'; the data has img, label"),
        ({"label": "kind"}, r"data\.label: no column 'kind'"),
        ({"natural": ["site"]}, r"data\.natural: no column 'site'"),
        ({"mean": [0.5]}, r"data\.mean: got 1 values; expected 3"),
        ({"size": 0}, r"data\.size"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    images(tmp_path, [0, 1])
    with pytest.raises(InputError, match=message):
        load(tmp_path, **options)


def test_a_column_that_one_split_lacks(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", {"x": [[1.0]], "label": [0]})
    parquet(tmp_path / "test.parquet", {"x": [[1.0]]})
    with pytest.raises(InputError, match="split 'test' has no column 'label'"):
        load(tmp_path)


def test_missing_and_broken_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSIEGE_DATA", raising=False)
    with pytest.raises(InputError, match=r"data\.path: huggingface needs"):
        build("data", "huggingface", "data").load()
    with pytest.raises(InputError, match=r"no \.parquet file below .*imagefolder"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"'\./nowhere' does not exist; expected a parquet folder or a hub name"):
        load("./nowhere")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"cannot read .*train\.parquet as parquet"):
        load(tmp_path)


def test_foreign_metadata_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    table = pa.table({"x": [[1.0], [2.0]], "label": [0, 1]})
    for metadata in ("no json", "[]", "{}", '{"info": {"features": {"label": 3}}}'):
        pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), path)
        assert load(path, holdout=0.5).classes == ("0", "1")


def test_a_local_copy_stands_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "letters", [0, 1] * 4)
    monkeypatch.setenv("FEDSIEGE_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("went to the hub"))
    assert len(load("somebody/letters", holdout=0.5).train) == 4


def test_a_hub_data_set_reads_like_its_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSIEGE_DATA", raising=False)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "site": datasets.Value("string")}
    )
    rows: dict[str, list[Any]] = {
        "img": [Image.fromarray(image) for image in COLOUR],
        "label": [0, 1] * 4,
        "site": list("nnnnssss"),
    }
    made = {
        "train": datasets.Dataset.from_dict(rows, features=features),
        "test": datasets.Dataset.from_dict({name: column[:2] for name, column in rows.items()}, features=features),
    }
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*arguments: Any) -> Any:
        asked.append(arguments)
        return made

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = load("somebody/letters", config="plain")
    assert asked == [("somebody/letters", "plain")]
    assert np.array_equal(hub.train.x.numpy(), stacked(COLOUR))
    assert hub.classes == ("a", "b")
    assert hub.natural["site"].tolist() == list("nnnnssss")
    for split, table in made.items():
        table.to_parquet(tmp_path / f"{split}.parquet")
    assert fingerprint(load(tmp_path)) == fingerprint(hub)


def test_no_hub_is_one_clear_error() -> None:
    program = (
        "from fedsiege.registry import build; from fedsiege.errors import InputError\n"
        "try: build('data', {'name': 'huggingface', 'path': 'nobody/never-was'}, 'data').load()\n"
        "except InputError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "FEDSIEGE_DATA": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert "data.path: cannot load 'nobody/never-was' from the Hugging Face hub" in done.stdout


def test_real_natural_clients(shared_data: Path) -> None:
    data = load(shared_data / "ham10000-32", rows=200)
    assert data.train.x.shape == (140, 3, 32, 32)
    assert data.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert set(data.natural["site"]) <= {"rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"}


def test_real_images_are_those_of_the_datasets_library(shared_data: Path) -> None:
    path = shared_data / "tiny-imagenet-20"
    data = load(path, rows=50)
    table = pq.read_table(sorted((path / "data").glob("train-*.parquet"))[0])
    for position in (0, 17, 49):
        row = int(data.rows[str(data.train.ids[position])].partition(":")[2])
        picture = datasets.Image().decode_example(table["image"][row].as_py())
        assert np.array_equal(data.train.x[position].numpy(), np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
        assert int(data.train.y[position]) == table["label"][row].as_py()
    assert (len(data.train), len(data.heldout)) == (50, 50)
