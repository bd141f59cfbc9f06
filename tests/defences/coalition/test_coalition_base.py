"""Who is in a coalition, and what is refused before anything runs."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from fedsiege.defences.coalition.base import Circle, Coalition, Members, gathered, members_of, seated
from fedsiege.errors import InputError


@dataclass(frozen=True)
class Together(Coalition):
    """A coalition that does nothing."""

    title = "Together"
    neutral = None
    proof = "updates"
    members: Members = "pair"


@pytest.mark.parametrize(
    ("named", "expected"),
    [("pair", {0, 1}), ("half", {0, 1, 2}), ("all", set(range(7))), ((5, 2), {2, 5})],
)
def test_members_by_word_and_by_number(named: Members, expected: set[int]) -> None:
    assert members_of(Together(members=named), 7, "coalition") == expected


@pytest.mark.parametrize(
    ("members", "clients", "message"),
    [
        ((3,), 7, r"^coalition\.members: got 1 member; expected 2 members or more$"),
        ((), 7, r"^coalition\.members: got 0 members; expected 2 members or more$"),
        ("half", 3, r"^coalition\.members: got 'half', which is 1 member; expected 2 members or more$"),
        ("pair", 1, r"^coalition\.members: got 'pair', which is 1 member; expected 2 members or more$"),
        ((0, 7), 7, r"^coalition\.members: got client 7; expected clients from 0 to 6$"),
        ((1, 2, 1), 7, r"^coalition\.members: got \[1, 2, 1\]; a client is named twice$"),
    ],
)
def test_a_coalition_that_cannot_be_is_refused(members: Members, clients: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        members_of(Together(members=members), clients, "coalition")


def test_a_client_is_in_one_coalition_at_most() -> None:
    places = ["coalition.0", "coalition.1"]
    with pytest.raises(
        InputError, match=r"^coalition\.1\.members: client 1 is in Together too; expected it in one"
    ):
        seated([Together(), Together(members=(1, 4))], 7, places)
    first, second = seated([Together(), Together(members=(2, 4))], 7, places)
    assert (set(first.clients), set(second.clients)) == ({0, 1}, {2, 4})
    assert (first.nth, second.nth) == (0, 1)


@dataclass(frozen=True)
class Idle(Coalition):
    """A coalition that can be set to do nothing."""

    title = "Idle"
    neutral: ClassVar[dict[str, int] | None] = {"strength": 0}
    proof = "updates"
    members: Members = "pair"
    strength: int = 1


def test_a_neutral_coalition_counts_as_none() -> None:
    places = ["coalition.0", "coalition.1", "coalition.2"]
    off, on, other = Idle(strength=0), Idle(), Idle(members=(2, 3))
    for listed, nths in (
        ([off, on], [0, 0]),
        ([on, off], [0, 1]),
        ([off, on, other], [0, 0, 1]),
        ([on, off, other], [0, 1, 1]),
        ([on, Idle(members=(1, 5), strength=0), other], [0, 1, 1]),
    ):
        made = seated(listed, 7, places[: len(listed)])
        assert [one.nth for one in made] == nths
    # What acts draws the same secret whatever neutral ones stand before it.
    alone, behind = seated([on], 7, places[:1])[0], seated([off, on], 7, places[:2])[1]
    weights = [1.0] * 7
    assert gathered(alone, 3, weights, 10, 5).circle == gathered(behind, 3, weights, 10, 5).circle
    with pytest.raises(InputError, match=r"^coalition\.1: Idle\(strength=0\) is listed twice; expected"):
        seated([off, Idle(strength=0)], 7, places[:2])
    with pytest.raises(InputError, match=r"^coalition\.2\.members: client 1 is in Idle too; expected it in one"):
        seated([on, off, Idle(members=(1, 2))], 7, places)


def test_a_coalition_has_nothing_to_say_unless_it_does() -> None:
    one = Together()
    circle = Circle(1, {0: 1.0, 1: 1.0}, 3, 3)
    assert one.remarks({"rounds": 3.0}) == []
    assert one.settle(circle, 1, [0, 1], {0: 1.0}, 1.0) == {}
    assert one.users(7, "coalition") == {0, 1}


def test_present_are_the_members_among_the_invited() -> None:
    (one,) = seated([Together(members=(5, 1, 3))], 7, ["coalition"])
    assert one.present([0, 3, 5, 6]) == (3, 5)
    assert one.present([]) == ()
