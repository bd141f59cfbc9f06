from dataclasses import replace

import numpy as np
from made_data import toy

from fedsiege.data.dataset import Dataset
from fedsiege.data.fingerprint import fingerprint
from fedsiege.records import Examples


def test_equal_data_has_one_fingerprint() -> None:
    assert fingerprint(toy()) == fingerprint(toy())
    assert len(fingerprint(toy())) == 64


def test_every_part_counts() -> None:
    data = toy()
    ids = data.train.ids.copy()
    ids[0] = "0" * 16
    x = data.train.x.clone()
    x[3, 1] += 1e-6
    y = data.heldout.y.clone()
    y[0] += 1
    site = data.natural["site"].copy()
    site[0] = "9"
    changed: list[Dataset] = [
        replace(data, train=Examples(ids, data.train.x, data.train.y)),
        replace(data, train=Examples(data.train.ids, x, data.train.y)),
        replace(data, heldout=Examples(data.heldout.ids, data.heldout.x, y)),
        replace(data, classes=("a", "b", "c")),
        replace(data, natural={**data.natural, "site": site}),
        replace(data, train=data.heldout, heldout=data.train),
        replace(data, train=data.train.take(np.arange(len(data.train))[::-1].copy())),
    ]
    assert len({fingerprint(data), *map(fingerprint, changed)}) == 1 + len(changed)


def test_names_of_classes_are_kept_apart() -> None:
    data = toy()
    assert fingerprint(replace(data, classes=("ab", "c"))) != fingerprint(replace(data, classes=("a", "bc")))
