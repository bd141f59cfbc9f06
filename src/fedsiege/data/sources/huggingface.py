"""Data sets of the Hugging Face hub by name, or the same layout from a local parquet folder."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fedsiege.data.dataset import Dataset
from fedsiege.data.parquet import Layout, build_dataset, read_folder
from fedsiege.data.places import VARIABLE, local_copy
from fedsiege.errors import InputError
from fedsiege.registry import register

if TYPE_CHECKING:
    import pyarrow as pa


@register("huggingface")
class HuggingFace:
    """A hub data set by name (uoft-cs/cifar100), or a local parquet file or folder; images or numeric features.

    With $FEDSIEGE_DATA set, $FEDSIEGE_DATA/<last part of the hub name> is used instead of the hub where it exists.
    Local folders are read without `datasets`, without a network and without a cache.
    """

    path: str = ""
    """Name on the hub, or a local parquet file or folder."""
    config: str = ""
    """Configuration of the data set, where it has several."""
    train_split: str = "train"
    """Split that clients may own."""
    heldout_split: str = ""
    """Split that nobody trains on; empty: test, else validation, else the share `holdout` of the training split."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the training split that nobody trains on, where the data has no held-out split."""
    image: str = ""
    """Column of the images, or of the lists of features; empty: detected by name and type."""
    label: str = ""
    """Column of the labels; empty: fine_label, label, labels, target, class or y."""
    natural: tuple[str, ...] = ()
    """Columns that name natural clients; empty: every whole-number or string column that is nothing else."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """At most so many rows of each split, drawn by a fixed stream."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Images are resized to size x size."""
    mean: tuple[float, ...] = ()
    """Mean per channel of images scaled to [0, 1]; empty: computed from the training rows."""
    std: tuple[float, ...] = ()
    """Standard deviation per channel; empty: computed from the training rows."""

    def load(self) -> Dataset:
        """Images as uint8 [n, channels, height, width], features as float32 [n, d]."""
        layout = Layout(
            train_split=self.train_split,
            heldout_split=self.heldout_split,
            holdout=self.holdout,
            image=self.image,
            label=self.label,
            natural=self.natural,
            rows=self.rows,
            size=self.size,
            mean=self.mean,
            std=self.std,
        )
        place = self._local()
        if place is None:
            splits = self._download()
        else:
            splits = read_folder(place, self.config, filter(None, (self.train_split, self.heldout_split)))
        return build_dataset(splits, layout, f"huggingface {self.path}")

    def _local(self) -> Path | None:
        """The local file or folder, or None for a name on the hub."""
        if not self.path:
            raise InputError("data.path: huggingface needs a name on the hub or a local parquet folder; got none")
        place = Path(self.path).expanduser()
        if place.exists():
            return place
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", self.path) or place.suffix == ".parquet":
            raise InputError(f"data.path: {self.path!r} does not exist; expected a parquet folder or a hub name")
        return local_copy(self.path)

    def _download(self) -> "dict[str, pa.Table]":
        """Every split from the hub (or its cache), images still encoded, class names in the schema's metadata."""
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            import datasets

            loaded: Any = datasets.load_dataset(self.path, self.config or None)
        except Exception as error:  # the hub raises dozens of kinds: no network, no such name, no such config ...
            raise InputError(
                f"data.path: cannot load {self.path!r} from the Hugging Face hub, it is no local folder, and there "
                f"is no copy below ${VARIABLE} ({type(error).__name__}: {error})"
            ) from None
        splits = {}
        for name, split in loaded.items():
            described = {"info": {"features": split.features.to_dict()}}
            for column, feature in split.features.items():
                if isinstance(feature, datasets.Image):
                    split = split.cast_column(column, datasets.Image(decode=False))
            table = split.with_format("arrow")[:]
            splits[str(name)] = table.replace_schema_metadata({"huggingface": json.dumps(described)})
        return splits
