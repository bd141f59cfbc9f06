"""Location30 (Bangkok) as published at github.com/privacytrustlab/datasets."""

from typing import Annotated

from pydantic import Field

from fedsiege.data.dataset import Dataset
from fedsiege.data.parquet import Layout, build_dataset, read_folder
from fedsiege.data.places import find, given_or_copy
from fedsiege.data.tabular import binary_dataset, read_published
from fedsiege.registry import register


@register("location30")
class Location30:
    """Location30: 5,010 people's check-ins in Bangkok, 446 binary features, 30 classes.

    Read from the published `bangkok` (comma-separated, quoted label 1..30 first), or a parquet folder.
    """

    path: str = ""
    """The file, or a folder that holds it or parquet files; empty: location30 below $FEDSIEGE_DATA."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the rows that nobody trains on."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """At most so many rows, drawn by a fixed stream."""

    def load(self) -> Dataset:
        """The features as float32 [n, 446]."""
        place = given_or_copy(self.path, "location30")
        if place.suffix == ".parquet" or (place.is_dir() and any(place.rglob("*.parquet"))):
            layout = Layout(holdout=self.holdout, rows=self.rows)
            return build_dataset(read_folder(place), layout, "location30")
        x, labels = read_published(find(place, ("bangkok", "bangkok.csv", "location30.npz")), 446, 30)
        return binary_dataset(x, labels, classes=30, origin="location30", holdout=self.holdout, rows=self.rows)
