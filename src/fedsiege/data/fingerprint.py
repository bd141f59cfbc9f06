"""What data a run saw, as one number."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsiege.data.dataset import Dataset


def fingerprint(data: Dataset) -> str:
    """SHA-256 over ids, inputs and labels of both parts, class names and natural columns.

    Dtypes and shapes go in before the bytes, so two data sets with the same bytes laid out differently differ.
    """
    digest = hashlib.sha256()

    def add(name: str, values: NDArray[Any]) -> None:
        digest.update(f"{name}|{values.dtype.str}|{values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).data)

    for name, part in (("train", data.train), ("heldout", data.heldout)):
        add(f"{name}.ids", np.char.encode(part.ids, "utf-8"))
        add(f"{name}.x", part.x.cpu().numpy())
        add(f"{name}.y", part.y.cpu().numpy())
    for text in data.classes:
        add("class", np.frombuffer(text.encode(), dtype=np.uint8))
    for name, column in sorted(data.natural.items()):
        add(f"natural.{name}", np.char.encode(column, "utf-8"))
    return digest.hexdigest()
