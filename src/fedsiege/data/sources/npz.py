"""Arrays of an .npz file, never by pickle."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedsiege.data.assembly import Table, assemble, encode_labels
from fedsiege.data.dataset import Dataset
from fedsiege.data.places import given
from fedsiege.data.tabular import read_arrays
from fedsiege.errors import InputError
from fedsiege.registry import register


@register("npz")
class Npz:
    """An .npz file with x, y and, if it has them, x_test and y_test: uint8 images, or numeric features."""

    path: str = ""
    """The file."""
    x: str = "x"
    """Name of the inputs: uint8 [n, height, width(, channels)] or [n, channels, height, width], else [n, d]."""
    y: str = "y"
    """Name of the labels [n]: whole numbers from 0, or strings."""
    x_heldout: str = "x_test"
    """Name of the inputs that nobody trains on; without such an array, the share `holdout` is set aside."""
    y_heldout: str = "y_test"
    """Name of their labels."""
    classes: str = "classes"
    """Name of the class names; without such an array they are the numbers from 0 to the largest label."""
    natural: tuple[str, ...] = ()
    """Names of arrays [n] that name natural clients of the training rows."""
    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    """Where the channels of images are; auto finds the axis of 1 or 3."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the rows that nobody trains on, where the file has no held-out arrays."""
    mean: tuple[float, ...] = ()
    """Mean per channel of images scaled to [0, 1], or per feature; empty: computed from the training rows."""
    std: tuple[float, ...] = ()
    """Standard deviation per channel or feature; empty: computed from the training rows."""

    def load(self) -> Dataset:
        """Images as uint8 [n, channels, height, width], features as float32 [n, d]."""
        path = given(self.path, "npz")
        arrays = read_arrays(path)
        keys = {"train": (self.x, self.y)}
        if self.x_heldout in arrays or self.y_heldout in arrays:
            keys["test"] = (self.x_heldout, self.y_heldout)
        named = tuple(str(name) for name in arrays.get(self.classes, ()))
        raw = {split: _column(arrays, y, len(_array(arrays, x, path)), path) for split, (x, y) in keys.items()}
        labels, classes = encode_labels(raw, named)
        tables: list[Table] = []
        for split, (key, _) in keys.items():
            x = _inputs(arrays[key], key, path, self.layout)
            names = () if tables else self.natural
            natural = {name: _column(arrays, name, len(x), path).astype(np.str_) for name in names}
            tables.append(Table(split, x, labels[split], np.arange(len(x), dtype=np.int64), natural))
        return assemble(
            tables[0],
            tables[1] if len(tables) > 1 else None,
            classes=classes,
            origin=f"npz {self.path}",
            holdout=self.holdout,
            mean=self.mean,
            std=self.std,
        )


def _array(arrays: dict[str, NDArray[Any]], key: str, path: Path) -> NDArray[Any]:
    if key not in arrays:
        raise InputError(f"{path}: no array {key!r}; it has {', '.join(arrays) or 'none'}")
    if not arrays[key].ndim:
        raise InputError(f"{path}: {key!r} is a single value; expected an array with one row per example")
    return arrays[key]


def _column(arrays: dict[str, NDArray[Any]], key: str, rows: int, path: Path) -> NDArray[Any]:
    """An array with one value per row."""
    values = _array(arrays, key, path)
    if values.shape != (rows,):
        raise InputError(f"{path}: {key!r} has shape {list(values.shape)}; expected [{rows}], one value per row")
    return values


def _inputs(values: NDArray[Any], key: str, path: Path, layout: str) -> Tensor:
    """Images to uint8 [n, channels, height, width], a matrix of numbers to float32 [n, d]."""
    shape = list(values.shape)
    if values.dtype == np.uint8 and values.ndim == 3:
        return torch.from_numpy(values)[:, None]
    if values.dtype == np.uint8 and values.ndim == 4:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if layout == "auto" and first == last:
            raise InputError(
                f"{path}: {key!r} has shape {shape}, so its channels are not clear; set data.layout to nchw or nhwc"
            )
        if layout == "nhwc" or (layout == "auto" and last):
            values = values.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(values))
    if values.ndim == 2 and values.dtype.kind in "fiub":
        return torch.from_numpy(values.astype(np.float32))
    raise InputError(
        f"{path}: {key!r} is {values.dtype} of shape {shape}; expected uint8 images (3 or 4 axes) or numbers [n, d]"
    )
