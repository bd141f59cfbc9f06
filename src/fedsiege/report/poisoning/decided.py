"""What a run says of decisions on membership that poisoning made possible, in sentences and as rows."""

from dataclasses import dataclass

from fedsiege.report.measured import Measured
from fedsiege.report.poisoning.judged import UNKNOWN
from fedsiege.report.poisoning.schema import Decisions
from fedsiege.report.words import SPACE, count, percent, span

HINDSIGHT = "chosen with the truth"
"""What is said beside the best round, wherever it stands."""
RULE = "each called a member where the model gets it right"


@dataclass(frozen=True, slots=True)
class Decided:
    """A row of the table of decisions: which of them, and how often they were right."""

    name: str
    figure: Measured


def shows(decisions: Decisions) -> bool:
    """Whether decisions over the last rounds were demonstrably right more often than the better constant answer."""
    low = decisions.last.low
    return low is not None and low > decisions.chance


def over(decisions: Decisions) -> str:
    """The rounds of the headline: the last 20 recorded rounds, the last recorded round."""
    rounds = decisions.last.rounds
    return f"the last {count(rounds, 'recorded round')}" if rounds != 1 else "the last recorded round"


def asked(decisions: Decisions) -> str:
    """Whom decisions are about: 153 members and 153 non-members."""
    return f"{count(decisions.members, 'member')} and {count(decisions.nonmembers, 'non-member')}"


def statement(decisions: Decisions) -> str:
    """How often they were right over the last rounds, as a clause."""
    examples = count(decisions.members + decisions.nonmembers, "example")
    return (
        f"calling an example a member where the model gets it right was right for {_figure(decisions.last)} of "
        f"{examples} over {over(decisions)}; "
        f"guessing is right for {percent(decisions.chance)}"
    )


def hindsight(decisions: Decisions) -> str:
    """How often they were right in the best round, in a sentence."""
    best = decisions.best
    return (
        f"In the best round ({best.round}), which takes the truth to find, the decision was right for "
        f"{_figure(best)}."
    )


def rows(decisions: Decisions | None) -> list[Decided]:
    """The rows of the table of decisions."""
    if decisions is None:
        return []
    guessing = UNKNOWN.model_copy(update={"value": decisions.chance})
    return [
        Decided(f"Over {over(decisions)}", decisions.last),
        *(
            Decided(f"Of {whose} alone", UNKNOWN.model_copy(update={"value": share}))
            for whose, share in (
                ("members", decisions.last.of_members),
                ("non-members", decisions.last.of_nonmembers),
            )
            if share is not None
        ),
        Decided(f"In the best round ({decisions.best.round}), {HINDSIGHT}", decisions.best),
        Decided("Guessing", guessing),
    ]


def final(decisions: Decisions) -> tuple[int, int] | None:
    """The first and the last of the rounds of the headline; None where rounds are not listed."""
    rounds = decisions.rounds[-decisions.last.rounds :]
    return (rounds[0], rounds[-1]) if rounds else None


def _figure(figure: Measured) -> str:
    return f"{percent(figure.value)} ({span(figure)}{SPACE}%)" if span(figure) else percent(figure.value)
