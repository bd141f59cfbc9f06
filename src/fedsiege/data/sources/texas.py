"""Texas100 as published at github.com/privacytrustlab/datasets."""

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsiege.data.dataset import Dataset
from fedsiege.data.places import find, given_or_copy
from fedsiege.data.tabular import binary_dataset, read_csv, read_published
from fedsiege.registry import register


@register("texas100")
class Texas100:
    """Texas100: 67,330 hospital stays, 6,169 binary features, 100 classes.

    Read from the published `100/feats` and `100/labels` (comma-separated, labels 1..100), or `texas100.npz` with
    `features` and `labels` (numbers, or one-hot rows).
    """

    path: str = ""
    """The .npz file, or a folder that holds it or feats and labels; empty: texas100 below $FEDSIEGE_DATA."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the rows that nobody trains on."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """At most so many rows, drawn by a fixed stream."""

    def load(self) -> Dataset:
        """The features as float32 [n, 6169]."""
        place = find(given_or_copy(self.path, "texas100"), ("feats", "texas100.npz"))
        if place.suffix == ".npz":
            x, labels = read_published(place, 6169, 100)
        else:
            x = read_csv(place, 6169)
            labels = read_csv(find(place.parent, ("labels",)), 1)[:, 0].astype(np.int64)
        return binary_dataset(x, labels, classes=100, origin="texas100", holdout=self.holdout, rows=self.rows)
