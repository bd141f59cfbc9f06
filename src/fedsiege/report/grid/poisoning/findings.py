"""What a sweep says of attackers, in sentences: which defence keeps them out, and at what cost."""

from collections.abc import Sequence

from fedsiege.report.grid.finished import Point
from fedsiege.report.grid.poisoning.measures import (
    Siege,
    accuracy,
    acted,
    attacked,
    over_runs,
    parts,
    planted,
    plants,
    probes,
)
from fedsiege.report.grid.poisoning.rivals import Rival, gets, gives_away, harm, rivals, title
from fedsiege.report.grid.verdict import Headline, Verdict
from fedsiege.report.measured import Measured
from fedsiege.report.poisoning.judged import harmless
from fedsiege.report.words import SPACE, count, listed, percent, points, points_span, span

ROUNDING = 1e-9
OVER_SEEDS = (
    f"Means over seeds with Student’s 95{SPACE}% interval, no narrower than the runs’ own Wilson intervals imply "
    "for their mean: another training run, not only other held-out examples. A cell with one finished seed has its "
    "run’s own interval, and a mean over rounds then none."
)
ONE_SEED = (
    f"One seed: Wilson’s 95{SPACE}% intervals over the held-out examples, and nothing here says how another "
    "training run would come out."
)
CALLED = "An example is called a member where the model gets it right"
LOST = (
    "What an attack costs in main accuracy is measured beside the cell with the same defence in which nobody "
    "attacks, seed by seed; where there is none it is not known."
)


def headline(siege: Siege) -> Headline | None:
    """Which defence keeps attackers out; over several settings, in how many one does; None without attacks."""
    verdicts = tuple(one for setting in siege.places.settings if (one := verdict(siege, setting)))
    if not verdicts:
        return None
    if len(verdicts) == 1:
        only = verdicts[0]
        return Headline(only.statement, only.support, only.helps, (), "poisoning")
    helped = sum(one.helps is True for one in verdicts)
    open_ones = sum(one.helps is None for one in verdicts)
    statement = f"In {helped or 'none'} of {len(verdicts)} settings the attackers are demonstrably kept out."
    support = (f"In {count(open_ones, 'setting')} that cannot be said.",) if open_ones else ()
    helps = True if helped else None if open_ones else False
    return Headline(statement, support, helps, verdicts, "poisoning")


def verdict(siege: Siege, setting: str) -> Verdict | None:
    """What one setting says; None where nobody attacked in it. What never acted is not judged."""
    cells = [point for point in siege.places.of(setting) if attacked(point) and acted(point)]
    planting = [one for one in cells if plants(one)]
    probing = [one for one in cells if probes(one) and not plants(one)]
    others = [one for one in cells if not (plants(one) or probes(one))]
    said = [_planting(siege, planting)] if planting else []
    said += [_probing(siege, probing)] if probing else []
    said += [_damaging(siege, others)] if others else []
    if not said:
        return None
    helps = [one.helps for one in said]
    return Verdict(
        setting,
        " ".join(one.statement for one in said),
        tuple(dict.fromkeys(line for one in said for line in one.support if line)),
        False if False in helps else None if None in helps else True,
    )


def basis(siege: Siege) -> str:
    """What the intervals cover."""
    most = max((len(point.done) for point in siege.sweep.points), default=0)
    return OVER_SEEDS if most > 1 else ONE_SEED


def _planting(siege: Siege, cells: Sequence[Point]) -> Verdict:
    """Attacks that plant a backdoor: the defence against which the best of them reaches least, in the budget."""
    found = rivals(siege, cells, gets)
    bare = next((one for one in found if one.undefended), None)
    others = [one for one in found if not one.undefended]
    if not others or len(found) < 2:
        return _alone(siege, cells)
    within = f"within an accuracy budget of {points(siege.sweep.report.budget)}"
    affordable = [one for one in others if (one.cost.value or 0.0) <= siege.sweep.report.budget + ROUNDING]
    if not affordable:
        cheapest = min(others, key=lambda one: one.cost.value or 0.0)
        reaches = f"{_strongest(cheapest)} reaches {_figure(cheapest.figure)} against it"
        lead = f"The cheapest is {cheapest.name}: {reaches}."
        return Verdict("", f"No defence against backdoors stays {within}.", (lead, _price(cheapest)), False)
    best = min(affordable, key=lambda one: one.figure.value or 0.0)
    shown = [planted(siege, point) for point in best.points]
    lower = best.figure.high is not None and bare is not None and best.figure.high < (bare.figure.low or 0.0)
    out = not any(shown) and None not in shown and (lower if bare else harmless(best.figure))
    helps = True if out else False if True in shown else None
    lead = f"{best.name} keeps backdoors out{f' {within}' if bare else ''}:"
    if not helps:
        lead = f"No defence demonstrably keeps backdoors out{f' {within}' if bare else ''}. {best.name} does best:"
    beside = f", and {percent(bare.figure.value)} against {bare.name}" if bare else ""
    statement = (
        f"{lead} {_strongest(best)} reaches a backdoor accuracy of {_figure(best.figure)} against it{beside}."
    )
    return Verdict(
        "", statement, (_price(best), _rejections(best), _left_out(siege, cells, found), _hindsight(found)), helps
    )


def _alone(siege: Siege, cells: Sequence[Point]) -> Verdict:
    """What is said where there are no two defences to compare."""
    strongest = max(cells, key=lambda one: gets(one).value or 0.0)
    shown = [planted(siege, point) for point in cells]
    figure = _figure(gets(strongest))
    if len(cells) == 1:
        does = {True: "plants", False: "does not demonstrably plant", None: "cannot be shown to plant"}[shown[0]]
        statement = f"{title(strongest)} {does} its backdoor: the backdoor accuracy that it reaches is {figure}."
    else:
        works = sum(one is True for one in shown)
        where = siege.places.attack(strongest) or strongest.called
        statement = (
            f"In {works or 'none'} of {len(cells)} cells under attack the backdoor demonstrably works; the highest "
            f"backdoor accuracy is {figure}, of {where}."
        )
    support = "A grid with an axis over aggregation rules or defences says what keeps attackers out."
    out = None not in shown and all(harmless(gets(point)) for point in cells)
    return Verdict("", statement, (support,), False if True in shown else True if out else None)


def _probing(siege: Siege, cells: Sequence[Point]) -> Verdict:
    """Attacks that make membership visible: the defence, in the budget, that gives least away to the best."""
    found = [one for one in rivals(siege, cells, gives_away) if one.figure.value is not None]
    if not found:
        return Verdict(
            "", "No decision on membership was measured under an attack that makes it visible.", (), None
        )
    called, bare = _called(cells), next((one for one in found if one.undefended), None)
    within = [
        one for one in found if one is bare or (one.cost.value or 0.0) <= siege.sweep.report.budget + ROUNDING
    ]
    best = min(within or found, key=lambda one: one.figure.value or 0.0)
    right = f"decisions by {_strongest(best)} are right for {_figure(best.figure)} of the examples"
    last = "over the last rounds"
    if len(found) < 2:
        return Verdict("", f"{right[:1].upper()}{right[1:]} {last}.", (called, _rejections(best)), None)
    budget = f" within an accuracy budget of {points(siege.sweep.report.budget)}" * bool(bare and within)
    if best is bare:
        statement = f"No defence gives less of membership away than {best.name}{budget}: {right} {last}."
        return Verdict("", statement, (called, _left_out(siege, cells, found), _hindsight(found)), False)
    lower = bare is not None and best.figure.high is not None and best.figure.high < (bare.figure.low or 0.0)
    beside = f", and {percent(bare.figure.value)} with {bare.name}" if bare else ""
    lead = f"{best.name} gives least of membership away{budget}"
    if bare and not lower:
        lead = (
            f"No defence demonstrably gives less of membership away than {bare.name}{budget}. {best.name} does best"
        )
    statement = f"{lead}: {right} {last}{beside}."
    support = (called, _price(best), _rejections(best), _left_out(siege, cells, found), _hindsight(found))
    return Verdict("", statement, support, True if lower else None)


def _damaging(siege: Siege, cells: Sequence[Point]) -> Verdict:
    """Attacks on main accuracy itself: the defence under which the worst of them leaves most of it."""
    found = rivals(siege, cells, harm)
    measured = [one for one in found if one.figure.value is not None]
    if not measured:
        return Verdict("", "No attack on main accuracy was measured to its end.", (), None)
    best = min(measured, key=lambda one: one.figure.value or 0.0)
    left, peace = accuracy(best.worst), siege.peaceful(best.worst)
    quiet = f", {percent(accuracy(peace).value)} where nobody attacks" if peace else ""
    leaves = f"{_strongest(best)} leaves a main accuracy of {_figure(left)}{quiet}"
    if len(measured) < 2:
        return Verdict("", f"{leaves[:1].upper()}{leaves[1:]}.", (LOST,) if peace is None else (), None)
    bare = next((one for one in measured if one.undefended), None)
    helps, beside, lead = None, "", f"Main accuracy is kept best by {best.name}"
    if bare is best:
        helps, lead = False, f"No defence keeps more main accuracy than {best.name}"
    elif bare:
        other = accuracy(bare.worst)
        beside = f"; with {bare.name} it is {percent(other.value)}"
        helps = True if left.low is not None and other.high is not None and left.low > other.high else None
    statement = f"{lead}: {leaves}{beside}."
    return Verdict("", statement, (_rejections(best), _left_out(siege, cells, found), _hindsight(found)), helps)


def _called(cells: Sequence[Point]) -> str:
    """What a decision is, and how often guessing is right, where that is the same in all cells."""
    decisions = [one.decisions for point in cells for one in parts(point).values() if one.decisions]
    chances = {percent(one.chance) for one in decisions}
    return f"{CALLED}; guessing is right for {chances.pop()}." if len(chances) == 1 else f"{CALLED}."


def _strongest(one: Rival) -> str:
    return title(one.points[0]) if len(one.points) == 1 else f"the strongest of {len(one.points)} attacks"


def _price(one: Rival) -> str:
    if one.cost.value is None:
        return "What it costs in main accuracy is not known: nothing was measured without a defence beside it."
    when = "where nobody attacks" if one.quiet else "under the same attack"
    if not round(1000 * one.cost.value):
        return f"It costs nothing in main accuracy {when}."
    verb = "costs" if one.cost.value > 0 else "gains"
    interval = f" ({points_span(one.cost)})" if points_span(one.cost) and verb == "costs" else ""
    return f"It {verb} {points(abs(one.cost.value))} of main accuracy{interval} {when}."


def _rejections(one: Rival) -> str:
    attackers = over_runs(one.worst, lambda part: part.detection.attackers.rejected).value
    honest = over_runs(one.worst, lambda part: part.detection.honest.rejected).value
    if attackers is None or not (attackers or honest):
        return ""
    others = f" and {percent(honest)} of the honest ones" if honest is not None else ""
    return f"There it rejects {percent(attackers)} of the attackers’ answers{others}."


def _left_out(siege: Siege, cells: Sequence[Point], found: Sequence[Rival]) -> str:
    compared = {point.name for one in found for point in one.points}
    missing = dict.fromkeys(siege.places.defence(point) for point in cells if point.name not in compared)
    return f"Not compared, as not every attack was measured: {listed(list(missing))}." if missing else ""


def _hindsight(found: Sequence[Rival]) -> str:
    best = f"which of {count(len(found), 'defence')} is best"
    return f"Which attack is strongest, and {best}, was chosen with the truth in hand."


def _figure(figure: Measured) -> str:
    interval = f" (95{SPACE}% interval {span(figure)}{SPACE}%)" if span(figure) else ""
    return f"{percent(figure.value)}{interval}"
