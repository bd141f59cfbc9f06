"""poisoning.csv and rounds.csv of a run, and its table for a paper."""

from collections.abc import Iterator, Sequence

import pandas as pd

from fedsiege.report.booktabs import booktabs, escape, line, small
from fedsiege.report.finished import Finished
from fedsiege.report.measured import Measured
from fedsiege.report.poisoning import decided
from fedsiege.report.poisoning.judged import UNKNOWN
from fedsiege.report.poisoning.rows import Line, lines, moments
from fedsiege.report.poisoning.schema import Answers, Course, Decisions, Poisoning, Sent
from fedsiege.report.schema import Moment
from fedsiege.report.words import count, digits, span

FIGURES = ("measure", "of", "value", "low", "high", "n")
ROUNDS = (
    *("round", "accuracy", "loss", "backdoor", "mistaken", "attackers", "norm", "norm_ratio", "norm_rank", "of"),
    *("cosine", "submitted_accuracy", "submitted_backdoor", "decision"),
)
MOMENTS = ("before", "attacked", "last")


def frame(poisoning: Poisoning) -> pd.DataFrame:
    """One row a figure: which measure, of which moment or whom, its value, its interval and on how many it rests.

    Shares are shares, not per cent. `persistence` counts rounds; that of `run_ended` is at least so many.
    `unusable` counts answers of n; the other figures about answers are of those that could be used. A `decision`
    on membership is of the `last` recorded rounds, of the `best`, which takes the truth to find, or `guessing`;
    `decision_rounds` says over how many rounds, and which one is the best.
    """
    table = pd.DataFrame(list(_figures(poisoning)), columns=list(FIGURES))
    return table.astype({**dict.fromkeys(("value", "low", "high"), "float64"), "n": "Int64"})


def rounds_frame(run: Finished) -> pd.DataFrame:
    """One row a round that was measured or attacked in: accuracies after it, and what was submitted in it.

    `decision` is the share of right decisions on membership by the model after the round.
    """
    history = {one.round: one for one in run.report.task.history}
    sent: dict[int, list[Sent]] = {}
    for one in run.poisoning.attacks if run.poisoning else ():
        sent.setdefault(one.round, []).append(one)
    found = run.poisoning.decisions if run.poisoning else None
    right = dict(zip(found.rounds, found.accuracy, strict=True)) if found else {}
    records = [
        {**_round(number, history.get(number), one), "decision": right.get(number)}
        for number in sorted({*history, *sent, *right})
        for one in sent.get(number, [None])
    ]
    whole = dict.fromkeys(("attackers", "norm_rank", "of"), "Int64")
    numbers = {name: "float64" for name in ROUNDS if name != "round" and name not in whole}
    return pd.DataFrame(records, columns=list(ROUNDS)).astype({**whole, **numbers})


def latex(run: Finished) -> str:
    """The accuracies before, after and at the end, and decisions on membership, for \\input; "" without any."""
    found = run.poisoning.decisions if run.poisoning else None
    tables = [_accuracies(run), _decisions(run, found) if found else ""]
    return "\n".join(one for one in tables if one)


def _accuracies(run: Finished) -> str:
    rows = lines(run.poisoning) if run.poisoning else []
    if run.poisoning is None or not rows:
        return ""
    columns = moments(run.poisoning)
    heads = [line("", [escape(head) for head in columns.values()]), "    \\midrule"]
    body = "\n".join([*heads, *(text for one in rows for text in _rows(one, list(columns)))])
    return booktabs(_caption(run, run.poisoning), len(columns), [body])


def _decisions(run: Finished, found: Decisions) -> str:
    rows = decided.rows(found)
    body = [
        line(
            "", [f"Last {found.last.rounds} rounds", f"Best round ({found.best.round}), by the truth", "Guessing"]
        ),
        "    \\midrule",
        line("Right decisions (\\%)", [escape(digits(one.figure.value)) for one in rows]),
        line("", [small(span(one.figure)) for one in rows]),
    ]
    title, who = escape(run.report.experiment.title), escape(decided.asked(found))
    caption = f"{title}: decisions on {who}, {decided.RULE}, with Wilson's 95\\,\\% intervals."
    return booktabs(caption, len(rows), ["\n".join(body)])


def _figures(
    poisoning: Poisoning,
) -> Iterator[tuple[str, str, float | None, float | None, float | None, int | None]]:
    courses: dict[str, Course | None] = {
        "main_accuracy": poisoning.main,
        "backdoor_accuracy": poisoning.success,
        "mistaken": poisoning.mistaken,
    }
    for name, course in courses.items():
        for moment in MOMENTS if course else ():
            yield name, moment, *_sides(getattr(course, moment) or UNKNOWN)
        if name == "main_accuracy":
            yield name, "lowest", *_sides(poisoning.main.lowest or UNKNOWN)
    if used := poisoning.defended_use:
        yield "main_accuracy", "defended_use", *_sides(used.accuracy or UNKNOWN)
        yield "backdoor_accuracy", "defended_use", *_sides(used.success or UNKNOWN)
        yield "mistaken", "defended_use", *_sides(used.mistaken or UNKNOWN)
    if poisoning.success:
        yield "backdoor_accuracy", "mean", poisoning.success.mean, None, None, None
        if lasts := poisoning.success.persistence:
            yield "persistence", "run_ended" if lasts.censored else "rounds", float(lasts.rounds), None, None, None
    if found := poisoning.decisions:
        yield "decision", "last", *_sides(found.last)
        yield "decision", "best", *_sides(found.best)
        yield "decision", "guessing", found.chance, None, None, None
        yield "decision_rounds", "last", float(found.last.rounds), None, None, None
        yield "decision_rounds", "best", float(found.best.round), None, None, None
    for whose, one in (("attackers", poisoning.detection.attackers), ("honest", poisoning.detection.honest)):
        yield from _answers(whose, one)


def _answers(
    whose: str, one: Answers
) -> Iterator[tuple[str, str, float | None, float | None, float | None, int | None]]:
    yield "unusable", whose, float(one.unusable), None, None, one.answers
    yield "rejected", whose, *_sides(one.rejected or UNKNOWN)[:3], one.usable
    yield "kept", whose, one.kept, None, None, one.usable
    yield "scale", whose, one.scale, None, None, one.usable


def _sides(figure: Measured) -> tuple[float | None, float | None, float | None, int | None]:
    return figure.value, figure.low, figure.high, figure.n


def _round(number: int, moment: Moment | None, sent: Sent | None) -> dict[str, object]:
    record: dict[str, object] = {"round": number}
    if moment:
        record |= moment.model_dump(include={"accuracy", "loss", "backdoor", "mistaken", "attackers"})
    if sent:
        record |= sent.model_dump(exclude={"accuracy", "success"})
        record |= {"submitted_accuracy": sent.accuracy, "submitted_backdoor": sent.success}
    return record


def _rows(one: Line, columns: Sequence[str]) -> list[str]:
    written = [one.written(moment) for moment in columns]
    found = [line(f"{escape(one.name)} (\\%)", [escape(value) for value, _ in written])]
    return [*found, line("", [small(interval) for _, interval in written])] if any(i for _, i in written) else found


def _caption(run: Finished, poisoning: Poisoning) -> str:
    title = escape(run.report.experiment.title)
    who = f" under {escape(poisoning.adversary.title)}" if poisoning.adversary else " without an attack"
    tested = ""
    if poisoning.backdoor:
        held = count(poisoning.backdoor.test, f"held-out triggered {poisoning.backdoor.unit}")
        tested = f"; backdoor accuracy on {escape(held)}, taken for {escape(poisoning.backdoor.wanted)}"
    return f"{title}: accuracy of the global model{who}{tested}, with Wilson's 95\\,\\% intervals."
