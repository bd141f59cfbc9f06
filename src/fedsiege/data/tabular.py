"""Binary features and a class per row, in the formats the membership inference literature publishes them in."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import torch
from numpy.typing import NDArray

from fedsiege.data.assembly import Table, assemble, drawn_rows
from fedsiege.data.dataset import Dataset
from fedsiege.errors import InputError


def read_csv(path: Path, columns: int) -> NDArray[np.uint8]:
    """Whole numbers 0 to 255, comma-separated, without a header, quoted or not: [n, columns]."""
    names = [str(column) for column in range(columns)]
    try:
        table = pacsv.read_csv(
            path,
            read_options=pacsv.ReadOptions(column_names=names),
            convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.uint8())),
        )
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: expected {columns} whole numbers a row, separated by commas ({error})") from None
    values = np.empty((len(table), columns), dtype=np.uint8)
    for position, column in enumerate(table.columns):
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise InputError(f"{path}: row {row}, column {position} is empty")
        values[:, position] = column.to_numpy()
    return values


def read_arrays(path: Path, *keys: str) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file, never by pickle; without keys, all of them. InputError names a missing key."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: one bare array; expected an .npz archive")
            for key in keys:
                if key not in archive.files:
                    raise InputError(f"{path}: no array {key!r}; it has {', '.join(archive.files) or 'none'}")
            return {key: archive[key] for key in keys or archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as an .npz without pickle ({error})") from None


def read_published(path: Path, features: int, classes: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Features [n, features] and labels [n] of a published table, as it numbers them.

    A CSV has the label first; an .npz has `features` and `labels` (numbers, or one-hot rows).
    """
    if path.suffix != ".npz":
        table = read_csv(path, features + 1)
        return table[:, 1:], table[:, 0].astype(np.int64)
    arrays = read_arrays(path, "features", "labels")
    x, labels = arrays["features"], arrays["labels"]
    if x.ndim != 2 or x.shape[1] != features:
        raise InputError(f"{path}: features have shape {list(x.shape)}; expected [n, {features}]")
    if labels.ndim == 2 and labels.shape[1] == classes:
        return x, 1 + labels.argmax(axis=1).astype(np.int64)
    if labels.shape != (len(x),):
        raise InputError(f"{path}: labels have shape {list(labels.shape)}; expected [{len(x)}] or one-hot rows")
    numbers = labels.astype(np.int64)
    return x, numbers + (1 if numbers.min(initial=1) == 0 else 0)


def binary_dataset(
    x: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    classes: int,
    origin: str,
    holdout: float,
    rows: int | None,
) -> Dataset:
    """The data set of binary features [n, d] and labels [n] from 1 to `classes`; class names are those numbers.

    Raises InputError naming row and value of a label out of range or a feature that is neither 0 nor 1.
    """
    if len(x) != len(labels):
        raise InputError(f"data: {len(x)} rows of features and {len(labels)} labels; expected as many of both")
    wrong = np.flatnonzero((labels < 1) | (labels > classes))
    if len(wrong):
        raise InputError(f"data: row {wrong[0]} has label {labels[wrong[0]]}; expected 1 to {classes}")
    chosen = drawn_rows(len(x), rows, "train")
    x = x[chosen] if len(chosen) < len(x) else x
    bad = np.argwhere((x != 0) & (x != 1))
    if len(bad):
        row, column = bad[0]
        raise InputError(f"data: row {chosen[row]}, feature {column} is {x[row, column]}; expected 0 or 1")
    table = Table("train", torch.from_numpy(x.astype(np.float32)), labels[chosen] - 1, chosen)
    names = tuple(str(value) for value in range(1, classes + 1))
    return assemble(table, None, classes=names, origin=origin, holdout=holdout)
