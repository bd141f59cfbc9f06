"""Tables of the Hugging Face layout (parquet folders, or a hub data set as arrow tables) to a `Dataset`."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsiege.data.assembly import Table, assemble, drawn_rows, encode_labels
from fedsiege.data.dataset import Dataset
from fedsiege.data.images import decode
from fedsiege.errors import InputError

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
"""What splits are called, in folders, files and configs."""

IMAGES = ("img", "image")
LABELS = ("fine_label", "label", "labels", "target", "class", "y")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which columns and rows to read, and how: the fields of the `huggingface` source; empty means detect."""

    train_split: str = "train"
    heldout_split: str = ""
    holdout: float = 0.3
    image: str = ""
    label: str = ""
    natural: tuple[str, ...] = ()
    rows: int | None = None
    size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Columns:
    image: str
    features: tuple[str, ...]
    label: str
    natural: tuple[str, ...]


def split_name(name: str) -> str:
    """The usual name of a split: 'valid' and 'dev' are 'validation'; an unknown name stays."""
    return next((usual for usual, names in SPLITS.items() if name.lower() in names), name)


def read_folder(place: Path, config: str = "", wanted: Iterable[str] = ()) -> dict[str, pa.Table]:
    """The splits of a parquet file or folder; each file's split is found in its name or in those of its folders.

    `config` is a sub-folder, if the folder has it. `wanted` are further split names, for those of no usual kind.
    """
    root = place / config if config and (place / config).is_dir() else place
    files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    if not files:
        raise InputError(
            f"data.path: no .parquet file below {str(root)!r}; a folder with one sub-folder of images per class is "
            "read by `imagefolder`"
        )
    known = {name: split_name(name) for name in (*wanted, *(name for names in SPLITS.values() for name in names))}
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(root if root.is_dir() else root.parent), known), []).append(
            file
        )
    return {split: _read(paths) for split, paths in splits.items()}


def build_dataset(splits: Mapping[str, pa.Table], layout: Layout, origin: str) -> Dataset:
    """The data set in these tables; raises InputError for a missing split or column and for unusable values."""
    chosen = _choose(splits, layout)
    train = next(iter(chosen.values()))
    columns = _find_columns(train, layout)
    for split, table in chosen.items():
        for name in filter(None, (columns.image, columns.label, *columns.features)):
            if name not in table.column_names:
                raise InputError(
                    f"data: split {split!r} has no column {name!r}; its columns: {', '.join(table.column_names)}"
                )
    raw = {split: _values(table, columns.label, split) for split, table in chosen.items()}
    labels, classes = encode_labels(raw, _names(train).get(columns.label, ()))
    tables: list[Table] = []
    for split, table in chosen.items():
        rows = drawn_rows(len(table), layout.rows, split)
        part = table.take(pa.array(rows)) if len(rows) < len(table) else table
        channels = int(tables[0].x.shape[1]) if tables and columns.image else None
        x = _inputs(part, columns, layout, split, rows, channels)
        natural = {} if tables else {name: _ids(part, name, split) for name in columns.natural}
        tables.append(Table(split, x, labels[split][rows], rows, natural))
    return assemble(
        tables[0],
        tables[1] if len(tables) > 1 else None,
        classes=classes,
        origin=origin,
        holdout=layout.holdout,
        mean=layout.mean,
        std=layout.std,
    )


def _split_of(file: Path, known: Mapping[str, str]) -> str:
    """The split of a file by the words of its name, else of its folders from the inside out, else train."""
    for part in (file.stem, *reversed(file.parts[:-1])):
        if part in known:
            return known[part]
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if word in known:
                return known[word]
    return "train"


def _read(files: list[Path]) -> pa.Table:
    try:
        return pa.concat_tables([pq.read_table(file) for file in files], promote_options="default")
    except (pa.ArrowException, OSError) as error:
        listed = ", ".join(str(file) for file in files)
        raise InputError(f"data.path: cannot read {listed} as parquet ({error})") from None


def _choose(splits: Mapping[str, pa.Table], layout: Layout) -> dict[str, pa.Table]:
    """The train and, where there is one, the held-out table, by split name."""
    found = {split_name(name): table for name, table in splits.items()}
    names = {"data.train_split": split_name(layout.train_split)}
    if layout.heldout_split:
        names["data.heldout_split"] = split_name(layout.heldout_split)
    elif (usual := next((name for name in ("test", "validation") if name in found), "")) not in (
        "",
        *names.values(),
    ):
        names["data.heldout_split"] = usual
    for field, name in names.items():
        if name not in found:
            raise InputError(f"{field}: no split {name!r}; the data has {', '.join(sorted(found))}")
    if len(set(names.values())) < len(names):
        raise InputError(f"data.heldout_split: {layout.heldout_split!r} is the training split too")
    return {name: found[name] for name in names.values()}


def _find_columns(table: pa.Table, layout: Layout) -> _Columns:
    """Which columns are inputs, label and natural ids: the ones that were named, else by usual name and type."""
    types = {field.name: field.type for field in table.schema if not field.name.startswith("__index_level_")}
    for field, names in (("image", (layout.image,)), ("label", (layout.label,)), ("natural", layout.natural)):
        for name in names:
            if name and name not in types:
                raise InputError(f"data.{field}: no column {name!r}; the data has {', '.join(types)}")
    label = layout.label or next((name for name in LABELS if name in types), "")
    if not label:
        raise InputError(f"data.label: none of {', '.join(LABELS)} is a column; the data has {', '.join(types)}")
    images = [name for name, kind in types.items() if _is_image(kind)]
    lists = [name for name, kind in types.items() if _is_list(kind)]
    given = [layout.image] if layout.image else []
    image = next((name for name in given or (*IMAGES, *images) if name in images), "")
    features = tuple(given or lists)
    if image:
        features = ()
    elif len(features) != 1:
        features = tuple(
            name for name, kind in types.items() if _is_number(kind) and name not in (label, *layout.natural)
        )
    if not image and not features:
        raise InputError(
            "data.image: no column holds images, lists of numbers or numbers; "
            f"the data has {', '.join(f'{name} ({kind})' for name, kind in types.items())}"
        )
    scalars = [
        name
        for name, kind in types.items()
        if name not in (label, image, *features) and _is_id(kind) and not table[name].null_count
    ]
    return _Columns(image, features, label, layout.natural or tuple(scalars))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and _is_number(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_id(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _names(table: pa.Table) -> dict[str, tuple[str, ...]]:
    """Class names per column, where the table's Hugging Face metadata has them."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return {}
    try:
        features = json.loads(metadata)["info"]["features"]
        return {name: tuple(kind["names"]) for name, kind in features.items() if "names" in kind}
    except (ValueError, KeyError, TypeError):
        return {}  # somebody else's metadata under the same key: the labels then go by their numbers


def _values(table: pa.Table, name: str, split: str) -> NDArray[Any]:
    """A scalar column as an array of numbers or strings."""
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise InputError(f"data: split {split!r}, row {row} has no {name!r}; expected a value in every row")
    values: NDArray[Any] = column.to_numpy()
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values):
        return values.astype(np.str_)
    return values


def _ids(table: pa.Table, name: str, split: str) -> NDArray[np.str_]:
    """A natural column as strings, by class name where the metadata has one."""
    values = _values(table, name, split)
    names = _names(table).get(name)
    if names is not None and values.dtype.kind in "iu":
        return np.array([names[value] for value in values], dtype=np.str_)
    return values.astype(np.str_)


def _inputs(
    table: pa.Table,
    columns: _Columns,
    layout: Layout,
    split: str,
    rows: NDArray[np.int64],
    channels: int | None,
) -> Tensor:
    """Images uint8 [n, channels, height, width], or features float32 [n, d]."""
    if columns.image:
        encoded = _encoded(table[columns.image], split, rows)
        return decode(encoded, len(table), size=layout.size, channels=channels)
    if len(columns.features) == 1 and _is_list(table[columns.features[0]].type):
        return _matrix(table[columns.features[0]], columns.features[0], split, rows)
    parts = [_values(table, name, split).astype(np.float32) for name in columns.features]
    return torch.from_numpy(np.stack(parts, axis=1))


def _encoded(column: pa.ChunkedArray, split: str, rows: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
    """The bytes of every image (a struct of bytes and path, or bytes alone), with its place for messages."""
    position = 0
    for chunk in column.chunks:
        for value in chunk.to_pylist():
            place = f"{split}:{rows[position]}"
            position += 1
            encoded = value.get("bytes") if isinstance(value, dict) else value
            path = value.get("path") if isinstance(value, dict) else None
            if encoded is None and path and Path(path).is_file():
                encoded = Path(path).read_bytes()
            if encoded is None:
                raise InputError(f"image {place}: no bytes in the table")
            yield place, encoded


def _matrix(column: pa.ChunkedArray, name: str, split: str, rows: NDArray[np.int64]) -> Tensor:
    """A column of lists of one length as float32 [n, d]."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    width = int(lengths[0]) if len(lengths) else 0
    unlike = np.flatnonzero((lengths != width) | (lengths == 0))
    if len(unlike):
        raise InputError(
            f"data: split {split!r}, row {rows[unlike[0]]} has {lengths[unlike[0]]} values in {name!r}; "
            f"expected {width or 'some'} as in the first row"
        )
    flat = pc.list_flatten(column).to_numpy().astype(np.float32)
    return torch.from_numpy(flat.reshape(len(column), width))
