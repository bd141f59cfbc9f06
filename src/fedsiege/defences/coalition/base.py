"""What a coalition is: clients that defend together, and what its members know in common.

A coalition is a client-side defence. What it adds is a `Circle`, the same for all of its members and hidden from
the server, from which each member works out for itself what all of them do in a round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator
from torch import Tensor

from fedsiege.defences.client.base import Circle as Circle
from fedsiege.defences.client.base import ClientDefence, Ground, Posted, is_neutral, refuse_together
from fedsiege.errors import InputError
from fedsiege.records import Counters, Layout
from fedsiege.registry import label_of, name_of
from fedsiege.streams import entropy


def _members(value: Any) -> Any:
    if value in ("pair", "half", "all"):
        return value
    numbers = value if isinstance(value, list | tuple) else [value]
    if numbers and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in numbers):
        return tuple(numbers)
    raise ValueError("expected pair, half, all or a list of clients' numbers")


Members = Annotated[Literal["pair", "half", "all"] | tuple[int, ...], BeforeValidator(_members)]
"""The clients of a coalition: the first two, the first half, all, or a list of their numbers."""


class Coalition(ClientDefence):
    """A defence of several clients that act on one plan."""

    smallest: ClassVar[int] = 2
    """How many members it needs."""

    members: Members
    """Each coalition has this field."""

    @property
    def shares(self) -> bool:
        """Whether its members act on one plan, so that each can tell what all of them do."""
        return True

    def users(self, clients: int, where: str) -> frozenset[int]:
        """Its members; InputError as `members_of` has it."""
        return members_of(self, clients, where)

    def settle(
        self,
        circle: Circle,  # noqa: ARG002 - for those who need it
        number: int,  # noqa: ARG002
        present: Sequence[int],  # noqa: ARG002
        arrived: Mapping[int, float],  # noqa: ARG002
        scale: float | None,  # noqa: ARG002
    ) -> Counters:
        """What became of the plan of round `number`, in the end, as counters.

        Args:
            circle: what the members know.
            number: the round.
            present: the members that were announced when the round began, sorted.
            arrived: the weights of the answers that were aggregated, by client.
            scale: what their weighted mean was multiplied with; None where the rule is no weighted mean.

        """
        return {}

    def noise(
        self,
        circle: Circle,  # noqa: ARG002
        number: int,  # noqa: ARG002
        present: Sequence[int],  # noqa: ARG002
        client: int,  # noqa: ARG002
        layout: Layout,  # noqa: ARG002
    ) -> Tensor | None:
        """What a member adds to its update [d] in a round, as whoever knows the secret can tell; None: nothing."""
        return None

    def disturbed(self, layout: Layout) -> int:  # noqa: ARG002
        """How many of the last trained entries its noise falls on; the share is no secret."""
        return 0

    def cautions(self, ground: Ground) -> list[str]:  # noqa: ARG002
        """What the reader of this run's figures must know of the coalition, in sentences."""
        return []

    def remarks(self, counters: Counters) -> list[str]:  # noqa: ARG002
        """What the reader must know of how the run went, from the counters of all clients and rounds."""
        return []


def members_of(coalition: Coalition, clients: int, where: str) -> frozenset[int]:
    """The numbers of a coalition's members; InputError for one outside the federation, named twice, or too few.

    Args:
        coalition: its field `members` may be a word.
        clients: K, all clients of the federation.
        where: the config field, for the message.

    """
    named = coalition.members
    words = {"pair": range(min(2, clients)), "half": range(clients // 2), "all": range(clients)}
    numbers = list(words[named]) if isinstance(named, str) else list(named)
    beyond = [number for number in numbers if number >= clients]
    if beyond:
        raise InputError(f"{where}.members: got client {beyond[0]}; expected clients from 0 to {clients - 1}")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{where}.members: got {numbers}; a client is named twice")
    if len(numbers) < coalition.smallest:
        raise InputError(
            f"{where}.members: got {_listed(named, numbers)}; expected {coalition.smallest} members or more"
        )
    return frozenset(numbers)


def seated(
    coalitions: Sequence[Coalition], clients: int, places: Sequence[str], before: Sequence[Posted] = ()
) -> tuple[Posted, ...]:
    """The coalitions of a run, still without a circle; InputError for a client in two, or for what cannot combine.

    One at its neutral setting counts as none: it may share clients, and does not move the streams of the others.

    Args:
        coalitions: they act behind all other defences of their members.
        clients: K, all clients of the federation.
        places: the config field of each, for the message.
        before: the defences of single clients, in their order.

    """
    made: list[Posted] = []
    for where, coalition in zip(places, coalitions, strict=True):
        members, label = coalition.users(clients, where), label_of(coalition)
        acting = [] if is_neutral(coalition) else [one for one in made if not is_neutral(one.defence)]
        for other in acting:
            if shared := sorted(members & other.clients):
                raise InputError(f"{where}.members: client {shared[0]} is in {other.label} too; expected it in one")
        if any(label == other.label for other in made):
            raise InputError(f"{where}: {label} is listed twice; expected different coalitions or fields")
        nth = sum(name_of(one.defence) == name_of(coalition) and not is_neutral(one.defence) for one in made)
        one = Posted(coalition, label, members, nth)
        for place, other in enumerate(before):
            if other.clients & members and not (is_neutral(coalition) or is_neutral(other.defence)):
                refuse_together(other, one, f"defences.{place}.clients")
        made.append(one)
    return tuple(made)


def gathered(one: Posted, seed: int, weights: Sequence[float], classes: int, rounds: int) -> Posted:
    """A coalition with what its members know; anything else as it is.

    Args:
        one: a defence of the run.
        seed: the run's: the secret is drawn from it.
        weights: each client's weight in the aggregation [K].
        classes: N, the classes of the task.
        rounds: T, the rounds of the federation.

    """
    if not isinstance(one.defence, Coalition):
        return one
    secret = entropy(seed, "coalition", name_of(one.defence), one.nth)
    volumes = {member: float(weights[member]) for member in sorted(one.clients)}
    return replace(one, circle=Circle(secret, volumes, classes, rounds))


def _listed(named: Members, numbers: list[int]) -> str:
    there = f"{len(numbers)} member" + ("" if len(numbers) == 1 else "s")
    return f"{named!r}, which is {there}" if isinstance(named, str) else there
