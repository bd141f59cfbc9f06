"""The defences of a setting beside each other, each by the attack that does best against it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsiege.report.grid.finished import Point
from fedsiege.report.grid.poisoning.measures import Siege, decided, fall, parts, reached
from fedsiege.report.grid.poisoning.places import NO_DEFENCE
from fedsiege.report.measured import Measured
from fedsiege.report.poisoning.judged import UNKNOWN

Judge = Callable[[Point], Measured]
"""How far the attack on a cell gets: the larger, the worse."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A defence with the cells of one setting in which it was attacked, and how far the worst attack gets.

    `cost` is the main accuracy that it costs beside no defence: where nobody attacks if that was measured
    (`quiet`), else under the same attack.
    """

    name: str
    points: tuple[Point, ...]
    worst: Point
    figure: Measured
    undefended: bool
    cost: Measured
    quiet: bool


def title(point: Point) -> str:
    """The attack on a cell, as people call it."""
    return next((one.adversary.title for one in parts(point).values() if one.adversary), "The attack")


def gets(point: Point) -> Measured:
    """How far an attack gets that plants a backdoor: the backdoor accuracy that it reaches."""
    return reached(point)[1]


def gives_away(point: Point) -> Measured:
    """How far an attack gets that makes membership visible: right decisions over the last rounds."""
    return decided(point, "last")


def harm(point: Point) -> Measured:
    """How far an attack on main accuracy gets: the test error at the end."""
    return point.error


def rivals(siege: Siege, cells: Sequence[Point], judge: Judge) -> list[Rival]:
    """The defences that were measured under every attack of these cells; the others cannot be compared."""
    groups: dict[str, list[Point]] = {}
    for point in cells:
        groups.setdefault(siege.places.defence(point), []).append(point)
    every = {siege.places.attack(point) for point in cells}
    whole = {name: own for name, own in groups.items() if {siege.places.attack(one) for one in own} == every}
    bare = next((own for own in whole.values() if not own[0].defended), None)
    return [_rival(siege, name, own, bare, judge) for name, own in whole.items()]


def _rival(siege: Siege, name: str, own: Sequence[Point], bare: Sequence[Point] | None, judge: Judge) -> Rival:
    worst = max(own, key=lambda one: judge(one).value or 0.0)
    cost, quiet = _cost(siege, worst, bare) if bare else (UNKNOWN, False)
    called = name or own[0].cells[0].rule or NO_DEFENCE
    return Rival(called, tuple(own), worst, judge(worst), not own[0].defended, cost, quiet)


def _cost(siege: Siege, worst: Point, bare: Sequence[Point]) -> tuple[Measured, bool]:
    """What a defence costs in main accuracy beside none, and whether that was measured where nobody attacks."""
    without, with_it = siege.peaceful(bare[0]), siege.peaceful(worst)
    if without and with_it and (cost := fall(without, with_it)).value is not None:
        return cost, True
    same = siege.places.attack(worst)
    return fall(next(one for one in bare if siege.places.attack(one) == same), worst), False
