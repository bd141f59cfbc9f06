from collections import Counter
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import toy
from pydantic import ValidationError

from fedsiege.data.candidates import Audit, Candidates, CandidateSpec, draw, resolve_targets
from fedsiege.data.dataset import Dataset
from fedsiege.data.partitioning import Rows
from fedsiege.errors import InputError

DATA = toy(train=120, heldout=50)
SHARDS = [np.arange(0, 30), np.arange(30, 60), np.arange(60, 90), np.arange(90, 120)]
LARGE = toy(train=2000, heldout=800)
HALVES = [np.arange(0, 1000), np.arange(1000, 2000)]


def make(
    targets: list[int], shards: list[Rows] = SHARDS, data: Dataset = DATA, seed: int = 0, **spec: Any
) -> Candidates:
    return draw(data, shards, targets, CandidateSpec(**spec), seed)


def owners(data: Dataset, shards: list[Rows]) -> dict[str, int]:
    """Client of every training id; -1 for held-out ones."""
    found = {str(data.train.ids[row]): client for client, rows in enumerate(shards) for row in rows}
    return found | {str(name): -1 for name in data.heldout.ids}


def of(audit: Audit, group: str) -> list[str]:
    return [str(name) for name in audit.ids[audit.groups == group]]


def test_groups_are_what_they_are_called() -> None:
    drawn = make([2], members=10, ifl=9, ofl=7)
    (audit,) = drawn.audits
    owner = owners(DATA, SHARDS)
    assert (audit.target, audit.draw) == (2, 0)
    assert Counter(audit.groups.tolist()) == {"member": 10, "ifl": 9, "ofl": 7}
    assert {owner[name] for name in of(audit, "member")} == {2}
    assert Counter(owner[name] for name in of(audit, "ifl")) == {0: 3, 1: 3, 3: 3}
    assert {owner[name] for name in of(audit, "ofl")} == {-1}


def test_all_members_by_default() -> None:
    (audit,) = make([1], ifl=1, ofl=1).audits
    assert sorted(of(audit, "member")) == sorted(DATA.train.ids[SHARDS[1]].tolist())


def test_examples_are_the_union_in_order_of_id() -> None:
    drawn = make([0, 3], members=5, ifl=6, ofl=4)
    union = sorted(set().union(*(audit.ids.tolist() for audit in drawn.audits)))
    assert drawn.examples.ids.tolist() == union
    for audit in drawn.audits:
        assert audit.ids.tolist() == sorted(set(audit.ids.tolist()))
    known = {
        str(name): (x, y)
        for part in (DATA.train, DATA.heldout)
        for name, x, y in zip(part.ids, part.x, part.y, strict=True)
    }
    for name, x, y in zip(drawn.examples.ids, drawn.examples.x, drawn.examples.y, strict=True):
        assert x.tolist() == known[str(name)][0].tolist()
        assert y == known[str(name)][1]


def test_targets_share_their_nonmembers() -> None:
    first, second = make([0, 1], members=5, ifl=6, ofl=4).audits
    assert of(first, "ofl") == of(second, "ofl")
    assert set(of(first, "ifl")) & set(of(second, "member"))  # what is asked of one is a member of another
    assert len(make([0, 1, 2, 3], members=5, ifl=15, ofl=4).examples) == 4 * 5 + 4


def test_drawn_once_by_name() -> None:
    first, second = make([0], ifl=9, ofl=9), make([0], ifl=9, ofl=9)
    assert first.examples.ids.tolist() == second.examples.ids.tolist()
    alone, together = make([1], members=5, ifl=9, ofl=9).audits[0], make([0, 1], members=5, ifl=9, ofl=9).audits[1]
    assert alone.ids.tolist() == together.ids.tolist()
    assert make([0], seed=1, ifl=9, ofl=9).examples.ids.tolist() != first.examples.ids.tolist()
    assert make([0], ifl=9, ofl=9, compat="fedmia").examples.ids.tolist() == first.examples.ids.tolist()


def test_members_are_a_random_part_of_the_client() -> None:
    for target in (0, 1):
        known = [of(make([target], members=10, ifl=1, ofl=1, seed=seed).audits[0], "member") for seed in (0, 1)]
        first = sorted(DATA.train.ids[SHARDS[target][:10]].tolist())
        assert sorted(known[0]) != sorted(known[1])
        assert first not in map(sorted, known)
        assert sorted(DATA.train.ids[SHARDS[target][-10:]].tolist()) not in map(sorted, known)


def test_fewer_are_a_part_of_more() -> None:
    few, many = make([0], members=5, ifl=6, ofl=4).audits[0], make([0], members=9, ifl=12, ofl=8).audits[0]
    assert set(few.ids.tolist()) < set(many.ids.tolist())


def test_a_small_client_is_passed_over() -> None:
    shards = [np.arange(0, 30), np.arange(30, 32), np.arange(32, 90)]
    (audit,) = make([0], shards, ifl=12, ofl=1).audits
    owner = owners(DATA, shards)
    assert Counter(owner[name] for name in of(audit, "ifl")) == {1: 2, 2: 10}


@pytest.mark.parametrize(
    ("targets", "spec", "message"),
    [
        ([4], {}, "targets: got 4; expected all or client numbers from 0 to 3"),
        ([0], {"members": 31, "ifl": 1, "ofl": 1}, r"candidates\.members: got 31; client 0 has 30 examples"),
        ([0], {"ifl": 91, "ofl": 1}, r"candidates\.ifl: got 91; clients other than 0 have 90 examples"),
        ([0], {"ifl": 9, "ofl": 51}, r"candidates\.ofl: got 51; there are 50 held-out"),
        ([0], {"ifl": 0, "ofl": 0}, "candidates: ifl and ofl are both 0"),
        ([0], {"ifl": 20, "ofl": 20, "null": True}, "needs 500 examples a side; got 20 .* there are 90 and 50"),
        ([0], {"ifl": 1000, "ofl": 20, "null": True}, r"candidates\.ifl: got 1000"),
    ],
)
def test_more_than_there_is(targets: list[int], spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(targets, **spec)


def test_a_target_without_examples() -> None:
    with pytest.raises(InputError, match="client 1 has no examples, so it has no candidates"):
        make([1], [SHARDS[0], np.empty(0, dtype=np.int64)], ifl=1, ofl=1)


def test_one_client_has_no_others() -> None:
    with pytest.raises(InputError, match=r"candidates\.ifl: got 1; clients other than 0 have 0 examples"):
        make([0], [SHARDS[0]], ifl=1, ofl=1)
    assert len(make([0], [SHARDS[0]], ifl=0, ofl=5).examples) == 35


@pytest.mark.parametrize("field", ["members", "ifl", "ofl"])
def test_numbers_are_not_negative(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        CandidateSpec(**cast(Any, {field: -1}))


def test_a_null_test_halves_one_pool() -> None:
    drawn = make([0, 1], HALVES, LARGE, ifl=800, ofl=200, null=True)
    assert [(audit.target, audit.draw) for audit in drawn.audits] == [(t, d) for t in (0, 1) for d in range(10)]
    owner = owners(LARGE, HALVES)
    pools = set()
    for audit in drawn.audits:
        counts = Counter(audit.groups.tolist())
        assert counts == {"pseudo_ifl": 400, "pseudo_ofl": 100, "ifl": 400, "ofl": 100}
        assert {owner[name] for name in (*of(audit, "ifl"), *of(audit, "pseudo_ifl"))} == {1 - audit.target}
        assert {owner[name] for name in (*of(audit, "ofl"), *of(audit, "pseudo_ofl"))} == {-1}
        assert len(np.unique(audit.ids)) == 1000
        pools.add((audit.target, *audit.ids.tolist()))
    assert len(pools) == 2  # one pool a target, halved again and again: little evidence is needed
    assert len({tuple(of(audit, "pseudo_ofl")) for audit in drawn.audits}) == 20


@pytest.mark.parametrize(("targets", "each"), [([0], 20), ([0, 1], 10), ([0, 1, 2], 7)])
def test_a_null_test_has_twenty_nulls_or_more(targets: list[int], each: int) -> None:
    thirds = [np.arange(0, 700), np.arange(700, 1400), np.arange(1400, 2000)]
    drawn = make(targets, thirds, LARGE, ifl=500, ofl=500, null=True)
    assert Counter(audit.target for audit in drawn.audits) == dict.fromkeys(targets, each)


def test_a_null_halving_favours_nobody() -> None:
    """Over the draws of a target, every id plays pseudo-member about half of the time."""
    audits = make([0], HALVES, LARGE, ifl=600, ofl=600, null=True).audits
    played = np.mean([np.char.startswith(audit.groups, "pseudo") for audit in audits], axis=0)
    assert played.mean() == 0.5
    assert 0.08 < played.std() < 0.15  # 0.5 / sqrt(20) = 0.11
    assert played.min() > 0
    assert played.max() < 1


@pytest.mark.parametrize(("targets", "expected"), [("all", [0, 1, 2, 3]), (2, [2]), ([3, 0], [3, 0]), ([1], [1])])
def test_targets(targets: Any, expected: list[int]) -> None:
    assert resolve_targets(targets, 4) == expected


@pytest.mark.parametrize("targets", ["some", -1, 4, [0, 9], [], [1, 1], True, [0.5], ["0"]])
def test_targets_that_are_no_clients(targets: Any) -> None:
    with pytest.raises(InputError, match="targets: got"):
        resolve_targets(targets, 4)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=2, max_size=6),
    members=st.one_of(st.none(), st.integers(1, 20)),
    ifl=st.integers(0, 40),
    ofl=st.integers(0, 60),
    seed=st.integers(0, 2**40),
)
def test_any_drawing_is_right_or_refused(
    sizes: list[int], members: int | None, ifl: int, ofl: int, seed: int
) -> None:
    ends = np.cumsum(sizes)
    shards = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    target = len(sizes) - 1
    possible = (members or 1) <= sizes[target] and ifl <= ends[-1] - sizes[target] and ofl <= 50 and ifl + ofl > 0
    spec = CandidateSpec(members=members, ifl=ifl, ofl=ofl)
    if not possible:
        with pytest.raises(InputError):
            draw(DATA, shards, [target], spec, seed)
        return
    (audit,) = draw(DATA, shards, [target], spec, seed).audits
    owner = owners(DATA, shards)
    assert len(np.unique(audit.ids)) == len(audit.ids) == (members or sizes[target]) + ifl + ofl
    taken = Counter(owner[name] for name in of(audit, "ifl"))
    short = [client for client in range(target) if taken[client] < max(taken.values(), default=0) - 1]
    assert all(taken[client] == sizes[client] for client in short)  # even, but for those who had no more


def test_ids_that_are_not_unique_are_refused() -> None:
    data = replace(DATA, heldout=DATA.train)
    with pytest.raises(InputError, match="duplicate id"):
        draw(data, SHARDS, [0], CandidateSpec(ifl=1, ofl=50), 0)


def test_a_population_is_nobodys_and_nobody_is_asked_about_it() -> None:
    few = [rows[:10] for rows in SHARDS]
    drawn = draw(DATA, few, [0, 1], CandidateSpec(ifl=5, ofl=20), 3, 60)
    asked = set().union(*(audit.ids.tolist() for audit in drawn.audits))
    owner = owners(DATA, SHARDS)
    owned = {str(DATA.train.ids[row]) for rows in few for row in rows}
    population = drawn.population.tolist()
    assert len(set(population)) == 60
    assert not set(population) & (asked | owned)
    assert {owner[name] >= 0 for name in population} == {True, False}, "unowned training rows and held-out ones"
    assert drawn.examples.ids.tolist() == sorted([*asked, *population])
    assert drawn.asked.ids.tolist() == sorted(asked)
    assert population != sorted(population)


def test_a_population_changes_no_candidate() -> None:
    few = [rows[:10] for rows in SHARDS]
    without, with_it = (draw(DATA, few, [0], CandidateSpec(ifl=5, ofl=20), 3, count) for count in (0, 30))
    assert without.audits[0].ids.tolist() == with_it.audits[0].ids.tolist()
    assert without.population.tolist() == []
    assert without.examples.ids.tolist() == with_it.asked.ids.tolist()
    more = draw(DATA, few, [0], CandidateSpec(ifl=5, ofl=20), 3, 40)
    assert more.population[:30].tolist() == with_it.population.tolist(), "who wants fewer has the first of them"


def test_a_population_that_is_not_there_is_refused_with_numbers() -> None:
    told = r"population of 31 .* there are 30 \(0 training examples that no client owns, 30 held out\)"
    with pytest.raises(InputError, match=told):
        draw(DATA, SHARDS, [0], CandidateSpec(ifl=5, ofl=20), 0, 31)
    assert len(draw(DATA, SHARDS, [0], CandidateSpec(ifl=5, ofl=20), 0, 30).population) == 30


@pytest.mark.parametrize("null", [False, True])
def test_an_audit_is_halved_group_by_group_and_at_random(null: bool) -> None:
    audits = make([0], HALVES, LARGE, members=None if null else 31, ifl=501, ofl=501, null=null).audits
    first, second = audits[0].halves(5)
    assert sorted([*first.ids.tolist(), *second.ids.tolist()]) == audits[0].ids.tolist()
    for group, count in Counter(audits[0].groups.tolist()).items():
        sizes = [len(of(half, group)) for half in (first, second)]
        assert sizes == [count // 2, count - count // 2]
    for half in (first, second):
        assert half.ids.tolist() == sorted(half.ids.tolist())
        assert (half.target, half.draw) == (0, 0)
        assert half.members.tolist() == [str(group)[0] in "mp" for group in half.groups]
    assert audits[0].halves(6)[0].ids.tolist() != first.ids.tolist()
    again = audits[0].halves(5)[0]
    assert again.ids.tolist() == first.ids.tolist()
    for other in (replace(audits[0], draw=1), replace(audits[0], target=1)):
        assert other.halves(5)[0].ids.tolist() != first.ids.tolist(), "each draw of each target has its own"
