"""Purchase100 as published at github.com/privacytrustlab/datasets."""

from typing import Annotated

from pydantic import Field

from fedsiege.data.dataset import Dataset
from fedsiege.data.places import find, given_or_copy
from fedsiege.data.tabular import binary_dataset, read_published
from fedsiege.registry import register


@register("purchase100")
class Purchase100:
    """Purchase100: 197,324 shoppers, 600 binary features, 100 classes.

    Read from the published `dataset_purchase` (comma-separated, label 1..100 first), or an .npz with `features` and
    `labels`.
    """

    path: str = ""
    """The file, or a folder that holds it; empty: purchase100 below $FEDSIEGE_DATA."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the rows that nobody trains on."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """At most so many rows, drawn by a fixed stream."""

    def load(self) -> Dataset:
        """The features as float32 [n, 600]."""
        names = ("dataset_purchase", "dataset_purchase.csv", "purchase100.csv", "purchase100.npz")
        place = find(given_or_copy(self.path, "purchase100"), names)
        x, labels = read_published(place, 600, 100)
        return binary_dataset(x, labels, classes=100, origin="purchase100", holdout=self.holdout, rows=self.rows)
