import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import toy

from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows, partition
from fedsiege.errors import InputError
from fedsiege.records import Examples
from fedsiege.registry import build, names, register

SCHEMES: list[tuple[dict[str, Any], int]] = [
    ({"name": "iid"}, 5),
    ({"name": "dirichlet", "min_size": 3}, 4),
    ({"name": "dirichlet", "alpha": 2.0, "min_size": 1, "self_balancing": True}, 4),
    ({"name": "inner_dirichlet"}, 4),
    ({"name": "inner_dirichlet", "sizes": [30, 20, 9]}, 3),
    ({"name": "bias"}, 4),
    ({"name": "shard"}, 3),
    ({"name": "shard", "shards": None, "shard_size": 7, "keep_incomplete": True}, 4),
    ({"name": "pathological"}, 4),
    ({"name": "pathological", "classes_per_client": 1, "assignment": "deterministic"}, 6),
    ({"name": "natural", "column": "site"}, 4),
    ({"name": "grouped_natural", "column": "person"}, 4),
    ({"name": "owner", "column": "site"}, 4),
    ({"name": "size", "sizes": [30, 10, 20]}, 3),
    ({"name": "linear"}, 5),
    ({"name": "square"}, 4),
    ({"name": "exponential"}, 3),
    ({"name": "log_normal", "min_size": 1}, 6),
]
IDS = [json.dumps(spec) for spec, _ in SCHEMES]


def deal(data: Dataset, spec: object, clients: int, seed: int = 0, cap: int | None = None) -> list[Rows]:
    return partition(data, build("partition", spec, "partition"), clients, seed, cap)


def lists(shards: list[Rows]) -> list[list[int]]:
    return [rows.tolist() for rows in shards]


def numpy_state() -> object:
    state = np.random.get_state(legacy=False)
    return state["state"]["key"].tolist(), state["state"]["pos"]


def test_every_scheme_is_tried() -> None:
    assert {spec["name"] for spec, _ in SCHEMES} == set(names("partition"))


@pytest.mark.parametrize(("spec", "clients"), SCHEMES, ids=IDS)
def test_disjoint_sorted_complete_and_repeatable(spec: dict[str, Any], clients: int) -> None:
    data = toy()
    shards = deal(data, spec, clients, seed=3)
    rows = np.concatenate(shards)
    assert len(shards) == clients
    assert len(np.unique(rows)) == len(rows) <= 60
    assert all(shard.dtype == np.int64 and len(shard) and (np.diff(shard) > 0).all() for shard in shards)
    assert lists(deal(data, spec, clients, seed=3)) == lists(shards)
    if spec["name"] not in ("natural", "owner"):
        assert lists(deal(data, spec, clients, seed=4)) != lists(shards)


@pytest.mark.parametrize(("spec", "clients"), SCHEMES, ids=IDS)
def test_global_generators_are_left_alone(spec: dict[str, Any], clients: int) -> None:
    states: list[Any] = []
    for reseed in (1, 2):
        random.seed(reseed)
        np.random.seed(reseed)
        torch.manual_seed(reseed)
        before = (random.getstate(), numpy_state(), torch.get_rng_state().tolist())
        states.append(lists(deal(toy(), spec, clients)))
        assert before == (random.getstate(), numpy_state(), torch.get_rng_state().tolist())
    assert states[0] == states[1]


def test_the_same_in_another_process_and_without_a_network(tmp_path: Path) -> None:
    program = """
import json, socket, sys
def refuse(*_, **__): sys.exit("something went to the network")
socket.socket.connect = socket.getaddrinfo = refuse
sys.path.insert(0, sys.argv[1])
from test_partitioning import SCHEMES, deal, lists
from made_data import toy
print(json.dumps([lists(deal(toy(), spec, clients)) for spec, clients in SCHEMES]))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [lists(deal(toy(), spec, clients)) for spec, clients in SCHEMES]
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


@settings(max_examples=25, deadline=None)
@given(
    spec=st.sampled_from(
        ["iid", "shard", "pathological", "linear", {"name": "dirichlet", "alpha": 5, "min_size": 1}]
    ),
    rows=st.integers(24, 90),
    clients=st.integers(2, 6),
    seed=st.integers(0, 2**40),
)
def test_any_size(spec: Any, rows: int, clients: int, seed: int) -> None:
    data = toy(train=rows, classes=2)
    first, second = (deal(data, spec, clients, seed) for _ in range(2))
    assert lists(first) == lists(second)
    dealt = np.concatenate(first)
    assert len(np.unique(dealt)) == len(dealt)
    assert set(dealt.tolist()) <= set(range(rows))


def test_what_the_schemes_promise() -> None:
    data = toy(train=300, classes=3)
    labels = data.train.y.numpy()
    assert [len(rows) for rows in deal(data, "iid", 7)] == [43, 43, 43, 43, 43, 43, 42]
    assert [len(rows) for rows in deal(data, "linear", 4)] == [30, 60, 90, 120]
    assert [len(rows) for rows in deal(data, {"name": "size", "sizes": [5, 250]}, 2)] == [5, 250]
    for rows in deal(data, {"name": "pathological", "classes_per_client": 2}, 6):
        assert len(np.unique(labels[rows])) == 2
    for rows in deal(data, {"name": "shard", "shards": 1}, 6):
        assert len(np.unique(labels[rows])) == 1
    for client, rows in enumerate(deal(data, {"name": "natural", "column": "site"}, 4)):
        assert set(data.natural["site"][rows]) == {str(client)}
    grouped = [
        set(data.natural["person"][rows]) for rows in deal(data, {"name": "grouped_natural", "column": "person"}, 4)
    ]
    assert sorted(map(len, grouped)) == [2, 2, 2, 3]
    assert len(set.union(*grouped)) == 9


def test_alpha_makes_clients_unlike() -> None:
    data = toy(train=900, classes=9)
    labels = data.train.y.numpy()

    def largest_share(alpha: float) -> float:
        shards = deal(data, {"name": "dirichlet", "alpha": alpha, "min_size": 1}, 5, seed=1)
        return float(np.mean([np.bincount(labels[rows]).max() / len(rows) for rows in shards]))

    assert largest_share(0.1) > 2 * largest_share(100)


def test_the_cap_is_a_random_part_of_the_share() -> None:
    data = toy()
    whole, capped = deal(data, "linear", 4), deal(data, "linear", 4, cap=8)
    assert [len(rows) for rows in capped] == [6, 8, 8, 8]
    assert all(set(part) <= set(rows) for part, rows in zip(capped, whole, strict=True))
    assert capped[3].tolist() != whole[3][:8].tolist()
    data = toy(train=300)
    for rows in deal(data, {"name": "pathological", "classes_per_client": 3}, 3, cap=20):
        assert len(data.train.y[rows].unique()) == 3


def test_labels_with_a_gap() -> None:
    data = toy()
    data = replace(data, train=data.train.take(np.flatnonzero(data.train.y.numpy() != 1)), natural={})
    with pytest.raises(InputError, match=r"no client has an example of class 'class 1' .* the training data has 0"):
        deal(data, "inner_dirichlet", 3)


def test_a_class_that_nobody_got() -> None:
    with pytest.raises(InputError, match=r"after pathological, no client has an example of class 'class 2'"):
        deal(toy(), {"name": "pathological", "classes_per_client": 1, "assignment": "deterministic"}, 2)


@pytest.mark.parametrize(
    ("spec", "clients", "message"),
    [
        ({"name": "natural", "column": "site"}, 5, r"clients: got 5; column 'site' names 4 .*Set clients to 4"),
        ({"name": "natural", "column": "ward"}, 4, r"partition\.column: got 'ward'.*: site, person"),
        ("natural", 4, r"partition\.column: got ''"),
        ({"name": "grouped_natural", "column": "site"}, 5, "names only 4 natural clients"),
        ({"name": "size", "sizes": [1, 2]}, 3, r"partition\.sizes: got 2 sizes; expected 3"),
        ({"name": "size", "sizes": [50, 20]}, 2, "size cannot deal 60 rows to 2 clients"),
        ({"name": "inner_dirichlet", "sizes": [1, 2]}, 3, r"partition\.sizes: got 2 sizes; expected 3"),
        ({"name": "dirichlet", "min_size": 30}, 4, "dirichlet cannot deal 60 rows to 4 clients"),
        ({"name": "shard", "shards": None}, 4, "shard cannot deal 60 rows"),
        ({"name": "pathological", "classes_per_client": 9}, 4, "pathological cannot deal"),
        ("exponential", 9, "exponential cannot deal"),
        ("log_normal", 4, "clients: got 4; .*multiple of 3 classes"),
        ("iid", 61, "clients: got 61; the training data has 60 examples"),
        ("iid", 0, "clients: got 0"),
        ({"name": "dirichlet", "alpha": 0}, 4, r"partition\.alpha: got 0"),
    ],
)
def test_what_cannot_be_dealt(spec: object, clients: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        deal(toy(), spec, clients)


@register("given")
class Given:
    """A user's own partition."""

    shards: tuple[tuple[int, ...], ...] = ()

    def assign(self, data: Dataset, clients: int, seed: int) -> list[Rows]:
        return [np.array(rows, dtype=np.int64) for rows in self.shards]


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (((0, 1, 2), (3, 1)), "given gives row 1 to client 0 and to client 1"),
        (((0, 1, 2, 1), (3,)), "given gives row 1 to client 0 and to client 0"),
        (((0, 1, 2), ()), "given leaves client 1 of 2 without examples"),
        (((0, 1, 2), (60,)), "given gives client 1 row 60; expected 0 to 59"),
        (((0, 1, 2),), "given made 1 clients; expected 2"),
        (((0, 1), (3,)), "no client has an example of class 'class 2'"),
    ],
)
def test_a_users_own_partition_is_checked(shards: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        partition(toy(), Given(shards=shards), 2, 0)


def test_the_cap_is_checked() -> None:
    with pytest.raises(InputError, match="examples_per_client: got 0"):
        deal(toy(), "iid", 2, cap=0)


def test_inputs_are_not_looked_at() -> None:
    data = toy()
    other = replace(data, train=Examples(data.train.ids, torch.zeros(60, 1), data.train.y))
    assert lists(deal(data, "dirichlet", 3)) == lists(deal(other, "dirichlet", 3))
