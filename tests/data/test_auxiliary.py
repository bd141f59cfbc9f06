"""What an adversary owns: nobody's examples that nobody is asked about, dealt as the real ones were."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import toy

from fedsiege.data.auxiliary import Auxiliary, auxiliary_of, check_enough, seed_of
from fedsiege.data.candidates import CandidateSpec, draw, spare
from fedsiege.data.dataset import Partition
from fedsiege.errors import InputError
from fedsiege.registry import build

DATA = toy(train=300, heldout=200)
SHARDS = [np.arange(0, 40), np.arange(40, 80)]
CANDIDATES = draw(DATA, SHARDS, [0, 1], CandidateSpec(ifl=10, ofl=30), 0, 25)


def scheme(name: Any = "iid") -> Partition:
    made: Partition = build("partition", name, "partition")
    return made


def own(**changes: Any) -> Auxiliary:
    pool = auxiliary_of(DATA, SHARDS, CANDIDATES.examples.ids, natural=False)
    fields: dict[str, Any] = {
        "pool": pool,
        "clients": 2,
        "dealt": 300,
        "heldout": 30,
        "validation": 0,
        "examples_per_client": 40,
    }
    return Auxiliary(**(fields | changes))


def test_the_adversary_owns_what_is_nobodys_and_not_asked_about() -> None:
    owned = {str(DATA.train.ids[row]) for rows in SHARDS for row in rows}
    everything = {str(one) for part in (DATA.train, DATA.heldout) for one in part.ids}
    expected = everything - owned - set(CANDIDATES.examples.ids.tolist())
    pool = own().pool
    assert set(pool.train.ids.tolist()) == expected
    assert len(pool.train) == len(expected) == 300 - 80 + 200 - 30 - 25
    assert len(pool.heldout) == 0
    known = {
        str(one): (x.tolist(), int(y))
        for part in (DATA.train, DATA.heldout)
        for one, x, y in zip(part.ids, part.x, part.y, strict=True)
    }
    for one, x, y in zip(pool.train.ids, pool.train.x, pool.train.y, strict=True):
        assert known[str(one)] == (x.tolist(), int(y))


def test_where_the_data_names_the_clients_held_out_examples_are_no_use() -> None:
    pool = auxiliary_of(DATA, SHARDS, CANDIDATES.examples.ids, natural=True)
    site = dict(zip(DATA.train.ids.tolist(), DATA.natural["site"].tolist(), strict=True))
    assert set(pool.train.ids.tolist()) <= set(DATA.train.ids[80:].tolist())
    assert [site[one] for one in pool.train.ids.tolist()] == pool.natural["site"].tolist()
    made = Auxiliary(pool, clients=4, dealt=100, heldout=10, validation=0)
    dealt = made.deal(scheme({"name": "natural", "column": "site"}), 3)
    for client, rows in enumerate(dealt.shards):
        assert {site[one] for one in dealt.data.train.ids[rows].tolist()} == {str(client)}


def test_a_shadow_federation_has_the_real_sizes_where_the_pool_allows() -> None:
    dealt = own().deal(scheme(), 7)
    assert [len(rows) for rows in dealt.shards] == [40, 40]
    assert len(dealt.data.heldout) == 30
    assert dealt.validation is None
    assert not set(dealt.data.heldout.ids.tolist()) & set(dealt.data.train.ids.tolist())


def test_else_all_its_clients_have_evenly_less_and_a_fifth_at_most_is_held_out() -> None:
    dealt = own(examples_per_client=None, heldout=200, validation=500).deal(scheme(), 7)
    pool = len(own().pool.train)
    assert dealt.validation is not None
    assert len(dealt.validation) == len(dealt.data.heldout) == pool // 5
    sizes = [len(rows) for rows in dealt.shards]
    assert sum(sizes) == len(dealt.data.train) == pool - 2 * (pool // 5)
    assert max(sizes) - min(sizes) <= 1


def test_each_seed_has_a_draw_of_its_own() -> None:
    made = own(dealt=100, examples_per_client=None)
    draws = [made.deal(scheme(), seed_of(0, number)) for number in (0, 1, 0)]
    ids = [set(one.data.train.ids.tolist()) for one in draws]
    assert ids[0] == ids[2]
    assert len(ids[0]) == 100
    share = len(ids[0] & ids[1]) / 100
    assert 0.1 < share < 0.45, "two random draws of 100 of 365 share 27 %"
    assert seed_of(0, 0) != seed_of(1, 0)
    labels = draws[0].data.train.y
    assert sorted(labels.unique().tolist()) == [0, 1, 2]


@settings(max_examples=40, deadline=None)
@given(
    clients=st.integers(1, 6),
    dealt=st.integers(30, 600),
    heldout=st.integers(0, 400),
    validation=st.integers(0, 400),
    each=st.one_of(st.none(), st.integers(15, 60)),
    seed=st.integers(0, 2**40),
)
def test_nothing_is_in_two_places(
    clients: int, dealt: int, heldout: int, validation: int, each: int | None, seed: int
) -> None:
    made = own(clients=clients, dealt=dealt, heldout=heldout, validation=validation, examples_per_client=each).deal(
        scheme(), seed
    )
    reserved = [] if made.validation is None else made.validation.ids.tolist()
    taken = [*made.data.heldout.ids.tolist(), *reserved, *made.data.train.ids.tolist()]
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(own().pool.train.ids.tolist())
    assert len(made.data.heldout) >= 1
    assert len(made.data.train) == min(dealt, 365 - len(reserved) - len(made.data.heldout))
    assert max(len(rows) for rows in made.shards) <= (each or dealt)


@pytest.mark.parametrize(
    ("heldout", "fields", "enough"),
    [(1, {}, False), (4, {}, False), (5, {}, True), (5, {"clients": 5}, False), (6, {"validation": 3}, False)],
)
def test_too_little_data_is_refused_with_numbers(heldout: int, fields: dict[str, Any], enough: bool) -> None:
    data = toy(train=30, heldout=heldout + 5)
    shards = [np.arange(0, 15), np.arange(15, 30)]
    asked = data.heldout.ids[:5]
    made = own(pool=auxiliary_of(data, shards, asked, natural=False), **fields)
    assert len(spare(data, shards, asked)[1]) == heldout
    if enough:
        check_enough(made, 8, "lira")
        return
    with pytest.raises(InputError, match=rf"attack lira wants 8 .* has {heldout} examples of its own"):
        check_enough(made, 8, "lira")
