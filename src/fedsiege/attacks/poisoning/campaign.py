"""Who attacks in which round: the compromised clients, the rounds, and the attack that they make."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fedsiege.attacks.poisoning.base import Poisoner
from fedsiege.data.triggers.base import Backdoor
from fedsiege.errors import InputError
from fedsiege.records import Examples
from fedsiege.streams import stream


def _numbers(value: Any) -> Any:
    numbers = value if isinstance(value, list | tuple) else [value]
    if numbers and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in numbers):
        return tuple(numbers)
    raise ValueError("expected a client's number or a list of numbers")


class Compromised(BaseModel):
    """Which clients an adversary plays, and in which rounds they attack; in all others they are honest."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    clients: Annotated[tuple[int, ...] | None, BeforeValidator(lambda v: v if v is None else _numbers(v))] = None
    """Their numbers, in the order of their turns and of the parts of a trigger; null: client 0, or the share."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Instead of numbers: this share of all clients, at least one, drawn at random."""
    rounds: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None
    """The rounds of attack, by number: one for a single shot. null: as `first`, `last` and `every` say."""
    first: Annotated[int, Field(ge=1)] = 1
    """First round of attack."""
    last: Annotated[int, Field(ge=1)] | None = None
    """Last round that can be one of attack; null: the federation's last."""
    every: Annotated[int, Field(ge=1)] = 1
    """Rounds between rounds of attack."""
    invited: bool = True
    """Whether the attackers of a round of attack are sure to be invited to it; false: drawn like everybody else."""
    turns: Literal["together", "one_by_one"] = "together"
    """Whether all of them attack in each round of attack, or one after the other, a round each."""

    def numbers(self, clients: int, seed: int) -> tuple[int, ...]:
        """The compromised clients of K, in the order of the list; InputError for one that there is not."""
        if self.clients is not None and self.share is not None:
            raise InputError("compromised: got both clients and share; expected one of them")
        if self.share is not None:
            count = max(1, round(self.share * clients))
            return tuple(sorted(stream(seed, "compromised").choice(clients, size=count, replace=False).tolist()))
        given = (0,) if self.clients is None else self.clients
        if beyond := [number for number in given if number >= clients]:
            raise InputError(
                f"compromised.clients: got client {beyond[0]}; expected clients from 0 to {clients - 1}"
            )
        return tuple(dict.fromkeys(given))

    def attacks_in(self, rounds: int) -> tuple[int, ...]:
        """The rounds of attack of a federation of so many, sorted; InputError where there is none."""
        last = rounds if self.last is None else self.last
        found = self.rounds if self.rounds is not None else range(self.first, last + 1, self.every)
        inside = tuple(sorted({number for number in found if number <= rounds}))
        if not inside:
            raise InputError(f"compromised.{self._amiss(rounds)}")
        return inside

    def _amiss(self, rounds: int) -> str:
        """Why none of so many rounds is one of attack; `every` is never to blame, `first` being one of them."""
        if self.rounds is not None:
            return f"rounds: got {list(self.rounds)}; expected at least one of the federation's, 1 to {rounds}"
        if self.first > rounds:
            return f"first: got {self.first}; expected one of the federation's rounds, 1 to {rounds}"
        return f"last: got {self.last}; expected null, or no round before `first` ({self.first})"

    def sure(self, number: int, clients: int, rounds: int, seed: int) -> tuple[int, ...]:
        """Who is sure to be invited to a round, of K clients."""
        found = attacking(number, self.numbers(clients, seed), self.attacks_in(rounds), self.turns == "one_by_one")
        return found if self.invited else ()


def attacking(
    number: int, compromised: tuple[int, ...], rounds: tuple[int, ...], one_by_one: bool
) -> tuple[int, ...]:
    """Who is to attack in round `number`: all, or one after the other in their order, in the rounds of attack."""
    if number not in rounds:
        return ()
    return (compromised[rounds.index(number) % len(compromised)],) if one_by_one else compromised


@dataclass(frozen=True, slots=True)
class Campaign:
    """An attack as one run carries it out.

    Args:
        poisoner: what the attackers do, under this label.
        compromised: the clients that the adversary plays, in the order of their turns.
        rounds: the rounds of attack, sorted.
        backdoor: what they plant, where they plant something.
        invited: whether the attackers of a round of attack are sure to be invited.
        one_by_one: whether a round of attack has one attacker, the next round the next one.
        targets: the examples whose membership is asked about, where the attack makes that visible.

    """

    poisoner: Poisoner
    label: str
    compromised: tuple[int, ...]
    rounds: tuple[int, ...]
    backdoor: Backdoor | None = None
    invited: bool = True
    one_by_one: bool = False
    targets: Examples | None = None

    def planned(self, number: int) -> tuple[int, ...]:
        """Who is to attack in a round, in their order."""
        return attacking(number, self.compromised, self.rounds, self.one_by_one)

    def sure(self, number: int) -> tuple[int, ...]:
        """Who is sure to be invited to a round."""
        return self.planned(number) if self.invited else ()

    def attackers(self, number: int, invited: Sequence[int]) -> tuple[int, ...]:
        """Who attacks in a round, of those invited, sorted."""
        return tuple(sorted(set(self.planned(number)) & set(invited)))
