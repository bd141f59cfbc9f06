from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from made_data import toy

from fedsiege.data.dataset import Dataset
from fedsiege.data.duplicates import deduplicate
from fedsiege.records import Examples
from fedsiege.registry import build


def with_copies() -> Dataset:
    """Train rows 10 and 11 repeat 0, held-out 3 and 4 are train rows 0 and 20, held-out 6 and 7 repeat 5."""
    data = toy()
    train, heldout = data.train.x.clone(), data.heldout.x.clone()
    train[[10, 11]] = train[0].clone()
    heldout[3], heldout[4] = train[0], train[20]
    heldout[[6, 7]] = heldout[5].clone()
    return replace(
        data,
        train=Examples(data.train.ids, train, data.train.y),
        heldout=Examples(data.heldout.ids, heldout, data.heldout.y),
    )


def test_copies_are_removed_and_counted() -> None:
    data = with_copies()
    clean = deduplicate(data)
    assert clean.duplicates == {"train_repeated": 2, "heldout_in_train": 2, "heldout_repeated": 2}
    train = [row for row in range(60) if row not in (10, 11)]
    heldout = [row for row in range(20) if row not in (3, 4, 6, 7)]
    assert clean.train.ids.tolist() == data.train.ids[train].tolist()
    assert clean.heldout.ids.tolist() == data.heldout.ids[heldout].tolist()
    assert torch.equal(clean.train.y, data.train.y[train])
    assert clean.natural["person"].tolist() == data.natural["person"][train].tolist()
    assert set(clean.rows) == {str(name) for name in (*clean.train.ids, *clean.heldout.ids)}


def test_afterwards_no_member_is_a_nonmember() -> None:
    clean = deduplicate(with_copies())
    inputs = {tuple(row) for row in clean.train.x.tolist()}
    assert len(inputs) == len(clean.train)
    assert not inputs & {tuple(row) for row in clean.heldout.x.tolist()}
    assert sum(deduplicate(clean).duplicates.values()) == 0


def test_a_copy_of_a_removed_copy_is_in_train() -> None:
    data = with_copies()
    heldout = data.heldout.x.clone()
    heldout[9] = data.train.x[11]
    data = replace(data, heldout=Examples(data.heldout.ids, heldout, data.heldout.y))
    assert deduplicate(data).duplicates["heldout_in_train"] == 3


def test_labels_and_the_sign_of_zero_do_not_matter() -> None:
    data = toy()
    x = data.heldout.x.clone()
    train = data.train.x.clone()
    train[0, 0] = 0.0
    x[0] = train[0]
    x[0, 0] = -0.0
    y = data.heldout.y.clone()
    y[0] = (data.train.y[0] + 1) % 3
    data = replace(
        data,
        train=Examples(data.train.ids, train, data.train.y),
        heldout=Examples(data.heldout.ids, x, y),
    )
    assert deduplicate(data).duplicates["heldout_in_train"] == 1


def test_cifar100_has_fourteen_and_ten(shared_data: Path) -> None:
    data = build("data", {"name": "huggingface", "path": str(shared_data / "cifar100")}, "data").load()
    assert (len(data.train), len(data.heldout), len(data.classes)) == (50000, 10000, 100)
    assert np.bincount(data.train.y.numpy()).tolist() == [500] * 100
    np.testing.assert_allclose(data.mean, (0.5071, 0.4865, 0.4409), atol=1e-4)
    clean = deduplicate(data)
    assert clean.duplicates["train_repeated"] == 14
    assert clean.duplicates["heldout_in_train"] == 10
    assert len(clean.train) == 49986
