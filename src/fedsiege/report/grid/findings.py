"""What a sweep says, in sentences: which defence helps, at what cost, and what to be careful about."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedsiege.report.findings import AGAINST_WHOM, UNITS
from fedsiege.report.grid.finished import FPR, UNKNOWN, Figure, FinishedSweep, Point, spread
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
OUTSIDE = "cells outside the product"
EVERY = "all cells"
STRONGEST = "Strongest on each cell"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one setting says: whether a defence helps within the budget (None: nothing can be said), and which."""

    setting: str
    statement: str
    support: tuple[str, ...]
    helps: bool | None
    point: Point | None = None


@dataclass(frozen=True, slots=True)
class Headline:
    """The sweep in one sentence, what it rests on, and the verdict of each setting."""

    statement: str
    support: tuple[str, ...]
    helps: bool | None
    verdicts: tuple[Verdict, ...]


def setting_name(sweep: FinishedSweep, setting: str) -> str:
    """A setting as a heading says it."""
    return setting or (EVERY if len(sweep.settings) == 1 else OUTSIDE)


def headline(sweep: FinishedSweep) -> Headline:
    """The best defence within the budget; with several settings, in how many of them there is one."""
    verdicts = tuple(verdict(sweep, setting) for setting in sweep.settings)
    if not any(cell.status == "done" for cell in sweep.report.cells):
        return Headline("No cell of this grid finished.", (), None, ())
    if not any(point.defended for point in sweep.points):
        support = "The tables show what each cell leaks; a grid with an axis over defences says what helps."
        return Headline("No cell of this grid has a defence.", (support,), None, ())
    if len(verdicts) == 1:
        only = verdicts[0]
        return Headline(only.statement, only.support, only.helps, verdicts)
    judged = [one for one in verdicts if one.helps is not None]
    helped = sum(bool(one.helps) for one in judged)
    if not judged:
        said = {one.statement for one in verdicts}
        return Headline(
            said.pop() if len(said) == 1 else "In no setting can a defence be judged.", (), None, verdicts
        )
    where = f"{helped} of {len(judged)} settings"
    if helped == len(judged):
        where = "every setting" if helped == len(verdicts) else "every setting that can be judged"
    within = f"within an accuracy budget of {points(sweep.report.budget)}"
    statement = (
        f"In {where} a defence brings the strongest attack down {within}."
        if helped
        else f"In none of {len(judged)} settings does a defence bring the strongest attack down {within}."
    )
    return Headline(statement, (_hindsight(),), helped > 0, verdicts)


def verdict(sweep: FinishedSweep, setting: str) -> Verdict:
    """The defended cell of the setting whose strongest attack is weakest, among those within the budget."""
    baseline = sweep.baseline(setting)
    strongest = baseline.strongest if baseline else None
    if baseline is None or strongest is None:
        return Verdict(setting, "No undefended cell was measured, so nothing can be compared.", (), None)
    judged = [p for p in sweep.by_setting[setting] if p.defended and p.strongest and sweep.cost(p).n]
    if not judged:
        return Verdict(setting, "No defended cell was measured beside the undefended one.", (), None)
    if not strongest.above_guessing:
        statement = (
            f"Even without a defence no attack demonstrably does better than guessing at {fpr_name(FPR)} FPR, so "
            "there is nothing for a defence to bring down."
        )
        support = f"The strongest, {sweep.names[strongest.attack]}, has a TPR of {figure(strongest.tpr)}."
        return Verdict(setting, statement, (support, *cautions([strongest])), None)
    budget = points(sweep.report.budget)
    affordable = [p for p in judged if (sweep.cost(p).value or 0.0) <= sweep.report.budget + ROUNDING]
    if not affordable:
        cheapest = min(judged, key=lambda p: sweep.cost(p).value or 0.0)
        statement = f"No defence stays within an accuracy budget of {budget}."
        return Verdict(setting, statement, (_fall("The cheapest is", sweep, baseline, cheapest),), False)
    best = min(affordable, key=lambda p: (_leak(p), sweep.cost(p).value or 0.0))
    if _leak(best) >= _leak(baseline):
        statement = f"No defence within an accuracy budget of {budget} brings the strongest attack down."
        return Verdict(setting, statement, (_fall("The best of them is", sweep, baseline, best),), False)
    lead = f"The best defence within an accuracy budget of {budget} is"
    why = (*_support(sweep, baseline, best), _hindsight())
    return Verdict(setting, _fall(lead, sweep, baseline, best), why, True, best)


def reduction(baseline: Point, point: Point) -> Measured:
    """By how much the strongest attack's TPR falls, paired by seed."""
    before, after = baseline.strongest, point.strongest
    if before is None or after is None:
        return UNKNOWN
    pairs = [before.by_seed[seed] - tpr for seed, tpr in after.by_seed.items() if seed in before.by_seed]
    return spread(pairs, (-1.0, 1.0))


def figure(measured: Measured) -> str:
    """A share with its interval: 12.3 % (95 % interval 10.1–14.7 %)."""
    interval = f" (95{SPACE}% interval {span(measured)}{SPACE}%)" if span(measured) else ""
    return f"{percent(measured.value)}{interval}"


def done(sweep: FinishedSweep) -> str:
    """What was run, in a sentence."""
    report = sweep.report
    finished = sum(cell.status == "done" for cell in report.cells)
    parts = [count(len(sweep.points), "cell")]
    if len(sweep.settings) > 1:
        parts.append(count(len(sweep.settings), "setting"))
    parts += [count(len({cell.seed for cell in report.cells}), "seed"), count(len(sweep.names), "attack")]
    runs = f"{finished:,} of {count(len(report.cells), 'run')} finished"
    return f"{listed(parts)}; {runs}."


def warnings(sweep: FinishedSweep) -> list[str]:
    """What must be known before any figure is read, each once."""
    found = []
    failed = [cell for cell in sweep.report.cells if cell.status == "failed"]
    missing = [cell for cell in sweep.report.cells if cell.status == "missing"]
    if failed:
        whose = "its cell" if len(failed) == 1 else "their cells"
        found.append(f"{count(len(failed), 'run')} failed: what is said of {whose} rests on the other seeds.")
    if missing:
        have = "has" if len(missing) == 1 else "have"
        found.append(f"{count(len(missing), 'run')} {have} not been made yet.")
    if bare := _settings_without(sweep):
        found.append(
            f"No undefended cell was measured in {listed(bare)}: what a defence changes there is not known."
        )
    if sweep.styles and sweep.names and not sweep.adapted:
        found.append(
            "No attack here is told of the defence. An adversary who knows it may find more than these figures say."
        )
    return found


def idle(sweep: FinishedSweep) -> list[tuple[str, list[str]]]:
    """Component that never acted -> the cells in which it did not."""
    found: dict[str, list[str]] = {}
    for point in sweep.points:
        for label, seeds in point.idle.items():
            some = f" ({_seeds(seeds)})" if len(seeds) < len(point.done) else ""
            found.setdefault(label, []).append(point.name + some)
    return list(found.items())


def cautions(figures: Sequence[Figure]) -> list[str]:
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
        f"Means over seeds with Student’s 95{SPACE}% interval; a cell with one finished seed has its run’s own "
        "interval for TPR and AUC, and none for accuracy."
    )


def epsilons(point: Point) -> list[str]:
    """The differential privacy that the cell's defences spent, each guarantee once."""
    found = []
    for one in (guarantee for cell in point.done for guarantee in cell.privacy):
        spent = "no finite ε" if one.epsilon is None else f"ε{SPACE}={SPACE}{one.epsilon:.4g}"
        found.append(f"{spent} at δ{SPACE}={SPACE}{one.delta:g}, {UNITS[one.unit]}, {AGAINST_WHOM[one.against]}")
    return list(dict.fromkeys(found))


def unfinished(sweep: FinishedSweep) -> list[tuple[str, int, str, str]]:
    """Cell, seed, state and reason of every run that failed or was not made."""
    reasons = {"failed": "no reason was recorded", "missing": "not made yet; go on with --resume"}
    return [
        (cell.name, cell.seed, cell.status, cell.error or reasons[cell.status])
        for cell in sweep.report.cells
        if cell.status != "done"
    ]


def _leak(point: Point) -> float:
    return point.strongest.tpr.value or 0.0 if point.strongest else 0.0


def _fall(lead: str, sweep: FinishedSweep, baseline: Point, point: Point) -> str:
    before, after = baseline.strongest, point.strongest
    assert before is not None
    assert after is not None
    cost = sweep.cost(point).value or 0.0
    price = f"costs {points(cost)}" if cost > 0 else f"gains {points(-cost)}" if cost < 0 else "costs nothing"
    whose = _attack(sweep, before), _attack(sweep, after)
    names = ("", f" ({whose[0]})") if whose[0] == whose[1] else (f" ({whose[0]})", f" ({whose[1]})")
    move = (
        f"leaves the strongest attack’s {RATE} at {percent(after.tpr.value)}{names[1]}"
        if percent(before.tpr.value) == percent(after.tpr.value)
        else f"brings the strongest attack’s {RATE} from {percent(before.tpr.value)}{names[0]} to "
        f"{percent(after.tpr.value)}{names[1]}"
    )
    of = " of test accuracy" if cost else " in test accuracy"
    return f"{lead} {point.short}: it {move}, and {price}{of}."


def _attack(sweep: FinishedSweep, figure: Figure) -> str:
    return sweep.names[figure.attack]


def _support(sweep: FinishedSweep, baseline: Point, best: Point) -> list[str]:
    """What the best defence's figures rest on."""
    fall, cost = reduction(baseline, best), sweep.cost(best)
    said = []
    if points_span(fall) and points_span(cost):
        luck = "" if (fall.low or 0.0) > 0 else ", so the fall may be luck"
        over = "" if (cost.high or 0.0) <= sweep.report.budget + ROUNDING else ", so the budget may be broken"
        said.append(
            f"Over {count(cost.n or 0, 'seed')} the TPR falls by {points(fall.value)} (95{SPACE}% interval "
            f"{points_span(fall)}{luck}) at a cost of {points(cost.value)} ({points_span(cost)}{over})."
        )
    else:
        said.append("One seed: how another training run would come out is not known.")
    after = best.strongest
    assert after is not None
    left = after.tpr.value or 0.0
    if left > float(FPR):
        said.append(
            f"Guessing would recognise {fpr_name(FPR)}: {rounded(left / float(FPR))} times as many are still found."
        )
    absent = [sweep.names[label] for label in baseline.figures if label not in best.figures]
    if absent:
        said.append(f"Not measured against it: {listed(absent)}.")
    if sweep.adapted and not any(label in sweep.adapted for label in best.figures):
        said.append("No attack on it was told of the defence.")
    if best.idle:
        said.append(f"But {listed(list(best.idle))} never acted in it.")
    return [*said, *cautions([one for one in (baseline.strongest, after) if one])]


def _hindsight() -> str:
    return "Which attack is strongest was chosen with the truth in hand."


def _settings_without(sweep: FinishedSweep) -> list[str]:
    """The settings with a defence but without a baseline."""
    return [setting_name(sweep, s) for s in sweep.settings if sweep.families(s) and sweep.baseline(s) is None]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {listed([str(seed) for seed in seeds])}"
