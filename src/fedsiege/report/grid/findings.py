"""What a sweep says, in sentences: which defence helps, at what cost, and what to be careful about."""

from collections.abc import Sequence

from fedsiege.report.findings import bound, doubted, spent
from fedsiege.report.grid.comparison import Comparison, Side, beats_guessing, compare, demonstrable
from fedsiege.report.grid.finished import FPR, Figure, FinishedSweep, Point, called
from fedsiege.report.grid.paper import caution
from fedsiege.report.grid.poisoning import findings as poisoning
from fedsiege.report.grid.poisoning.measures import Siege, attacks_made
from fedsiege.report.grid.poisoning.places import Places
from fedsiege.report.grid.schema import Cell
from fedsiege.report.grid.verdict import Headline as Headline
from fedsiege.report.grid.verdict import Verdict
from fedsiege.report.schema import Measured
from fedsiege.report.words import (
    SPACE,
    count,
    fpr_name,
    listed,
    percent,
    points,
    points_span,
    rounded,
    sentence,
    span,
)

RATE = f"TPR at {fpr_name(FPR)}{SPACE}FPR"
ROUNDING = 1e-9  # accuracies are counts over examples: 0.43 - 0.41 is within a budget of 0.02
BASE = "the base’s own values"
EVERY = "all cells"
STRONGEST = "Strongest on each cell"
UNDEFENDED = "undefended"
EQUALLY_MANY = (
    "More strengths of a defence never lower its hypervolume, and the undefended point is in none of them: compare "
    "defences of which equally many cells were measured."
)
BELOW_UNDEFENDED = (
    f"The column {UNDEFENDED} is that of the undefended cell, with its one point: a defence below it loses more "
    "accuracy than it saves in TPR, and is never in bold."
)


def setting_name(sweep: FinishedSweep, setting: str) -> str:
    """A setting as a heading says it."""
    return setting or (EVERY if len(sweep.settings) == 1 else BASE)


def headlines(sweep: FinishedSweep) -> list[Headline]:
    """What the sweep says of membership, where it was audited, and of attackers."""
    siege = poisoning.headline(Siege.of(sweep)) if sweep.besieged else None
    membership = [headline(sweep)] if sweep.audited or not siege else []
    return [*membership, *([siege] if siege else [])]


def headline(sweep: FinishedSweep) -> Headline:
    """The best defence within the budget; with several settings, in how many of them there is one."""
    rivals = {setting: candidates(sweep, setting) for setting in sweep.settings}
    cells = sum(len(_affordable(sweep, found)) for found in rivals.values())
    verdicts = tuple(_verdict(sweep, setting, found, cells) for setting, found in rivals.items())
    if not any(cell.status == "done" for cell in sweep.report.cells):
        return Headline("No cell of this grid finished.", (), None, ())
    if not sweep.audited:
        support = "The tables show how well each cell learnt its task."
        return Headline("Nobody attacks in this grid.", (support,), None, ())
    if not any(point.defended for point in sweep.points):
        support = "The tables show what each cell leaks; a grid with an axis over defences says what helps."
        return Headline("No cell of this grid has a defence.", (support,), None, ())
    if len(verdicts) == 1:
        only = verdicts[0]
        return Headline(only.statement, only.support, only.helps, verdicts)
    judged = [one for one in verdicts if one.helps is not None or one.best]
    if not judged:
        said = {one.statement for one in verdicts}
        return Headline(
            said.pop() if len(said) == 1 else "In no setting can a defence be judged.", (), None, verdicts
        )
    return Headline(*_counted(sweep, judged, len(verdicts), cells), verdicts)


def _counted(
    sweep: FinishedSweep, judged: Sequence[Verdict], settings: int, cells: int
) -> tuple[str, tuple[str, ...], bool | None]:
    """Statement, support and verdict over several settings."""
    helped = sum(bool(one.helps) for one in judged)
    open_ones = sum(one.helps is None for one in judged)
    where = f"{helped} of {len(judged)} settings"
    if helped == len(judged):
        where = "every setting" if helped == settings else "every setting that can be judged"
    within = f"within an accuracy budget of {points(sweep.report.budget)}"
    brought = f"the strongest attack down {within}."
    if helped:
        statement = f"In {where} a defence demonstrably brings {brought}"
    elif len(judged) == 1:
        statement = f"In the only setting that can be judged no defence demonstrably brings {brought}"
    else:
        statement = f"In none of {len(judged)} settings does a defence demonstrably bring {brought}"
    lower = count(open_ones, "setting")
    luck = [f"In {lower} one was measured lower, which may be luck."] if open_ones else []
    return statement, (*luck, _hindsight(cells)), True if helped else None if open_ones else False


def candidates(sweep: FinishedSweep, setting: str) -> list[Comparison]:
    """The setting's defended cells beside its undefended one; without those whose defence never acted."""
    baseline = sweep.baseline(setting)
    if baseline is None or baseline.strongest is None:
        return []
    found = [compare(baseline, point) for point in sweep.by_setting[setting] if point.defended]
    return [one for one in found if one is not None and not one.idle]


def _affordable(sweep: FinishedSweep, found: Sequence[Comparison]) -> list[Comparison]:
    return [one for one in found if (one.cost.value or 0.0) <= sweep.report.budget + ROUNDING]


def _verdict(sweep: FinishedSweep, setting: str, found: Sequence[Comparison], cells: int) -> Verdict:
    """The cell whose strongest attack falls most, among those within the budget: demonstrably, else as measured.

    `cells` is how many cells of the sweep are within the budget: the best is picked from them.
    """
    baseline = sweep.baseline(setting)
    strongest = baseline.strongest if baseline else None
    if baseline is None or strongest is None:
        return Verdict(setting, "No undefended cell was measured, so nothing can be compared.", (), None)
    if not found:
        acted = " in which the defence acted" if any(p.idle for p in sweep.by_setting[setting]) else ""
        statement = f"No defended cell{acted} was measured beside the undefended one with the same attack and seed."
        return Verdict(setting, statement, (), None)
    if not beats_guessing(baseline):
        statement = (
            f"Even without a defence no attack demonstrably does better than guessing at {fpr_name(FPR)} FPR, so "
            "there is nothing for a defence to bring down."
        )
        support = f"The strongest, {sweep.names[strongest.attack]}, has a TPR of {figure(strongest.tpr)}."
        return Verdict(setting, statement, (support, *cautions([strongest])), None)
    budget = points(sweep.report.budget)
    affordable = _affordable(sweep, found)
    if not affordable:
        cheapest = min(found, key=lambda one: one.cost.value or 0.0)
        statement = f"No defence stays within an accuracy budget of {budget}."
        return Verdict(setting, statement, (_measured("The cheapest is", sweep, cheapest),), False)
    lowest = min(affordable, key=_rank)
    falling = [one for one in affordable if _falls(one)]
    if not falling:
        statement = f"No defence within an accuracy budget of {budget} brings the strongest attack down."
        both = ", or the strongest that was run on both," if any(one.absent for one in affordable) else ""
        lead = f"Every defence within the budget left it{both} as high or higher; the lowest measured is"
        return Verdict(setting, statement, (_measured(lead, sweep, lowest),), False)
    shown = [one for one in falling if demonstrable(one, cells)]
    best = min(shown or falling, key=_rank)
    why = _support(sweep, best, cells, bool(shown))
    if not shown:
        lead = (
            f"No defence within an accuracy budget of {budget} demonstrably brings the strongest attack down. The "
            "lowest measured is"
        )
        return Verdict(setting, _measured(lead, sweep, best), tuple(why), None, best)
    if lowest is not best:
        why.append(f"{lowest.point.short} was measured lower still, which may be luck.")
    lead = f"The best defence within an accuracy budget of {budget} is"
    return Verdict(setting, _fall(lead, sweep, best), tuple(why), True, best)


def _rank(found: Comparison) -> tuple[float, float]:
    return -(found.fall.value or 0.0), found.cost.value or 0.0


def _falls(found: Comparison) -> bool:
    """Whether the TPR falls, and by so much that the figures show it."""
    before, after = found.before.tpr.value, found.after.tpr.value
    return (found.fall.value or 0.0) > 0 and percent(before) != percent(after)


def figure(measured: Measured) -> str:
    """A share with its interval: 12.3 % (95 % interval 10.1–14.7 %)."""
    interval = f" (95{SPACE}% interval {span(measured)}{SPACE}%)" if span(measured) else ""
    return f"{percent(measured.value)}{interval}"


def done(sweep: FinishedSweep) -> str:
    """What was run, in a sentence."""
    report = sweep.report
    finished = sum(cell.status == "done" for cell in report.cells)
    parts = [count(len(sweep.points), "cell")]
    settings = sweep.settings if sweep.audited or not sweep.besieged else Places(sweep).settings
    if len(settings) > 1:
        parts.append(count(len(settings), "setting"))
    bounds = len(sweep.upper_bounds)
    parts.append(count(len({cell.seed for cell in report.cells}), "seed"))
    if sweep.audited or not sweep.besieged:
        parts.append(count(len(sweep.names) - bounds, "attack"))
    if bounds:
        parts.append(count(bounds, "upper bound"))
    if adversaries := len(attacks_made(sweep)):
        parts.append(count(adversaries, "poisoning attack"))
    runs = f"{finished:,} of {count(len(report.cells), 'run')} finished"
    return f"{listed(parts)}; {runs}."


def warnings(sweep: FinishedSweep) -> list[str]:
    """What must be known before any figure is read, each once."""
    found = []
    missing = [cell for cell in sweep.report.cells if cell.status == "missing"]
    if failed := _failed(sweep, others=True):
        whose = _whose_cells(failed)
        found.append(f"{count(len(failed), 'run')} failed: what is said of {whose} rests on the other seeds.")
    if failed := _failed(sweep, others=False):
        whose = _whose_cells(failed)
        it = "them" if whose == "their cells" else "it"
        found.append(f"{count(len(failed), 'run')} failed: no run of {whose} finished, so nothing is said of {it}.")
    if missing:
        have = "has" if len(missing) == 1 else "have"
        found.append(f"{count(len(missing), 'run')} {have} not been made yet.")
    if sweep.report.paper and (other := caution(sweep.report.paper)):
        found.append(other)
    if bare := _settings_without(sweep):
        found.append(
            f"No undefended cell was measured in {listed(bare)}: what a defence changes there is not known."
        )
    if sweep.styles and sweep.names and not sweep.adapted - sweep.upper_bounds:
        found.append(
            "No attack here is told of the defence. An adversary who knows it may find more than these figures say."
        )
    if partial := [point.called for point in sweep.points if point.partial]:
        found.append(
            f"Only some clients are defended in {listed(partial)}: the figures pool all audited clients, so they "
            "say little of those that use the defence."
        )
    return found


def _failed(sweep: FinishedSweep, *, others: bool) -> list[Cell]:
    """The failed runs of the cells of which another seed finished, or of those of which none did."""
    return [
        cell
        for point in sweep.points
        if bool(point.done) is others
        for cell in point.cells
        if cell.status == "failed"
    ]


def _whose_cells(runs: Sequence[Cell]) -> str:
    if len(runs) == 1:
        return "its cell"
    return "their cell" if len({cell.name for cell in runs}) == 1 else "their cells"


def idle(sweep: FinishedSweep) -> list[tuple[str, list[str]]]:
    """Component that never acted -> the cells in which it did not."""
    found: dict[str, list[str]] = {}
    for point in sweep.points:
        for label, seeds in point.idle.items():
            if label not in point.unproven:
                found.setdefault(label, []).append(_called(point, seeds))
    return list(found.items())


def unproven(sweep: FinishedSweep) -> list[str]:
    """The components of which nothing tells whether they acted, a sentence each with the cells."""
    found: dict[tuple[str, str], list[str]] = {}
    for point in sweep.points:
        for label, counter in point.unproven.items():
            found.setdefault((label, counter), []).append(_called(point, point.idle.get(label, [])))
    return [doubted(label, counter, f" in {listed(cells)}") for (label, counter), cells in found.items()]


def _called(point: Point, seeds: Sequence[int]) -> str:
    """The cell's name, with the seeds where they are not all of it."""
    return point.called + (f" ({_seeds(seeds)})" if len(seeds) < len(point.done) else "")


def cautions(figures: Sequence[Figure | Side]) -> list[str]:
    """What the runs' own warnings say of these TPRs, each once."""
    return list(dict.fromkeys(sentence(text) for one in figures for text in one.warnings))


def strongest_cautions(sweep: FinishedSweep) -> list[str]:
    """What the runs say of the strongest attacks' TPRs."""
    return cautions([point.strongest for point in sweep.points if point.strongest])


def all_cautions(sweep: FinishedSweep) -> list[str]:
    """What the runs say of any TPR at the frontier's FPR."""
    return cautions([one for point in sweep.points for one in point.figures.values()])


def basis(sweep: FinishedSweep) -> str:
    """What the intervals cover."""
    most = max((len(point.done) for point in sweep.points), default=0)
    if most < 2:
        return (
            f"One seed: the intervals of TPR and AUC are the run’s own 95{SPACE}% intervals, test accuracy has "
            "none, and nothing here says how another training run would come out."
        )
    return (
        f"Means over seeds with Student’s 95{SPACE}% interval. Those of TPR and AUC are no narrower than the runs’ "
        "own intervals imply for their mean; accuracies that are the same with every seed have none. A cell with "
        "one finished seed has its run’s own interval for TPR and AUC, and none for accuracy."
    )


def epsilons(point: Point) -> list[str]:
    """The differential privacy that the cell's defences spent and what it bounds, each guarantee once."""
    guarantees = (guarantee for cell in point.done for guarantee in cell.privacy)
    return list(dict.fromkeys(f"{spent(one)}: {bound(one)}" for one in guarantees))


def unfinished(sweep: FinishedSweep) -> list[tuple[str, int, str, str]]:
    """Cell, seed, state and reason of every run that failed or was not made."""
    reasons = {"failed": "no reason was recorded", "missing": "not made yet; go on with --resume"}
    return [
        (called(cell), cell.seed, cell.status, cell.error or reasons[cell.status])
        for cell in sweep.report.cells
        if cell.status != "done"
    ]


def _fall(lead: str, sweep: FinishedSweep, found: Comparison) -> str:
    """What a defence demonstrably does."""
    before, after = _tprs(sweep, found)
    move = f"it brings {_whose(found)} from {before} to {after}, and {_price(found)}"
    return f"{lead} {found.point.short}: {_where(found)}{move}."


def _measured(lead: str, sweep: FinishedSweep, found: Comparison) -> str:
    """What was measured of a defence, without saying that it is the cause."""
    before, after = _tprs(sweep, found)
    here = f"{_where(found)}{_whose(found)} is {after} with it and {before} without, and it {_price(found)}"
    return f"{lead} {found.point.short}: {here}."


def _where(found: Comparison) -> str:
    """The seeds, where they are not all."""
    return f"on {_seeds(found.seeds)}, which alone both cells finished, " if found.partly else ""


def _whose(found: Comparison) -> str:
    return (
        f"the strongest attack’s {RATE}"
        if found.absent is None
        else f"the {RATE} of the strongest attack run on both"
    )


def _tprs(sweep: FinishedSweep, found: Comparison) -> tuple[str, str]:
    before, after = (
        f"{percent(side.tpr.value)} ({sweep.names[side.attack]})" for side in (found.before, found.after)
    )
    return (percent(found.before.tpr.value) if found.before.attack == found.after.attack else before), after


def _price(found: Comparison) -> str:
    cost = found.cost.value or 0.0
    if not cost:
        return "costs nothing in test accuracy"
    return f"{'costs' if cost > 0 else 'gains'} {points(abs(cost))} of test accuracy"


def _support(sweep: FinishedSweep, best: Comparison, cells: int, shown: bool) -> list[str]:
    """What the best defence's figures rest on."""
    fall, cost = best.fall, best.cost
    said = []
    if len(best.seeds) > 1:
        over = "" if (cost.high or 0.0) <= sweep.report.budget + ROUNDING else ", so the budget may be broken"
        falls = f" (95{SPACE}% interval {points_span(fall)})" if points_span(fall) else ""
        costs = f" ({points_span(cost)}{over})" if points_span(cost) else ", the same with every seed"
        said.append(
            f"Over {count(len(best.seeds), 'seed')} the TPR falls by {points(fall.value)}{falls} at a cost of "
            f"{points(cost.value)}{costs}."
        )
    else:
        said.append("One seed: how another training run would come out is not known.")
    if best.absent is not None:
        said.append(f"{sweep.names[best.absent]}, the strongest attack without a defence, was not run on it.")
    elif not shown:
        among = f" for the lowest of {count(cells, 'cell')}" if cells > 1 else ""
        said.append(f"Luck could make a fall as large as this{among}.")
    left = best.after.tpr.value or 0.0
    if left > float(FPR):
        said.append(
            f"Guessing would recognise {fpr_name(FPR)}: {rounded(left / float(FPR))} times as many are still found."
        )
    missing = [label for label in best.baseline.attacks if label not in (*best.shared, best.absent)]
    if missing:
        said.append(f"Not measured against it: {listed([sweep.names[label] for label in missing])}.")
    if sweep.adapted - sweep.upper_bounds and not any(best.point.figures[label].adapted for label in best.judged):
        said.append("No attack on it was told of the defence.")
    if best.point.partial:
        said.append("It defends some clients only, and the figures pool all audited ones.")
    return [*said, _hindsight(cells), *cautions([best.before, best.after])]


def _hindsight(cells: int) -> str:
    if cells < 2:
        return "Which attack is strongest was chosen with the truth in hand."
    return (
        f"Which attack is strongest, and which of the {count(cells, 'cell')} within the budget is best, was chosen "
        "with the truth in hand."
    )


def _settings_without(sweep: FinishedSweep) -> list[str]:
    """The settings with a defence but without a baseline."""
    if not sweep.audited:
        return []
    return [setting_name(sweep, s) for s in sweep.settings if sweep.families(s) and sweep.baseline(s) is None]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {listed([str(seed) for seed in seeds])}"
