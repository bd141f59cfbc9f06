"""The partition that biases groups of clients towards classes."""

from dataclasses import replace

import numpy as np
import pytest
from made_data import toy

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, partition
from fedsiege.errors import InputError
from fedsiege.registry import build
from fedsiege.streams import stream


def deal(data: Dataset, clients: int, seed: int = 0, **options: object) -> list[Rows]:
    return partition(data, build("partition", {"name": "bias", **options}, "partition"), clients, seed)


def owners(data: Dataset, shards: list[Rows]) -> Rows:
    """The client of each row [n]; every row has exactly one."""
    found = np.full(len(data.train), -1, dtype=np.int64)
    for client, rows in enumerate(shards):
        assert (found[rows] == -1).all()
        found[rows] = client
    assert (found >= 0).all()
    return found


def label_by_group(
    data: Dataset, shards: list[Rows], groups: int
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """How many examples of each label each group has [labels, groups]."""
    counts = np.zeros((len(data.classes), groups), dtype=np.int64)
    np.add.at(counts, (data.train.y.numpy(), owners(data, shards) % groups), 1)
    return counts


def one_by_one(labels: list[int], classes: int, clients: int, bias: float, seed: int) -> list[list[int]]:
    """The scheme written out example by example, from the same draws."""
    groups = min(classes, clients)
    members = [[client for client in range(clients) if client % groups == group] for group in range(groups)]
    rng = stream(seed, "partition", "bias")
    luck = rng.random(len(labels))
    steps = rng.integers(1, groups, size=len(labels))
    chosen = []
    for label, drawn, step in zip(labels, luck, steps, strict=True):
        home = label % groups
        others = [(home + further) % groups for further in range(1, groups)]
        chosen.append(home if drawn < bias else others[step - 1])
    seats = rng.integers([len(members[group]) for group in chosen])
    shards: list[list[int]] = [[] for _ in range(clients)]
    for row, (group, seat) in enumerate(zip(chosen, seats, strict=True)):
        shards[members[group][seat]].append(row)
    return shards


@pytest.mark.parametrize(
    ("classes", "clients", "bias"), [(3, 3, 0.5), (3, 7, 0.8), (7, 3, 0.2), (4, 10, 0.25), (2, 2, 1.0)]
)
def test_it_is_the_scheme_written_out_example_by_example(classes: int, clients: int, bias: float) -> None:
    data = toy(train=400, classes=classes)
    expected = one_by_one(data.train.y.tolist(), classes, clients, bias, 9)
    assert [rows.tolist() for rows in deal(data, clients, 9, bias=bias)] == expected


@pytest.mark.parametrize(("classes", "clients"), [(5, 5), (30, 10), (4, 10)])
def test_every_example_has_exactly_one_client(classes: int, clients: int) -> None:
    data = toy(train=1200, classes=classes)
    owners(data, deal(data, clients))


def test_the_bias_is_the_share_that_stays_and_the_rest_is_spread_evenly() -> None:
    data = toy(train=60_000, classes=6, features=1)
    counts = label_by_group(data, deal(data, 6, bias=0.7), 6)
    expected = np.full((6, 6), 10_000 * 0.3 / 5)
    np.fill_diagonal(expected, 7_000)
    # Six standard deviations of a count around these means.
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected)).all()


def test_half_stays_unless_asked_otherwise() -> None:
    data = toy(train=60_000, classes=6, features=1)
    counts = label_by_group(data, deal(data, 6), 6)
    assert np.diag(counts).sum() == pytest.approx(30_000, abs=6 * np.sqrt(15_000))


def test_where_clients_are_fewer_than_classes_several_classes_have_one_group() -> None:
    data = toy(train=300, classes=30)
    for client, rows in enumerate(deal(data, 10, bias=1.0)):
        assert set(data.train.y[rows].tolist()) == {client, client + 10, client + 20}
        assert len(rows) == 30


def test_where_clients_are_more_than_classes_several_share_a_group_evenly() -> None:
    data = toy(train=30_000, classes=3, features=1)
    shards = deal(data, 8, bias=1.0)
    for client, rows in enumerate(shards):
        assert set(data.train.y[rows].tolist()) == {client % 3}
        share = 10_000 / (2 if client % 3 == 2 else 3)  # clients 2 and 5 have class 2 to themselves
        assert abs(len(rows) - share) < 6 * np.sqrt(share)


def test_a_bias_of_one_group_in_all_is_iid() -> None:
    data = toy(train=60_000, classes=6, features=1)
    counts = label_by_group(data, deal(data, 4, bias=0.25), 4)
    assert (np.abs(counts - 2_500) < 6 * np.sqrt(2_500)).all()


def test_no_bias_at_all_keeps_the_classes_of_a_group_out_of_it() -> None:
    data = toy(train=900, classes=3)
    assert (np.diag(label_by_group(data, deal(data, 3, bias=0.0), 3)) == 0).all()


def test_more_bias_moves_examples_home_and_nowhere_else() -> None:
    """A sweep over the bias compares like with like: only who went elsewhere may come home."""
    data = toy(train=900, classes=3)
    home = data.train.y.numpy()
    some, more = (owners(data, deal(data, 3, bias=bias)) for bias in (0.4, 0.7))
    moved = some != more
    assert moved.any()
    assert (more[moved] == home[moved]).all()


def test_one_client_and_one_class_have_all() -> None:
    assert len(deal(toy(), 1)[0]) == 60
    data = toy(train=90, classes=1)
    assert sum(map(len, deal(data, 4, bias=0.5))) == 90


def test_seeds_differ_and_repeat() -> None:
    data = toy()
    first, again, other = (owners(data, deal(data, 4, seed)).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_a_client_that_gets_nothing_is_refused_as_with_any_partition() -> None:
    data = toy(train=60, classes=2)
    data = replace(data, train=data.train.take(np.flatnonzero(data.train.y.numpy() == 0)[:3]))
    with pytest.raises(InputError, match=r"partition: bias leaves client 1 of 3 without examples"):
        deal(data, 3, seed=0)


@pytest.mark.parametrize("bias", [-0.1, 1.1, float("nan")])
def test_a_bias_is_a_probability(bias: float) -> None:
    with pytest.raises(InputError, match=r"partition\.bias: got "):
        deal(toy(), 3, bias=bias)


def test_sequences_have_no_class_to_be_biased_towards() -> None:
    data = toy()
    y = data.train.y[:, None].expand(-1, 2)
    with pytest.raises(InputError, match="bias goes by the class of an example"):
        deal(replace(data, train=replace(data.train, y=y)), 3)
