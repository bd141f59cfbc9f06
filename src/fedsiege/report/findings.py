"""What a finished run says, in sentences and as rows of tables."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from fedsiege.report.finding import Finding
from fedsiege.report.finished import Finished, Row, Where, attacks_of
from fedsiege.report.poisoning import findings as poisoning
from fedsiege.report.schema import Guarantee, Measured, Published, Rate
from fedsiege.report.words import (
    SPACE,
    count,
    digits,
    fixed,
    fixed_span,
    fpr_name,
    listed,
    named,
    percent,
    rounded,
    sentence,
    span,
)

AGAINST = {
    "all": "all non-members",
    "ifl": "other clients’ data (IFL)",
    "ofl": "nobody’s data (OFL)",
}
WHERE = {
    "pooled": "all audited clients pooled",
    "mean": "mean over clients",
    "worst": "the client that leaks most",
    "any": "member of any client",
    "coalition": "in the data of a coalition, taken for one client",
}
UNITS = {"example": "for each single example", "client": "for each client’s data as a whole"}
AGAINST_WHOM = {
    "server": "against a server that sees single updates",
    "aggregate": "against whoever sees only what was aggregated, any one other client included",
}
BOUND_AT = "0.001"
"""The false-positive rate at which a guarantee's bound on attacks is said."""
REDRAWN = (
    "Non-members were drawn anew for every client and round, as published code does. That alone makes tens of per "
    "cent TPR at 0.1 % FPR out of nothing: compare with the paper, quote nothing"
)


@dataclass(frozen=True, slots=True)
class Compared:
    """A line of the paper comparison, written out."""

    metric: str
    published: str
    spread: str
    ours: str
    interval: str


@dataclass(frozen=True, slots=True)
class Column:
    """What the figures at one FPR share: the usual count of false positives, and whether all are doubtful."""

    fpr: str
    false_positives: int | None
    doubtful: bool


def where_name(run: Finished, where: Where) -> str:
    """Whose figures, in words."""
    if where == "pooled" and len(run.targets) == 1:
        return f"client {run.targets[0]}"
    return f"client {where}" if isinstance(where, int) else WHERE[where]


def members(run: Finished, number: int) -> str:
    """So many members; in a null test nobody is one."""
    return count(number, "pseudo-member" if run.report.null_test else "member")


def all_pooled(run: Finished) -> list[Row]:
    """The attacks on all audited clients taken together, as curves show them, whatever the run's default is."""
    return run.rows("pooled" if "pooled" in run.wheres else None)


def basis(run: Finished, rows: Sequence[Row]) -> str:
    """What a table's figures are measured on: 400 members and 1,000 non-members; upper bounds on half of them."""
    row = (attacks_of(rows) or rows)[0]
    different = f" ({row.n_distinct:,} different ones)" if row.n_distinct < row.n_nonmembers else ""
    return f"{members(run, row.n_members)} and {count(row.n_nonmembers, 'non-member')}{different}"


def headlines(run: Finished) -> list[Finding]:
    """The findings of the run's parts: of membership, where it was audited, and of poisoning."""
    hijack = poisoning.finding(run.poisoning)
    membership = [finding(run)] if run.audited or run.report.null_test or not hijack else []
    return [*membership, *([hijack] if hijack else [])]


def finding(run: Finished) -> Finding:
    """The headline on membership: which attack finds how many members at the headline FPR, beside guessing."""
    if run.report.null_test:
        return _null_finding(run)
    every = run.rows()
    rows, best = attacks_of(every), run.best(every)
    if best is None:
        bounds = ", only an upper bound on what attacks can find" * bool(every)
        return Finding(f"No attack was measured in this run{bounds}.", (), None)
    return _leak(run, best) if _above_guessing(best, run.headline_fpr) else _no_leak(run, best, rows)


def defended(run: Finished) -> str:
    """Which defences the clients used, in a sentence; nothing where there were none."""
    used = [one.label for one in run.report.components if one.kind == "client_defence"]
    if not used:
        return ""
    every = all(set(used) <= set(client.defences) for client in run.report.task.clients)
    return f"{'The clients' if every else 'Some clients'} defended themselves with {listed(used)}."


def guarded(run: Finished) -> str:
    """What the server put between the clients' answers and the model; nothing where it took a plain mean."""
    used = [one.label for one in run.report.components if one.kind == "server_defence"]
    said = [f"defended itself with {listed(used)}"] if used else []
    said += [f"combined updates by {rule}" for rule in _rules(run) if rule != "fedavg"]
    return f"The server {listed(said)}." if said else ""


def _rules(run: Finished) -> list[str]:
    """The aggregation rule; its label is the configured one where it says more than that it is the rule."""
    rules = [one for one in run.report.components if one.kind == "aggregator"]
    return [one.name if one.label == "aggregator" else one.label for one in rules]


def done(run: Finished) -> list[str]:
    """What was done, in a few sentences: the federation, its defences, the candidates, the attacks."""
    report = run.report
    task = report.task
    rounds = task.history[-1].round if task.history else 0
    name = named(report.experiment.config.get("model"))
    model = f"{name}, " if name else ""
    clients = count(len(task.clients), "client")
    owned = sum(client.examples for client in task.clients)
    sentences = [
        f"{clients} trained a model ({model}{count(task.parameters, 'parameter')}) on {report.data.origin} "
        f"({count(task.classes, 'class', 'classes')}, {count(owned, 'training example')})"
        + (f" for {count(rounds, 'round')}." if rounds else "."),
    ]
    if task.accuracy is not None:
        learnt = f"The global model classifies {percent(task.accuracy)} of the held-out examples correctly"
        if task.train_accuracy is not None:
            learnt += f", and {percent(task.train_accuracy)} of those it was trained on"
        sentences.append(learnt + ".")
    between = [defended(run), guarded(run), *poisoning.done(run.poisoning, len(task.clients))]
    sentences[1:1] = [one for one in between if one]
    rows = run.rows()
    if rows:
        sentences.append(_question(run, rows))
    return sentences


def warnings(run: Finished) -> list[str]:
    """The run's warnings but for the headline table's own footnotes, each once; a copied flaw comes first."""
    flaw = [] if frozen(run) else [f"{REDRAWN} (compat: {run.report.data.candidates['compat']})."]
    footnotes = cautions(run, [*run.rows(), *all_pooled(run)])
    return list(dict.fromkeys([*flaw, *(one for one in run.report.warnings if sentence(one) not in footnotes)]))


def frozen(run: Finished) -> bool:
    """Whether the candidates were drawn once, and not anew as some published code does."""
    return run.report.data.candidates.get("compat") in (None, "none")


def cautions(run: Finished, rows: Sequence[Row]) -> list[str]:
    """What these figures' own warnings say, each once."""
    said = (row.rate(fpr).warning for row in rows for fpr in run.fprs)
    return list(dict.fromkeys(sentence(warning) for warning in said if warning))


def columns(run: Finished, rows: Sequence[Row]) -> list[Column]:
    """A table's TPR columns."""
    found = []
    for fpr in run.fprs:
        rates = [row.rate(fpr) for row in rows]
        spent = Counter(rate.false_positives for rate in rates).most_common(1)
        found.append(
            Column(fpr, spent[0][0] if spent else None, bool(rates) and all(rate.warning for rate in rates))
        )
    return found


def by_round(run: Finished) -> list[tuple[int, list[float | None]]]:
    """Each recorded round with the TPR of every curve; an attack that reads all rounds stands in the last."""
    rounds = sorted({number for one in run.curves.rounds for number in one.round})
    last = rounds[-1] if rounds else 0
    tables = [
        dict(zip(one.round, one.tpr, strict=False)) if one.kind == "single" else {last: one.tpr[-1]}
        for one in run.curves.rounds
    ]
    return [(number, [table.get(number) for table in tables]) for number in rounds]


def compared(figure: Published) -> Compared:
    """A published figure and ours, written alike."""
    ours = figure.ours or Measured(value=None, low=None, high=None)
    if not figure.metric.startswith("tpr@"):
        spread = f"± {figure.spread:.3f}" if figure.spread is not None else ""
        name = "AUC" if figure.metric == "auc" else figure.metric
        return Compared(name, fixed(figure.published), spread, fixed(ours.value), fixed_span(ours))
    spread = f"± {100 * figure.spread:.2f}" if figure.spread is not None else ""
    name = f"TPR at {fpr_name(figure.metric.removeprefix('tpr@'))} FPR"
    return Compared(name, digits(figure.published), spread, digits(ours.value), span(ours))


def caution(rate: Rate) -> str:
    """A figure's warning as a sentence, or nothing."""
    return sentence(rate.warning) if rate.warning else ""


def idle(run: Finished) -> list[str]:
    """The components that never acted."""
    return [one.label for one in run.report.components if not one.acted and not one.unproven]


def unproven(run: Finished) -> list[str]:
    """The components of which nothing tells whether they acted, a sentence each."""
    return [doubted(one.label, one.unproven) for one in run.report.components if one.unproven and not one.acted]


def doubted(label: str, counter: str, where: str = "") -> str:
    """That a component counted nothing by the name that was to tell that it acted; `where` begins with a space."""
    return f"{label} counted nothing as `{counter}`{where}: whether it acted is not known."


def guarantees(run: Finished) -> list[str]:
    """The differential-privacy guarantees that the run's defences spent, with what each bounds and rests on."""
    return [
        f"{one.label}: {spent(one)} ({one.accountant}). {sentence(bound(one))} {sentence(one.note)}"
        for one in run.report.privacy
    ]


def coalitions(run: Finished) -> list[str]:
    """Who defended together, and whether a server can tell it from the uploads; empty without a coalition."""
    about = run.report.coalitions
    if about is None:
        return []
    seen = {tuple(one.members): one for one in about.detected}
    said = []
    for label, members in about.members.items():
        one = seen.pop(tuple(members), None)
        told = "what balances in the tails of the uploads does not give them away"
        if one is not None:
            told = (
                "a server can tell this from the tails of the uploads, whose noise cancels to "
                f"{one.balance:.2g} of what independent noise would leave"
            )
        said.append(f"{label}: {clients_of(members)} defend together; {told}.")
    said += [f"A server would take {clients_of(list(one))} for a coalition, which is wrong." for one in seen]
    if about.unbalanced:
        said.append(f"The uploads of {clients_of(about.unbalanced)} are noisy, and no others’ balance them.")
    return said


def clients_of(numbers: list[int]) -> str:
    """Clients by number, in words."""
    *first, last = map(str, numbers)
    return f"clients {', '.join(first)} and {last}" if first else f"client {last}"


def spent(one: Guarantee) -> str:
    """A guarantee's epsilon, what it protects and against whom."""
    epsilon = (
        f"ε{SPACE}={SPACE}{one.epsilon:.4g} at δ{SPACE}={SPACE}{one.delta:g}"
        if one.epsilon is not None
        else "no finite ε"
    )
    return f"{epsilon}, {protected(one)}, {AGAINST_WHOM[one.against]}"


def protected(one: Guarantee) -> str:
    """What a guarantee protects, and whose."""
    if not one.clients:
        return UNITS[one.unit]
    if one.unit == "example":
        return f"{UNITS['example']} {one.clients}"
    return f"for the data {one.clients}, each client’s as a whole"


def ceiling(one: Guarantee, fpr: str = BOUND_AT) -> float:
    """The largest true-positive rate that any test of whether the unit was there has at this FPR; 1: no bound."""
    if one.epsilon is None or one.epsilon > -math.log(float(fpr)):
        return 1.0
    return min(1.0, math.exp(one.epsilon) * float(fpr) + one.delta)


def bound(one: Guarantee, fpr: str = BOUND_AT) -> str:
    """What a guarantee says about every attack, in words."""
    most, at = ceiling(one, fpr), f"at {fpr_name(fpr)} FPR"
    if round(most, 3) == 1:
        return f"no useful bound on attacks {at}"
    of = {"example": "these members", "client": "the cases in which such a client’s updates are not all zero"}
    return f"{at} no such adversary recognises more than {percent(most)} of {of[one.unit]}"


def _question(run: Finished, rows: list[Row]) -> str:
    attacks = attacks_of(rows)
    first = (attacks or rows)[0]
    others = {
        row.against: row.n_nonmembers
        for kind in ("ifl", "ofl")
        for row in run.rows(against=kind)
        if row.attack == first.attack
    }
    parts = [
        f"{others[kind]:,}{SPACE}{words}"
        for kind, words in (("ifl", "of other clients"), ("ofl", "that nobody trained on"))
        if others.get(kind)
    ]
    mixed = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    who = count(len(run.targets), "audited client") if run.targets else "the audited clients"
    scored = [count(len(attacks), "attack")] if attacks else []
    scored += [count(len(rows) - len(attacks), "upper bound")] if len(attacks) < len(rows) else []
    return (
        f"{listed(scored)} then scored {members(run, first.n_members)} of {who} and "
        f"{count(first.n_nonmembers, 'non-member')}{mixed}; how well do the scores tell them apart?"
    )


def _by_chance(row: Row, fpr: str) -> float:
    """The share of members that scores which know nothing may recognise at this threshold.

    The threshold was set on n non-members of which k pass, so its true FPR is uncertain, very much so where k is
    small: this is the upper end of its Clopper-Pearson interval, Beta(k + 1, n - k) at 97.5 %. Non-members that
    several clients were judged on count once, and k in proportion.
    """
    spent, n = row.rate(fpr).false_positives, row.n_distinct
    if spent is None or spent >= row.n_nonmembers:
        return float(fpr)
    k = spent * n / row.n_nonmembers
    return max(float(fpr), float(stats.beta.ppf(0.975, k + 1, n - k)))


def _above_guessing(row: Row, fpr: str) -> bool:
    low = row.rate(fpr).low
    return low is not None and low > _by_chance(row, fpr)


def _leak(run: Finished, best: Row) -> Finding:
    fpr, rate = run.headline_fpr, best.rate(run.headline_fpr)
    assert rate.value is not None
    times = rate.value / float(fpr)
    support = (
        f"Guessing would recognise {fpr_name(fpr)} of them, so this is {rounded(times)} times as many.",
        _basis(best, rate),
        *([caution(rate), *_firmer(run, best)] if rate.warning else ()),
    )
    statement = (
        f"{best.name} recognises {percent(rate.value)} of the members at a false-positive rate of {fpr_name(fpr)} "
        f"(95{SPACE}% interval {span(rate)}{SPACE}%)."
    )
    return Finding(statement, support, leaks=True)


def _firmer(run: Finished, best: Row) -> list[str]:
    """The same attack at the smallest FPR that has no warning."""
    for fpr in reversed(run.fprs):
        rate = best.rate(fpr)
        if float(fpr) > float(run.headline_fpr) and rate.value is not None and not rate.warning:
            return [
                f"On firmer ground, at {fpr_name(fpr)} FPR, it recognises {percent(rate.value)} "
                f"({span(rate)}{SPACE}%)."
            ]
    return []


def _no_leak(run: Finished, best: Row, rows: list[Row]) -> Finding:
    fpr, rate = run.headline_fpr, best.rate(run.headline_fpr)
    interval = f" (95{SPACE}% interval {span(rate)}{SPACE}%)" if span(rate) else ""
    subject = (
        "The attack does not demonstrably tell"
        if len(rows) == 1
        else f"None of {len(rows)} attacks demonstrably tells"
    )
    statement = f"{subject} members from non-members at a false-positive rate of {fpr_name(fpr)}."
    support = (
        f"The best, {best.name}, recognises {percent(rate.value)} of the members{interval}. Guessing would "
        f"recognise {fpr_name(fpr)}, and up to {percent(_by_chance(best, fpr))} by the luck of its threshold.",
        _basis(best, rate),
        *([caution(rate)] if rate.warning else ()),
        *_elsewhere(run, rows),
    )
    return Finding(statement, support, leaks=False)


def _elsewhere(run: Finished, rows: list[Row]) -> list[str]:
    """Leakage that shows only at a larger FPR or in the AUC must be said beside a reassuring headline."""
    for fpr in reversed(run.fprs):
        seen = [row for row in rows if _above_guessing(row, fpr)]
        if seen and float(fpr) > float(run.headline_fpr):
            best = max(seen, key=lambda row: row.rate(fpr).value or 0)
            rate = best.rate(fpr)
            return [
                f"At {fpr_name(fpr)} FPR membership does show: {best.name} recognises {percent(rate.value)} of the "
                f"members ({span(rate)}{SPACE}%)."
            ]
    seen = [row for row in rows if (row.auc.low or 0) > 0.5]
    if seen:
        best = max(seen, key=lambda row: row.auc.value or 0)
        return [
            f"The AUC of {best.name}, taken alone, is above guessing’s 0.5: {fixed(best.auc.value)} "
            f"({fixed_span(best.auc)})."
        ]
    return []


def _nonmembers(row: Row) -> str:
    """10,000 non-members, or how many different ones stand behind so many scores."""
    if row.n_distinct == row.n_nonmembers:
        return count(row.n_nonmembers, "non-member")
    return f"{count(row.n_nonmembers, 'score')} of {count(row.n_distinct, 'different non-member')}"


def _basis(best: Row, rate: Rate) -> str:
    if rate.false_positives is None:
        return (
            f"The figure rests on {count(best.n_members, 'member')} and {count(best.n_nonmembers, 'non-member')}."
        )
    found = round((rate.value or 0) * best.n_members)
    return (
        f"Behind the figure stand {found:,} recognised members out of {best.n_members:,}, and "
        f"{count(rate.false_positives, 'false positive')} among {_nonmembers(best)}."
    )


def _null_finding(run: Finished) -> Finding:
    tests = run.report.null_test or []
    failed = {run.names[one.attack]: one.reason for one in reversed(tests) if not one.passed}
    attacks = len({one.attack for one in tests})
    meaning = (
        "In this run nobody is a member: pseudo-members and non-members come from the same pools, so an honest "
        "evaluation must find an AUC of 0.5 and as many true as false positives."
    )
    if failed:
        names = list(reversed(failed))
        reasons = [sentence(f"{name}: {failed[name]}") for name in names[:3]]
        return Finding(f"The null test is not passed by {listed(names)}.", (meaning, *reasons), leaks=True)
    found = "the one attack finds" if attacks == 1 else f"all {attacks} attacks find"
    return Finding(
        f"The null test is passed: where there is nothing to find, {found} nothing.", (meaning,), leaks=False
    )
