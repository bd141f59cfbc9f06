"""Small data sets and files for the tests of the data room."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from fedsiege.data.assembly import Table, assemble
from fedsiege.data.dataset import Dataset


def toy(train: int = 60, heldout: int = 20, classes: int = 3, features: int = 4) -> Dataset:
    """Distinct rows of random features; labels go round; natural columns `site` (4 values) and `person` (9)."""
    rng = np.random.default_rng(5)
    tables = []
    for split, rows in (("train", train), ("test", heldout)):
        x = torch.from_numpy(rng.normal(size=(rows, features)).astype(np.float32))
        number = np.arange(rows)
        natural = {"site": (number % 4).astype(np.str_), "person": (number % 9).astype(np.str_)}
        tables.append(Table(split, x, number % classes, number, natural if split == "train" else {}))
    names = tuple(f"class {value}" for value in range(classes))
    return assemble(*tables, classes=names, origin="toy", holdout=0.5)


def encode(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """An image file with these pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pictures(count: int, *shape: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Random pictures [height, width(, 3)]."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8))


def image_column(images: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """As a Hugging Face image column."""
    return [{"bytes": encode(image), "path": None} for image in images]


def parquet(path: Path, columns: Mapping[str, Any], names: Mapping[str, Sequence[str]] | None = None) -> Path:
    """A parquet file with these columns; `names` are the class names in its Hugging Face metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns))
    if names is not None:
        features = {column: {"_type": "ClassLabel", "names": list(known)} for column, known in names.items()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def class_folder(folder: Path, counts: Mapping[str, int], *shape: int, kind: str = "png", seed: int = 0) -> Path:
    """folder/<class>/<number>.<kind> with random pictures."""
    for position, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(pictures(count, *(shape or (6, 5, 3)), seed=seed + position)):
            (folder / name / f"{number}.{kind}").write_bytes(encode(image, kind.upper()))
    return folder
