"""scikit-learn's bundled data sets: small, real, and on every machine."""

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedsiege.data.assembly import Table, assemble
from fedsiege.data.dataset import Dataset
from fedsiege.registry import register


@register("digits")
class Digits:
    """1,797 handwritten digits, 8x8 greyscale, 10 classes (scikit-learn's `load_digits`)."""

    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the images that nobody trains on."""

    def load(self) -> Dataset:
        """The images as uint8 [n, 1, 8, 8], their levels 0..16 stretched to 0..255."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
        return _dataset("digits", x, bunch.target, bunch.target_names, self.holdout)


@register("breast_cancer")
class BreastCancer:
    """569 biopsies, 30 features, 2 classes (scikit-learn's `load_breast_cancer`)."""

    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the rows that nobody trains on."""

    def load(self) -> Dataset:
        """The features as float32 [n, 30]."""
        from sklearn.datasets import load_breast_cancer

        bunch = load_breast_cancer()
        x = torch.from_numpy(bunch.data.astype(np.float32))
        return _dataset("breast_cancer", x, bunch.target, bunch.target_names, self.holdout)


@register("wine")
class Wine:
    """178 wines, 13 features, 3 classes (scikit-learn's `load_wine`)."""

    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the rows that nobody trains on."""

    def load(self) -> Dataset:
        """The features as float32 [n, 13]."""
        from sklearn.datasets import load_wine

        bunch = load_wine()
        x = torch.from_numpy(bunch.data.astype(np.float32))
        return _dataset("wine", x, bunch.target, bunch.target_names, self.holdout)


def _dataset(
    name: str, x: Tensor, labels: NDArray[np.int64], classes: NDArray[np.generic], holdout: float
) -> Dataset:
    table = Table("train", x, labels.astype(np.int64), np.arange(len(x), dtype=np.int64))
    named = tuple(str(value) for value in classes)
    return assemble(table, None, classes=named, origin=f"scikit-learn {name}", holdout=holdout)
