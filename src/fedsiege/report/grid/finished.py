"""A sweep as its sweep.json has it: settings, defences, figures over seeds, hypervolumes, fronts.

A *setting* is what a cell shares with its undefended baseline: the values of all axes that are not about defences,
and what else a cell outside the product changes. A *family* is a cell's defences by name in their order, whatever
their strength, and its aggregation rule where that is no weighted mean; cells without any are the family `none`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from fedsiege.metrics.frontier import hypervolume, over_seeds, pareto
from fedsiege.report.finished import BOUND
from fedsiege.report.grid.schema import SCHEMA, Attacked, Cell, SweepFile
from fedsiege.report.schema import Measured
from fedsiege.report.typed import read_finished, typed

FPR = "0.001"
"""The false-positive rate of the frontier, as sweep.json writes it."""

NONE = "none"
EMPTY = ("[]", "null")  # how a grid names a value without a component
DEFENCE_AXES = ("defences", "coalition", "server_defences", "aggregator")
SOME_CLIENTS = re.compile(r"[(, ]clients=")
UNKNOWN = Measured(value=None, low=None, high=None, n=0)

Measure = Literal["tpr", "auc"]
MEASURES: tuple[Measure, ...] = ("tpr", "auc")


@dataclass(frozen=True, slots=True)
class Figure:
    """One attack on one cell, over seeds: `runs` by seed, and of those with a TPR at the frontier's FPR the TPRs.

    `warnings` is what the runs said of these TPRs.
    """

    attack: str
    tpr: Measured
    auc: Measured
    runs: Mapping[int, Attacked]
    by_seed: Mapping[int, float]
    warnings: tuple[str, ...]

    @property
    def adapted(self) -> bool:
        """Whether the attack is told of the defence."""
        return any(one.adapted for one in self.runs.values())

    @property
    def upper_bound(self) -> bool:
        """Whether it is no attack, but a bound on what attacks can find: then it is no rival of theirs."""
        return any(one.upper_bound for one in self.runs.values())

    def measured(self, measure: Measure) -> Measured:
        """The TPR at 0.1 % FPR, or the AUC."""
        return self.tpr if measure == "tpr" else self.auc


@dataclass(frozen=True)
class Point:
    """One cell over its seeds. `short` is its name within its setting; `figures` are by the attack's label."""

    setting: str
    name: str
    short: str
    family: str
    cells: tuple[Cell, ...]

    @property
    def defended(self) -> bool:
        """Whether it has any defence."""
        return self.family != NONE

    @property
    def called(self) -> str:
        """Its name as the report says it."""
        return called(self.cells[0])

    @property
    def labels(self) -> list[str]:
        """Its defences, written out."""
        first = self.cells[0]
        return [*first.labels, *([] if first.averages else [first.rule or "aggregator"])]

    @property
    def partial(self) -> bool:
        """Whether one of its defences is used by some of the audited clients only, or, in older files, of all."""
        if self.cells[0].partly is not None:
            return self.cells[0].partly
        return any(SOME_CLIENTS.search(label) for label in self.labels)

    @cached_property
    def done(self) -> tuple[Cell, ...]:
        """Its finished runs."""
        return tuple(cell for cell in self.cells if cell.status == "done")

    @cached_property
    def errors(self) -> dict[int, float]:
        """Seed -> test error."""
        return {cell.seed: 1 - cell.accuracy for cell in self.done if cell.accuracy is not None}

    @cached_property
    def error(self) -> Measured:
        """The test error over seeds; a single seed has no interval, nor have seeds that all agree."""
        return spread(list(self.errors.values()))

    @cached_property
    def accuracy(self) -> Measured:
        """The test accuracy over seeds."""
        return spread([1 - error for error in self.errors.values()])

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Every attack that was measured on it."""
        labels = dict.fromkeys(one.attack for cell in self.done for one in cell.attacks)
        return {label: _figure(label, self.done) for label in labels}

    @cached_property
    def attacks(self) -> dict[str, Figure]:
        """The figures without those of upper bounds."""
        return {label: one for label, one in self.figures.items() if not one.upper_bound}

    @cached_property
    def idle(self) -> dict[str, list[int]]:
        """Component that never acted, or is not known to have -> the seeds in which it did not."""
        found: dict[str, list[int]] = {}
        for cell in self.done:
            for label in cell.idle:
                found.setdefault(label, []).append(cell.seed)
        return found

    @cached_property
    def unproven(self) -> dict[str, str]:
        """Component of which nothing tells whether it acted -> the counter that it lacks."""
        return {label: counter for cell in self.done for label, counter in cell.unproven.items()}

    @cached_property
    def strongest(self) -> Figure | None:
        """The attack with the highest mean TPR, then AUC, first of equals: a choice made with the truth in hand."""
        return self._highest("tpr")

    def figure(self, attack: str | None, measure: Measure = "tpr") -> Figure | None:
        """This attack's figure, if it was measured; for None the one that is highest by this measure."""
        return self._highest(measure) if attack is None else self.figures.get(attack)

    def _highest(self, measure: Measure) -> Figure | None:
        known = [one for one in self.attacks.values() if one.measured(measure).value is not None]
        first, second = MEASURES if measure == "tpr" else MEASURES[::-1]
        return max(
            known,
            key=lambda one: (one.measured(first).value or 0.0, one.measured(second).value or 0.0),
            default=None,
        )


@dataclass(frozen=True)
class FinishedSweep:
    """A sweep folder's sweep.json: `data` as written, `report` typed."""

    folder: Path
    data: dict[str, Any]
    report: SweepFile

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Read a sweep folder; InputError says that the file is missing, unreadable or of another schema."""
        folder = Path(folder)
        data = read_finished(folder, "sweep.json", SCHEMA, "sweep")
        return cls(folder=folder, data=data, report=typed(SweepFile, data, folder / "sweep.json"))

    @property
    def audited(self) -> bool:
        """Whether membership attacks were made in any run; a sweep may be about poisoning alone."""
        return bool(self._attacked)

    @property
    def besieged(self) -> bool:
        """Whether in any run clients attacked, or a backdoor was measured."""
        return any(cell.poisoning is not None and cell.poisoning.asked for cell in self.report.cells)

    @cached_property
    def setting_axes(self) -> list[str]:
        """The axes that are not about defences."""
        return [axis for axis in self.report.axes if not about_defences(axis)]

    @cached_property
    def points(self) -> list[Point]:
        """The cells over their seeds, in the file's order."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.report.cells:
            groups.setdefault(cell.name, []).append(cell)
        firsts = [cells[0] for cells in groups.values()]
        shorts = Counter((self.setting_of(one), _short(one)) for one in firsts)
        return [
            Point(
                setting=self.setting_of(cells[0]),
                name=name,
                short=_short(cells[0]) if shorts[self.setting_of(cells[0]), _short(cells[0])] == 1 else name,
                family=" + ".join(defences_of(cells[0])) or NONE,
                cells=tuple(cells),
            )
            for name, cells in groups.items()
        ]

    @cached_property
    def settings(self) -> list[str]:
        """The settings in order of appearance; the only one of a grid without other axes is ""."""
        return list(dict.fromkeys(point.setting for point in self.points))

    @cached_property
    def by_setting(self) -> dict[str, list[Point]]:
        """Setting -> its cells."""
        return {setting: [p for p in self.points if p.setting == setting] for setting in self.settings}

    @cached_property
    def styles(self) -> dict[str, int]:
        """Family -> its number in order of appearance, which fixes its look in every chart; `none` has none."""
        families = dict.fromkeys(point.family for point in self.points if point.defended)
        return {family: number for number, family in enumerate(families)}

    @cached_property
    def names(self) -> dict[str, str]:
        """Attack label -> what people read: its title, with the label where two attacks share a title.

        An upper bound is called one, wherever it is named.
        """
        titles = {one.attack: one.title for one in self._attacked}
        shared = Counter(titles.values())
        return {
            label: BOUND * (label in self.upper_bounds) + (t if shared[t] == 1 else f"{t} · {label}")
            for label, t in titles.items()
        }

    @cached_property
    def adapted(self) -> set[str]:
        """The attacks that are told of a defence."""
        return {one.attack for one in self._attacked if one.adapted}

    @cached_property
    def upper_bounds(self) -> set[str]:
        """What is listed with the attacks and is none: it is told the truth about candidates."""
        return {one.attack for one in self._attacked if one.upper_bound}

    def setting_of(self, cell: Cell) -> str:
        """The setting of a cell in words; "" is the base with nothing changed but defences."""
        changed = {**cell.axes, **cell.changes}
        own = {field: value for field, value in changed.items() if not about_defences(field)}
        if cell.axes or own:
            own = {**dict.fromkeys(self.setting_axes, "-"), **own}
        return ", ".join(f"{field}={value}" for field, value in own.items())

    def families(self, setting: str) -> list[str]:
        """The defended families of a setting."""
        return list(dict.fromkeys(point.family for point in self.by_setting[setting] if point.defended))

    def columns(self, setting: str) -> list[str]:
        """The families that hypervolumes are compared over: `none` first, where it was measured."""
        return [*([NONE] if self.baseline(setting) else []), *self.families(setting)]

    def strengths(self, setting: str, family: str) -> int:
        """How many measured cells a family has in a setting."""
        return sum(point.family == family and bool(point.figures) for point in self.by_setting[setting])

    def attacks(self, setting: str) -> list[str]:
        """The setting's attacks by falling sum of TPRs over its defended cells, else over all; bounds last."""
        points = self.by_setting[setting]
        judged = [point for point in points if point.defended and point.figures] or points
        labels = dict.fromkeys(label for point in points for label in point.figures)

        def strength(label: str) -> float:
            return sum(p.figures[label].tpr.value or 0.0 for p in judged if label in p.figures)

        return sorted(labels, key=lambda label: (label in self.upper_bounds, -strength(label)))

    def baseline(self, setting: str) -> Point | None:
        """The setting's undefended cell, the first that was measured; None if none was."""
        return next((p for p in self.by_setting[setting] if not p.defended and p.errors), None)

    def cost(self, point: Point) -> Measured:
        """Accuracy lost against the undefended cell, paired by seed; negative is a gain. Null without a pair."""
        baseline = self.baseline(point.setting)
        if baseline is None:
            return UNKNOWN
        pairs = [point.errors[seed] - baseline.errors[seed] for seed in point.errors if seed in baseline.errors]
        return spread(pairs, (-1.0, 1.0))

    def hypervolume(self, setting: str, family: str, attack: str | None) -> Measured:
        """The area between a family's points (test error, TPR) and (1, 1), over seeds.

        `attack` None takes the strongest attack on each cell. The family `none` is the setting's baseline alone.

        Every seed stands by itself, and counts where every cell of the family that was measured in any seed was
        measured in it. All null if there is no such seed.
        """
        pairs = [
            {seed: (point.errors[seed], tpr) for seed, tpr in figure.by_seed.items() if seed in point.errors}
            for point in self._members(setting, family)
            if (figure := point.figure(attack)) is not None
        ]
        measured = [one for one in pairs if one]
        if not measured:
            return UNKNOWN
        common = [seed for seed in measured[0] if all(seed in one for one in measured)]
        return spread([hypervolume([one[seed] for one in measured]) for seed in common])

    def drawn(self, setting: str, attack: str | None, measure: Measure) -> list[tuple[Point, Figure]]:
        """The setting's cells that have a place in a chart, with the figure that puts them there."""
        return [
            (point, figure)
            for point in self.by_setting[setting]
            if (figure := point.figure(attack, measure)) is not None
            and point.error.value is not None
            and figure.measured(measure).value is not None
        ]

    def front(self, setting: str, attack: str | None, measure: Measure) -> set[str]:
        """Names of the setting's cells on the Pareto front of mean test error and mean TPR or AUC."""
        drawn = self.drawn(setting, attack, measure)
        places = [(point.error.value, figure.measured(measure).value) for point, figure in drawn]
        return {drawn[i][0].name for i in pareto(np.array(places, dtype=np.float64))}

    def _members(self, setting: str, family: str) -> list[Point]:
        if family != NONE:
            return [point for point in self.by_setting[setting] if point.family == family]
        baseline = self.baseline(setting)
        return [] if baseline is None else [baseline]

    @cached_property
    def _attacked(self) -> list[Attacked]:
        return [one for cell in self.report.cells for one in cell.attacks]


def spread(
    values: Sequence[float],
    bounds: tuple[float, float] = (0.0, 1.0),
    runs: Sequence[tuple[float, float]] = (),
) -> Measured:
    """The mean over seeds with its interval, no narrower than the runs' own imply; null where there is none."""
    if not values:
        return UNKNOWN
    found = over_seeds(values, bounds=bounds, runs=runs)
    if math.isnan(found.low):
        return Measured(value=found.value, low=None, high=None, n=found.n)
    return Measured(value=found.value, low=found.low, high=found.high, n=found.n)


def about_defences(axis: str) -> bool:
    """Whether a dotted field of an experiment is a defence's, whoever uses it."""
    return axis.split(".", maxsplit=1)[0] in DEFENCE_AXES


def called(cell: Cell) -> str:
    """A cell's name, in which an axis over defences without any says `none`."""
    if cell.name != _joined_axes(cell.axes):
        return cell.name
    return _joined_axes({axis: _value(axis, value) for axis, value in cell.axes.items()})


def defences_of(cell: Cell) -> list[str]:
    """The names of a cell's defences; an aggregation rule is one unless it is a weighted mean."""
    return [*cell.defences, *([] if cell.averages else [cell.rule.split("(", maxsplit=1)[0] or "aggregator"])]


def _joined_axes(axes: Mapping[str, str]) -> str:
    return ", ".join(f"{axis}={value}" for axis, value in axes.items())


def _value(axis: str, value: str) -> str:
    return NONE if about_defences(axis) and value in EMPTY else value


def _short(cell: Cell) -> str:
    """A cell's name without its setting."""
    own = {axis: _value(axis, value) for axis, value in cell.axes.items() if about_defences(axis)}
    if not own:
        return cell.name
    return next(iter(own.values())) if len(own) == 1 else _joined_axes(own)


def _figure(label: str, cells: Sequence[Cell]) -> Figure:
    own = {cell.seed: one for cell in cells for one in cell.attacks if one.attack == label}
    rates = {seed: one.tpr_at_fpr[FPR] for seed, one in own.items() if FPR in one.tpr_at_fpr}
    by_seed = {seed: rate.value for seed, rate in rates.items() if rate.value is not None}
    return Figure(
        attack=label,
        tpr=joined(rates.values()),
        auc=joined(one.auc for one in own.values()),
        runs=own,
        by_seed=by_seed,
        warnings=tuple(dict.fromkeys(rate.warning for rate in rates.values() if rate.warning)),
    )


def joined(figures: Iterable[Measured]) -> Measured:
    """A figure of every seed's run as one over seeds; a single run's keeps the run's own interval."""
    known = [one for one in figures if one.value is not None]
    if len(known) == 1:
        return Measured(value=known[0].value, low=known[0].low, high=known[0].high, n=1)
    return spread([one.value for one in known if one.value is not None], runs=[interval(one) for one in known])


def interval(figure: Measured) -> tuple[float, float]:
    """A figure's interval; NaN where it has none."""
    return (
        math.nan if figure.low is None else figure.low,
        math.nan if figure.high is None else figure.high,
    )
