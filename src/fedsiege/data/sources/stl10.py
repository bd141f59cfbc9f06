"""STL-10 as published at cs.stanford.edu/~acoates/stl10."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsiege.data.assembly import Table, assemble
from fedsiege.data.dataset import Dataset
from fedsiege.data.places import given_or_copy
from fedsiege.errors import InputError
from fedsiege.registry import register

SIDE = 96
"""Pixels of an image, both ways."""
IMAGE = 3 * SIDE * SIDE
"""Bytes of an image."""
CLASSES = 10
NAMES = "class_names.txt"
FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", NAMES)


@register("stl10")
class STL10:
    """STL-10: 5,000 training and 8,000 test images of 10 classes, 96x96 in colour.

    Read from the published binary files; the unlabelled images are left alone.
    Paper: Coates, Lee and Ng, An Analysis of Single-Layer Networks in Unsupervised Feature Learning, AISTATS 2011.
    """

    path: str = ""
    """The folder that holds train_X.bin and the others; empty: stl10 below $FEDSIEGE_DATA."""
    size: Literal[32, 48, 96] = 96
    """Images are size x size: smaller ones are means of squares of 3 x 3 or 2 x 2 pixels."""
    mean: tuple[float, ...] = ()
    """Mean per channel of images scaled to [0, 1]; empty: computed from the training images."""
    std: tuple[float, ...] = ()
    """Standard deviation per channel; empty: computed from the training images."""

    def load(self) -> Dataset:
        """Images as uint8 [n, 3, size, size]."""
        folder = _folder(given_or_copy(self.path, "stl10"))
        return assemble(
            _table(folder, "train", self.size),
            _table(folder, "test", self.size),
            classes=_class_names(folder / NAMES),
            origin="stl10",
            holdout=0.0,
            mean=self.mean,
            std=self.std,
        )


def _folder(place: Path) -> Path:
    """The folder of the published files, `place` or one below it; InputError with all that is missing."""
    expected = f"expected the folder with {', '.join(FILES)} of the published stl10_binary.tar.gz"
    if not place.is_dir():
        raise InputError(f"data.path: {str(place)!r} is a file; {expected}")
    folders = {place, *(file.parent for name in FILES for file in place.rglob(name))}
    lacking = {folder: [name for name in FILES if not (folder / name).is_file()] for folder in sorted(folders)}
    best = min(lacking, key=lambda folder: len(lacking[folder]))
    if lacking[best]:
        raise InputError(f"data.path: no {', '.join(lacking[best])} in {str(best)!r}; {expected}")
    return best


def _table(folder: Path, split: str, size: int) -> Table:
    labels, images = _labels(folder / f"{split}_y.bin"), folder / f"{split}_X.bin"
    expected = len(labels) * IMAGE
    if images.stat().st_size != expected:
        raise InputError(
            f"{images}: got {images.stat().st_size} bytes; expected {expected}, {IMAGE} for each of the "
            f"{len(labels)} labels in {split}_y.bin"
        )
    # One channel after the other, each by columns: the first 96 values are the left edge of red.
    pixels = np.fromfile(images, dtype=np.uint8).reshape(-1, 3, SIDE, SIDE).swapaxes(2, 3)
    return Table(split, _pooled(pixels, SIDE // size), labels, np.arange(len(labels), dtype=np.int64))


def _pooled(pixels: NDArray[np.uint8], factor: int) -> Tensor:
    """Means of squares of factor x factor pixels, to the nearest whole number (halves upwards) [n, 3, h, w]."""
    if factor == 1:
        return torch.from_numpy(np.ascontiguousarray(pixels))
    n, channels, height, width = pixels.shape
    squares = pixels.reshape(n, channels, height // factor, factor, width // factor, factor)
    sums, count = squares.sum(axis=(3, 5), dtype=np.uint16), factor * factor
    return torch.from_numpy(((2 * sums + count) // (2 * count)).astype(np.uint8))


def _labels(file: Path) -> NDArray[np.int64]:
    """Labels from 0 [n]; the file has them from 1."""
    labels = np.fromfile(file, dtype=np.uint8)
    wrong = np.flatnonzero((labels < 1) | (labels > CLASSES))
    if len(wrong):
        raise InputError(f"{file}: row {wrong[0]} has label {labels[wrong[0]]}; expected 1 to {CLASSES}")
    return labels.astype(np.int64) - 1


def _class_names(file: Path) -> tuple[str, ...]:
    try:
        names = tuple(file.read_text(encoding="utf-8").split())
    except UnicodeDecodeError:
        raise InputError(f"{file}: not text; expected {CLASSES} class names, one a line") from None
    if len(names) != CLASSES:
        raise InputError(f"{file}: got {len(names)} class names; expected {CLASSES}")
    return names
