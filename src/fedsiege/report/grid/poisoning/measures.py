"""What is measured of a cell under attack, over its seeds.

A figure is the mean over seeds with Student's interval, no narrower than the runs' own Wilson intervals imply for
it: to pool the seeds' images as if one model had seen them all would leave out how models differ. A cell with one
seed has its run's own interval. Differences take both sides as independent: for the same images that is too wide.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fedsiege.report.grid.comparison import difference
from fedsiege.report.grid.finished import FinishedSweep, Point, interval, joined, spread
from fedsiege.report.grid.poisoning.places import Block, Places
from fedsiege.report.measured import Measured
from fedsiege.report.poisoning.judged import UNKNOWN, Moment, above
from fedsiege.report.poisoning.judged import at as course
from fedsiege.report.poisoning.schema import Poisoning
from fedsiege.report.words import bare_points, digits, points_span, span

FEASIBLE = "feasible_share"
"""The counter of attacks that look for a poison within a bound."""
GUESSING = 0.5
"""Guessing, where half of the examples that are asked about are members."""

Figure = Callable[["Siege", Point], Measured]


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of every table; `good` says whether a large figure is good for the federation."""

    key: str
    name: str
    short: str
    unit: Literal["share", "points"]
    good: bool
    figure: Figure
    floor: float = 0.0
    """The share that is nothing yet, such as that of guessing: above it a table's cells have a colour."""

    def written(self, figure: Measured) -> tuple[str, str]:
        """A figure and its interval as tables write them: shares in per cent, differences in points."""
        if self.unit == "share":
            return digits(figure.value), span(figure)
        return bare_points(figure.value), points_span(figure)


@dataclass(frozen=True)
class Siege:
    """The cells of a sweep, and which of them the others are compared with."""

    sweep: FinishedSweep
    places: Places

    @classmethod
    def of(cls, sweep: FinishedSweep) -> "Siege":
        """The siege of a sweep."""
        return cls(sweep, Places(sweep))

    def measures(self) -> list[Measure]:
        """Those of which some cell has a figure."""
        points = self.sweep.points
        return [one for one in MEASURES if any(one.figure(self, point).value is not None for point in points)]

    def rows(self, block: Block, measure: Measure) -> list[str]:
        """The rows of a block in which the measure has a figure."""
        found = {row for (row, _), point in block.places.items() if measure.figure(self, point).value is not None}
        return [row for row in block.rows if row in found]

    def peaceful(self, point: Point) -> Point | None:
        """The cell with the same setting and defence in which nobody attacks; None if none was measured.

        Of several the one that shares most of the other fields of the attack, the first of equals.
        """
        beside = self._peaceful.get(self._place(point), [])
        return max(beside, key=lambda other: _shared(point, other), default=None)

    @cached_property
    def _peaceful(self) -> dict[tuple[str, str], list[Point]]:
        """Setting and defence -> the measured cells in which nobody attacks."""
        found: dict[tuple[str, str], list[Point]] = {}
        for point in self.sweep.points:
            if point.errors and not attacked(point):
                found.setdefault(self._place(point), []).append(point)
        return found

    def _place(self, point: Point) -> tuple[str, str]:
        return self.places.setting(point), self.places.defence(point)


def parts(point: Point) -> dict[int, Poisoning]:
    """Seed -> what its finished run says of poisoning."""
    return {cell.seed: cell.poisoning for cell in point.done if cell.poisoning is not None}


def attacked(point: Point) -> bool:
    """Whether somebody attacked in a finished run of the cell."""
    return any(one.adversary is not None for one in parts(point).values())


def attacks_made(sweep: FinishedSweep) -> list[str]:
    """The adversaries of the finished runs by label, each once."""
    found = (one for point in sweep.points for one in parts(point).values())
    return list(dict.fromkeys(one.adversary.label for one in found if one.adversary))


def acted(point: Point) -> bool:
    """Whether attackers' answers arrived, and neither the attack nor a defence of the cell failed to act."""
    arrived = any(one.detection.attackers.answers for one in parts(point).values())
    made = {one.adversary.label for one in parts(point).values() if one.adversary}
    return arrived and made.isdisjoint(point.idle) and {*point.labels, "aggregator"}.isdisjoint(point.idle)


def plants(point: Point) -> bool:
    """Whether the attack on the cell is to plant a backdoor, and its success was measured."""
    return any(one.adversary and one.adversary.plants and one.success for one in parts(point).values())


def over_runs(point: Point, pick: Callable[[Poisoning], Measured | None]) -> Measured:
    """A figure that each run has with its own interval, over seeds."""
    return joined(_known(pick(one) for one in parts(point).values()))


def probes(point: Point) -> bool:
    """Whether the attack on the cell is to make membership visible."""
    return any(one.probing for one in parts(point).values())


def decided(point: Point, which: str) -> Measured:
    """How often decisions on membership were right: over the `last` rounds, or in the `best` one."""
    return over_runs(point, lambda one: getattr(one.decisions, which) if one.decisions else None)


def kept(_: Siege, point: Point) -> Measured:
    """The mean share that attackers' answers kept in the model, where they are to make membership visible."""
    own = [one.detection.attackers.kept for one in parts(point).values() if one.probing]
    return spread([one for one in own if one is not None])


def feasible(_: Siege, point: Point) -> Measured:
    """The share of the rounds of attack in which some poison kept within the attack's own bound, if it has one."""
    own = [one.counters.get(FEASIBLE) for one in parts(point).values() if one.probing]
    return spread([one for one in own if one is not None])


def at(point: Point, moment: str) -> Measured:
    """Backdoor accuracy `before` the attack, after its first round (`attacked`) or at the end (`last`)."""
    return over_runs(point, lambda one: course(one.success, moment))


def reached(point: Point) -> tuple[Moment, Measured]:
    """Where the mean backdoor accuracy is higher, after the first round of attack or at the end, and what it is."""
    attacked, last = at(point, "attacked"), at(point, "last")
    return ("last", last) if (last.value or 0.0) > (attacked.value or 0.0) else ("attacked", attacked)


def planted(siege: Siege, point: Point) -> bool | None:
    """Whether the cell's backdoor demonstrably works, as for a run: None where that cannot be said.

    Its accuracy must lie above that of before the attack, that of clean examples of other classes, and that of the
    same trigger where nobody attacks.
    """
    moment, value = reached(point)
    bars = [
        over_runs(point, lambda one: None if one.fresh else course(one.success, "before")),
        over_runs(point, lambda one: course(one.mistaken, moment)),
    ]
    peace = siege.peaceful(point)
    return above(value, [*bars, *([at(peace, "last")] if peace else [])])


def accuracy(point: Point) -> Measured:
    """Main accuracy of the final model: with the runs' own intervals where they say them."""
    measured = over_runs(point, lambda one: one.main.last)
    return point.accuracy if measured.value is None or measured.n != point.accuracy.n else measured


def lost(siege: Siege, point: Point) -> Measured:
    """Main accuracy at the end that the attack costs, beside the cell that nobody attacks, paired by seed."""
    peace = siege.peaceful(point) if attacked(point) else None
    return UNKNOWN if peace is None else fall(peace, point)


def fall(before: Point, after: Point) -> Measured:
    """Test accuracy of one cell less that of the other, paired by seed, over seeds; all null without a pair."""
    seeds = [seed for seed in after.errors if seed in before.errors]
    values = [after.errors[seed] - before.errors[seed] for seed in seeds]
    pairs = [(_main(before, seed), _main(after, seed)) for seed in seeds]
    return _over_seeds(
        [_less(value, one, other) for value, (one, other) in zip(values, pairs, strict=True)],
    )


def dip(_: Siege, point: Point) -> Measured:
    """Main accuracy that is lost from before the first round of attack to after it, over seeds."""
    falls = []
    for one in parts(point).values():
        before, after = one.main.before, one.main.attacked
        if before and after and before.value is not None and after.value is not None and not one.fresh:
            falls.append(_less(before.value - after.value, before, after))
    return _over_seeds(falls)


def _less(value: float, one: Measured | None, other: Measured | None) -> Measured:
    """A difference of two runs' figures with its interval, where both have one."""
    low, high = difference(one, other) if one and other else (math.nan, math.nan)
    known = math.isfinite(low) and math.isfinite(high)
    return Measured(value=value, low=low if known else None, high=high if known else None, n=1)


def _over_seeds(differences: Sequence[Measured]) -> Measured:
    if len(differences) == 1:
        return differences[0]
    values = [one.value for one in differences if one.value is not None]
    return spread(values, (-1.0, 1.0), [interval(one) for one in differences])


def _mean(_: Siege, point: Point) -> Measured:
    means = [one.success.mean for one in parts(point).values() if one.success and one.success.mean is not None]
    return spread(means)


def _main(point: Point, seed: int) -> Measured | None:
    one = parts(point).get(seed)
    return one.main.last if one else None


def _known(figures: Iterable[Measured | None]) -> Iterator[Measured]:
    return (one for one in figures if one is not None)


def _shared(point: Point, other: Point) -> int:
    here, there = ({**one.cells[0].axes, **one.cells[0].changes} for one in (point, other))
    return sum(there.get(field) == value for field, value in here.items())


MEASURES = (
    Measure(
        "decision_last",
        "Right decisions on membership, over the last recorded rounds",
        "Decisions, last rounds",
        "share",
        False,
        lambda _, point: decided(point, "last"),
        GUESSING,
    ),
    Measure(
        "decision_best",
        "Right decisions on membership, in the best round, chosen with the truth",
        "Best round, with the truth",
        "share",
        False,
        lambda _, point: decided(point, "best"),
        GUESSING,
    ),
    Measure(
        "backdoor_attacked",
        "Backdoor accuracy after the first attack",
        "Backdoor, first attack",
        "share",
        False,
        lambda _, point: at(point, "attacked"),
    ),
    Measure("backdoor_mean", "Backdoor accuracy, mean over rounds", "Backdoor, mean", "share", False, _mean),
    Measure(
        "backdoor_last",
        "Backdoor accuracy at the end",
        "Backdoor, end",
        "share",
        False,
        lambda _, point: at(point, "last"),
    ),
    Measure("main_last", "Main accuracy at the end", "Main, end", "share", True, lambda _, point: accuracy(point)),
    Measure("main_dip", "Main accuracy lost in the first attack", "Main lost, first attack", "points", False, dip),
    Measure("main_lost", "Main accuracy lost to the attack, at the end", "Main lost, end", "points", False, lost),
    Measure(
        "attackers_rejected",
        "Attackers’ answers rejected",
        "Attackers, rejected",
        "share",
        True,
        lambda _, point: over_runs(point, lambda one: one.detection.attackers.rejected),
    ),
    Measure("attackers_kept", "Share kept of attackers’ answers", "Attackers, kept", "share", False, kept),
    Measure(
        "feasible_share", "Rounds in which poison kept its own bound", "Within its bound", "share", False, feasible
    ),
    Measure(
        "honest_rejected",
        "Honest answers rejected",
        "Honest, rejected",
        "share",
        False,
        lambda _, point: over_runs(point, lambda one: one.detection.honest.rejected),
    ),
)
