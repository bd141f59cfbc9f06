"""Folders of image files, one folder per class; DermNet comes in this layout."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsiege.data.assembly import Table, assemble
from fedsiege.data.dataset import Dataset
from fedsiege.data.images import decode
from fedsiege.data.parquet import SPLITS
from fedsiege.data.places import given, given_or_copy
from fedsiege.errors import InputError
from fedsiege.registry import register
from fedsiege.streams import stream

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@register("imagefolder")
class ImageFolder:
    """Image files in one folder per class: path/train/<class>/* and path/test/<class>/*, or path/<class>/*."""

    path: str = ""
    """The folder."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the images that nobody trains on, where there is no test folder."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Images are resized to size x size; needed where they differ in size."""
    mean: tuple[float, ...] = ()
    """Mean per channel of images scaled to [0, 1]; empty: computed from the training images."""
    std: tuple[float, ...] = ()
    """Standard deviation per channel; empty: computed from the training images."""

    def load(self) -> Dataset:
        """Images as uint8 [n, channels, height, width], in the order of class and file name."""
        root = _folder(given(self.path, "imagefolder"))
        folders = _split_folders(root)
        classes = _classes(folders["train"])
        tables: list[Table] = []
        for split, folder in folders.items():
            files, labels = _files(folder, classes)
            channels = int(tables[0].x.shape[1]) if tables else None
            x = decode(_bytes(files, root), len(files), size=self.size, channels=channels)
            tables.append(Table(split, x, labels, np.arange(len(files), dtype=np.int64)))
        return assemble(
            tables[0],
            tables[1] if len(tables) > 1 else None,
            classes=classes,
            origin=f"imagefolder {self.path}",
            holdout=self.holdout,
            mean=self.mean,
            std=self.std,
        )


@register("dermnet")
class DermNet:
    """DermNet's 23 classes of skin photographs as FedMIA uses them: pooled, 64x64, 15,000 and 4,000 images.

    Paper: FedMIA (CVPR 2025, arXiv 2402.06289), appendix A; the split is drawn again here, by our own stream.
    """

    path: str = ""
    """The folder with train/<class>/*.jpg and test/<class>/*.jpg; empty: dermnet below $FEDSIEGE_DATA."""
    train: Annotated[int, Field(ge=1)] = 15000
    """Images that clients may own."""
    heldout: Annotated[int, Field(ge=1)] = 4000
    """Images that nobody trains on."""
    size: Annotated[int, Field(ge=1)] = 64
    """Images are resized to size x size."""
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    """Mean per channel (the published code takes CIFAR-10's)."""
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)
    """Standard deviation per channel (the published code takes CIFAR-10's)."""

    def load(self) -> Dataset:
        """Images as uint8 [n, 3, size, size]."""
        root = _folder(given_or_copy(self.path, "dermnet"))
        folders = _split_folders(root)
        classes = _classes(folders["train"])
        listed = [_files(folder, classes) for folder in folders.values()]
        files = [file for part, _ in listed for file in part]
        labels = np.concatenate([part for _, part in listed])
        if len(files) < self.train + self.heldout:
            raise InputError(
                f"data.train: {self.train} training and {self.heldout} held-out images asked; "
                f"{str(root)!r} has {len(files)}"
            )
        order = stream(0, "dermnet").permutation(len(files))[: self.train + self.heldout]
        tables = []
        for rows in (np.sort(order[: self.train]), np.sort(order[self.train :])):
            chosen = [files[row] for row in rows]
            x = decode(_bytes(chosen, root), len(chosen), size=self.size, channels=3)
            tables.append(Table("all", x, labels[rows], rows))
        train, heldout = tables
        return assemble(
            train, heldout, classes=classes, origin="dermnet", holdout=0.0, mean=self.mean, std=self.std
        )


def _folder(place: Path) -> Path:
    if not place.is_dir():
        raise InputError(f"data.path: {str(place)!r} is a file; expected a folder with one sub-folder per class")
    return place


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of train and, where there is one, of the held-out split."""
    found = {path.name.lower(): path for path in _subfolders(root)}
    train = next((found[name] for name in SPLITS["train"] if name in found), None)
    if train is None:
        return {"train": root}
    usual = (("test", name) for name in SPLITS["test"])
    further = (("validation", name) for name in SPLITS["validation"])
    heldout = next(((split, found[name]) for split, name in (*usual, *further) if name in found), None)
    return {"train": train} | dict([heldout] if heldout else [])


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(path.name for path in _subfolders(folder))
    if not names:
        raise InputError(f"data.path: no class folder in {str(folder)!r}; expected one sub-folder per class")
    return names


def _files(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], NDArray[np.int64]]:
    """The image files of every class folder and their labels [n], in order of class and file name."""
    files: list[Path] = []
    labels: list[int] = []
    for place in _subfolders(folder):
        if place.name not in classes:
            raise InputError(
                f"data.path: class folder {str(place)!r} has no counterpart among the training classes"
            )
        found = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not found:
            raise InputError(f"data.path: class folder {str(place)!r} has no image ({', '.join(SUFFIXES)})")
        files += found
        labels += [classes.index(place.name)] * len(found)
    return files, np.array(labels, dtype=np.int64)


def _bytes(files: list[Path], root: Path) -> Iterator[tuple[str, bytes]]:
    for file in files:
        try:
            yield str(file.relative_to(root)), file.read_bytes()
        except OSError as error:
            raise InputError(f"image {file}: cannot be read ({error})") from None
