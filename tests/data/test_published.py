from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedsiege.data.dataset import Dataset
from fedsiege.errors import InputError
from fedsiege.registry import build


def made(rows: int, features: int, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(2)
    return rng.integers(0, 2, (rows, features), dtype=np.uint8), 1 + np.arange(rows) % classes


def write(path: Path, x: NDArray[np.uint8], labels: NDArray[np.int64] | None = None, quote: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    first = [""] * len(x) if labels is None else [f"{quote}{label}{quote}," for label in labels]
    path.write_text("".join(f"{start}{','.join(map(str, row))}\n" for start, row in zip(first, x, strict=True)))


def load(name: str, path: Path, **options: object) -> Dataset:
    data = build("data", {"name": name, "path": str(path), **options}, "data").load()
    assert isinstance(data, Dataset)
    return data


def same(data: Dataset, x: NDArray[np.uint8], labels: NDArray[np.int64]) -> bool:
    """Whether the data are these rows (labels from 1), a share of them held out."""
    assert data.train.x.dtype == torch.float32
    for part in (data.train, data.heldout):
        rows = [int(data.rows[str(name)].partition(":")[2]) for name in part.ids]
        if not (np.array_equal(part.x.numpy(), x[rows]) and np.array_equal(part.y.numpy() + 1, labels[rows])):
            return False
    return len(data.train) + len(data.heldout) == len(x)


def test_purchase100(tmp_path: Path) -> None:
    x, labels = made(150, 600, 100)
    write(tmp_path / "purchase" / "dataset_purchase", x, labels)
    for path in (tmp_path, tmp_path / "purchase" / "dataset_purchase"):
        data = load("purchase100", path)
        assert same(data, x, labels)
        assert len(data.classes) == 100
        assert data.mean == ()


def test_texas100(tmp_path: Path) -> None:
    x, labels = made(120, 6169, 100)
    write(tmp_path / "texas" / "100" / "feats", x)
    (tmp_path / "texas" / "100" / "labels").write_text("".join(f"{label}\n" for label in labels))
    assert same(load("texas100", tmp_path / "texas"), x, labels)


@pytest.mark.parametrize("form", ["from one", "from nought", "one-hot"])
def test_texas100_as_arrays(tmp_path: Path, form: str) -> None:
    x, labels = made(120, 6169, 100)
    forms = {"from one": labels, "from nought": labels - 1, "one-hot": np.eye(100)[labels - 1]}
    np.savez(tmp_path / "texas100.npz", features=x.astype(np.float32), labels=forms[form])
    assert same(load("texas100", tmp_path), x, labels)


def test_location30(tmp_path: Path) -> None:
    x, labels = made(60, 446, 30)
    write(tmp_path / "bangkok", x, labels, quote='"')
    data = load("location30", tmp_path)
    assert same(data, x, labels)
    assert data.classes[-1] == "30"


def test_location30_from_parquet(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("location30", shared_data / "location30")
    assert data.train.x.shape == (3507, 446)
    assert data.train.x.unique().tolist() == [0.0, 1.0]
    assert len(data.classes) == 30
    monkeypatch.setenv("FEDSIEGE_DATA", str(shared_data))
    again = build("data", "location30", "data").load()
    assert torch.equal(again.train.x, data.train.x)


def test_rows_are_drawn(tmp_path: Path) -> None:
    x, labels = made(150, 600, 100)
    write(tmp_path / "dataset_purchase", x, labels)
    data = load("purchase100", tmp_path, rows=50)
    assert len(data.train) + len(data.heldout) == 50
    row = int(data.rows[str(data.train.ids[-1])].partition(":")[2])
    assert np.array_equal(data.train.x[-1].numpy(), x[row])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0," + ",".join(["0"] * 446), "row 3 has label 0; expected 1 to 30"),
        ("31," + ",".join(["0"] * 446), "row 3 has label 31; expected 1 to 30"),
        ("1," + ",".join(["0"] * 445 + ["2"]), "row 3, feature 445 is 2; expected 0 or 1"),
        ("1," + ",".join(["0"] * 445), "expected 447 whole numbers a row"),
        ("1," + ",".join(["0"] * 445 + ["x"]), "expected 447 whole numbers a row"),
        ("1," + ",".join(["0"] * 445 + [""]), "row 3, column 446 is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    x, labels = made(3, 446, 30)
    write(tmp_path / "bangkok", x, labels, quote='"')
    with (tmp_path / "bangkok").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message):
        load("location30", tmp_path)


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSIEGE_DATA", raising=False)
    with pytest.raises(InputError, match=r"data\.path: no file named dataset_purchase or"):
        load("purchase100", tmp_path)
    with pytest.raises(InputError, match=r"data\.path: texas100 .*FEDSIEGE_DATA.*got none"):
        build("data", "texas100", "data").load()
    write(tmp_path / "feats", made(3, 6169, 100)[0])
    with pytest.raises(InputError, match="no file named labels"):
        load("texas100", tmp_path)


def test_features_and_labels_go_together(tmp_path: Path) -> None:
    x, labels = made(5, 6169, 100)
    write(tmp_path / "feats", x)
    (tmp_path / "labels").write_text("1\n2\n")
    with pytest.raises(InputError, match="5 rows of features and 2 labels"):
        load("texas100", tmp_path)
    np.savez(tmp_path / "texas100.npz", features=x[:, :10], labels=labels)
    with pytest.raises(InputError, match=r"features have shape \[5, 10\]; expected \[n, 6169\]"):
        load("texas100", tmp_path / "texas100.npz")
    np.savez(tmp_path / "texas100.npz", features=x, labels=labels[:3])
    with pytest.raises(InputError, match=r"labels have shape \[3\]"):
        load("texas100", tmp_path / "texas100.npz")
