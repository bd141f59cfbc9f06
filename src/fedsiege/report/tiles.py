"""The figures that stand large below a page's headlines."""

from fedsiege.report.finding import About, Tile
from fedsiege.report.finished import Finished, Row
from fedsiege.report.poisoning import decided
from fedsiege.report.poisoning.judged import UNKNOWN, reached
from fedsiege.report.poisoning.rows import moments
from fedsiege.report.poisoning.schema import Decisions, Lasting, Poisoning
from fedsiege.report.words import SPACE, count, fixed, fixed_span, fpr_name, percent, span


def tiles(run: Finished, about: About) -> list[Tile]:
    """Those of the headline on membership or on poisoning."""
    if about == "poisoning":
        return _hijack(run.poisoning) if run.poisoning else []
    return [*_membership(run), _learnt(run)]


def _membership(run: Finished) -> list[Tile]:
    tests = run.report.null_test
    if tests:
        passed, attacks = sum(one.passed for one in tests), len({one.attack for one in tests})
        return [Tile("Null tests passed", f"{passed} of {len(tests)}", count(attacks, "attack"))]
    best = run.best(run.rows())
    if best is None:
        return []
    fpr, rate = run.headline_fpr, best.rate(run.headline_fpr)
    interval = f", {span(rate)}{SPACE}%" if span(rate) else ""
    auc = f", {fixed_span(best.auc)}" if fixed_span(best.auc) else ""
    return [
        Tile(f"TPR at {fpr_name(fpr)} FPR", percent(rate.value), best.name + interval),
        Tile("AUC", fixed(best.auc.value), best.name + auc),
        *_worst(run, best),
    ]


def _worst(run: Finished, best: Row) -> list[Tile]:
    if "worst" not in run.wheres:
        return []
    return [
        Tile(
            "Client that leaks most",
            percent(row.rate(run.headline_fpr).value),
            f"client {row.worst_target}, same attack and FPR",
        )
        for row in run.rows("worst")
        if row.attack == best.attack
    ]


def _learnt(run: Finished) -> Tile:
    task = run.report.task
    trained = task.train_accuracy
    note = "of the final model" if trained is None else f"{percent(trained)} on training data"
    return Tile("Test accuracy", percent(task.accuracy), note)


def _hijack(poisoning: Poisoning) -> list[Tile]:
    found = _decided(poisoning.decisions) if poisoning.decisions else []
    if success := poisoning.success:
        moment, value = reached(success)
        when = "at the end" if moment == "last" else moments(poisoning).get(moment, "").lower()
        interval = f", {span(value)}{SPACE}%" if span(value) else ""
        found.append(Tile("Backdoor accuracy", percent(value.value), when + interval))
        if success.persistence:
            found.append(_lasting(success.persistence))
    last, before = poisoning.main.last or UNKNOWN, poisoning.main.before or UNKNOWN
    note = "at the end"
    if before.value is not None and poisoning.adversary and not poisoning.fresh:
        note += f", {percent(before.value)} before the attack"
    found.append(Tile("Main accuracy", percent(last.value), note))
    attackers, honest = poisoning.detection.attackers, poisoning.detection.honest
    if attackers.rejected:
        others = f"; {percent(honest.rejected.value)} of honest ones" if honest.rejected else ""
        note = f"of {count(attackers.usable, 'answer')}{others}"
        found.append(Tile("Attackers’ answers rejected", percent(attackers.rejected.value), note))
    return found


def _decided(found: Decisions) -> list[Tile]:
    best = found.best
    note = f"over {decided.over(found)}"
    interval = f", {span(found.last)}{SPACE}%" if span(found.last) else ""
    return [
        Tile("Right decisions", percent(found.last.value), f"{note}{interval}; guessing {percent(found.chance)}"),
        Tile("In the best round", percent(best.value), f"round {best.round}, {decided.HINDSIGHT}"),
    ]


def _lasting(one: Lasting) -> Tile:
    rounds = f"{one.rounds:,} or more" if one.censored else f"{one.rounds:,}"
    return Tile("Rounds that it lasts", rounds, f"at 50{SPACE}% or above, after the last attack")
