"""Main and backdoor accuracy over the rounds, as every chart draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedsiege.metrics.backdoor import wilson
from fedsiege.report.poisoning.rows import mistaken_name
from fedsiege.report.poisoning.schema import Poisoning
from fedsiege.report.schema import Moment

MAIN, BACKDOOR, MISTAKEN = 0, 7, 1
"""The numbers of their styles: apart in colour and dash."""
DECISIONS = 4
"""The number of the style of decisions on membership, which have a chart of their own."""
LINED = 12
"""With at most so many rounds of attack a line marks each; with more, marks below the axis do."""


@dataclass(frozen=True, slots=True)
class Series:
    """A share of held-out examples at the rounds [r] at which it was measured.

    `low` and `high` are Wilson's 95 % limits; there are none where it is not known how many examples there were.
    """

    key: str
    name: str
    style: int
    rounds: tuple[int, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def series(history: Sequence[Moment], poisoning: Poisoning | None) -> list[Series]:
    """The lines of a run: main accuracy, and where a backdoor is measured its accuracy and what is mistaken."""
    main = poisoning.main.last.n if poisoning and poisoning.main.last else None
    backdoor = poisoning.backdoor if poisoning else None
    mistaken = poisoning.mistaken.last.n if poisoning and poisoning.mistaken and poisoning.mistaken.last else None
    found = [
        _series("main", "Main accuracy", MAIN, [(one.round, one.accuracy) for one in history], main),
        _series(
            "backdoor",
            "Backdoor accuracy",
            BACKDOOR,
            [(one.round, one.backdoor) for one in history],
            backdoor.test if backdoor else None,
        ),
        _series(
            "mistaken",
            mistaken_name(backdoor),
            MISTAKEN,
            [(one.round, one.mistaken) for one in history],
            mistaken,
        ),
    ]
    return [one for one in found if one.rounds]


def attacked_rounds(history: Sequence[Moment], poisoning: Poisoning | None) -> dict[int, int]:
    """The rounds in which somebody attacked -> by how many clients; as far as the files say it."""
    found = {one.round: one.attackers for one in history if one.attackers}
    found |= {one.round: one.attackers for one in poisoning.attacks if one.attackers} if poisoning else {}
    return dict(sorted(found.items()))


def _series(key: str, name: str, style: int, points: Sequence[tuple[int, float | None]], n: int | None) -> Series:
    known = [(number, value) for number, value in points if value is not None]
    spans = [wilson(round(value * n), n) for _, value in known] if n else []
    return Series(
        key,
        name,
        style,
        rounds=tuple(number for number, _ in known),
        values=tuple(value for _, value in known),
        low=tuple(one.low for one in spans),
        high=tuple(one.high for one in spans),
    )
