"""The rows of a run's tables about poisoning, the same in every format."""

from dataclasses import dataclass

from fedsiege.report.measured import Measured
from fedsiege.report.poisoning.judged import UNKNOWN
from fedsiege.report.poisoning.schema import Backdoor, Course, InUse, Poisoning, Sent
from fedsiege.report.words import NONE, digits, fixed, span


@dataclass(frozen=True, slots=True)
class Line:
    """A measure over the run: figures of three moments, and one over all rounds with `what` it is.

    `defended` is the figure at the end where a defence of the server's says how to predict.
    """

    name: str
    before: Measured
    attacked: Measured
    last: Measured
    defended: Measured
    over: Measured
    what: str

    def at(self, moment: str) -> Measured:
        """The figure of a column."""
        found: Measured = getattr(self, moment)
        return found

    def written(self, moment: str) -> tuple[str, str]:
        """A column's figure and its interval, in per cent; one over all rounds says what it is."""
        figure = self.at(moment)
        what = f"{self.what} " if moment == "over" and figure.value is not None else ""
        return what + digits(figure.value), span(figure)


@dataclass(frozen=True, slots=True)
class Side:
    """What became of the answers of attackers or of honest clients, written out."""

    name: str
    answers: str
    unusable: str
    rejected: Measured
    kept: str
    scale: str


def lines(poisoning: Poisoning) -> list[Line]:
    """The rows of the table of accuracies."""
    main, success, found = poisoning.main, poisoning.success, list[Line]()
    used = poisoning.defended_use or InUse(label="")
    if main.before or main.attacked or main.last:
        shares = (*_moments(main), used.accuracy or UNKNOWN)
        found.append(Line("Main accuracy", *shares, main.lowest or UNKNOWN, "lowest"))
    if success:
        shares = (*_moments(success), used.success or UNKNOWN)
        mean = Measured(value=success.mean, low=None, high=None)
        found.append(Line("Backdoor accuracy", *shares, mean, "mean"))
    if poisoning.mistaken:
        shares = (*_moments(poisoning.mistaken), used.mistaken or UNKNOWN)
        found.append(Line(mistaken_name(poisoning.backdoor), *shares, UNKNOWN, ""))
    return found


def moments(poisoning: Poisoning) -> dict[str, str]:
    """The columns of that table in which there is a figure, by the names of a line's fields -> their heads."""
    rounds = poisoning.adversary.attack_rounds if poisoning.adversary else []
    after = "After the attack" if len(rounds) < 2 else "After the first round of attack"
    before = "Before" if poisoning.adversary else "At the start"
    heads = {"before": before, "attacked": after, "last": "At the end"}
    if poisoning.defended_use:
        heads["defended"] = f"At the end, predicted as {poisoning.defended_use.name} asks"
    heads["over"] = "Over the rounds"
    rows = lines(poisoning)
    return {name: head for name, head in heads.items() if any(one.at(name).value is not None for one in rows)}


def mistaken_name(backdoor: Backdoor | None) -> str:
    """What is called mistaken: clean images of other classes that are taken for the target."""
    unit, target = (backdoor.unit, backdoor.wanted) if backdoor else ("example", "the target")
    return f"Clean {unit}s taken for {target}"


def sides(poisoning: Poisoning) -> list[Side]:
    """The rows of the table of what became of answers; a side that sent none is left out."""
    found = poisoning.detection
    given = {"Attackers": found.attackers, "Honest clients": found.honest}
    return [
        Side(
            name,
            f"{one.answers:,}",
            f"{one.unusable:,}",
            one.rejected or UNKNOWN,
            fixed(one.kept, 3),
            fixed(one.scale, 3),
        )
        for name, one in given.items()
        if one.answers
    ]


def some_unusable(poisoning: Poisoning) -> bool:
    """Whether there were answers that the server could not use, so that a column says how many."""
    return bool(poisoning.detection.attackers.unusable or poisoning.detection.honest.unusable)


def sent(one: Sent) -> list[str]:
    """A submitted update's row: round, attackers, norm, ratio, rank, cosine, its model's two accuracies."""
    rank = NONE if one.norm_rank is None or one.of is None else f"{one.norm_rank} of {one.of}"
    return [
        str(one.round),
        str(one.attackers),
        NONE if one.norm is None else f"{one.norm:.4g}",
        NONE if one.norm_ratio is None else f"{one.norm_ratio:.3g}",
        rank,
        fixed(one.cosine),
        digits(one.accuracy),
        digits(one.success),
    ]


SENT = (
    *("Round", "Attackers", "Norm", "Norm / honest median", "Rank of norm"),
    *("Cosine to honest mean", "Its main accuracy", "Its backdoor accuracy"),
)
"""The heads of these columns."""


def _moments(course: Course) -> tuple[Measured, Measured, Measured]:
    return course.before or UNKNOWN, course.attacked or UNKNOWN, course.last or UNKNOWN
