"""Exact duplicates: an example that is in train and held out is member and non-member at once, so one copy goes."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedsiege.data.dataset import Dataset
from fedsiege.records import Examples


def deduplicate(data: Dataset) -> Dataset:
    """The data with every input once, and counts of what was removed, in `duplicates`.

    `train_repeated`: train rows equal to an earlier train row (the first stays). `heldout_in_train`: held-out rows
    equal to a train row. `heldout_repeated`: further held-out rows equal to an earlier one. Only inputs are
    compared, not labels: a model that trained on an input has seen it, whatever it was called there.
    """
    seen: set[bytes] = set()
    train = _first_seen(_digests(data.train), seen)
    in_train = set(seen)
    hashes = _digests(data.heldout)
    heldout = _first_seen(hashes, seen)
    known = sum(digest in in_train for digest in hashes)
    return replace(
        data,
        train=data.train.take(train),
        heldout=data.heldout.take(heldout),
        rows={str(name): data.rows[str(name)] for name in (*data.train.ids[train], *data.heldout.ids[heldout])},
        natural={name: values[train] for name, values in data.natural.items()},
        duplicates={
            "train_repeated": len(data.train) - len(train),
            "heldout_in_train": known,
            "heldout_repeated": len(data.heldout) - len(heldout) - known,
        },
    )


def _digests(examples: Examples) -> list[bytes]:
    """A hash of every input; -0.0 counts as 0.0."""
    values = examples.x.cpu().numpy()
    if values.dtype.kind == "f":
        values = values + 0.0
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


def _first_seen(digests: Sequence[bytes], seen: set[bytes]) -> NDArray[np.int64]:
    """Positions whose hash was not in `seen`, which grows."""
    kept = []
    for position, digest in enumerate(digests):
        if digest not in seen:
            seen.add(digest)
            kept.append(position)
    return np.array(kept, dtype=np.int64)
