"""Every promise of a log held against every received update."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedsiege.defences.client.base import is_neutral
from fedsiege.errors import InputError
from fedsiege.promises.base import Arrived, Finding, Promise
from fedsiege.promises.declared import COHORT, NAMED, Declared, made, named, outlives, promised, unseen, unshared
from fedsiege.registry import label_of
from fedsiege.update_log import UpdateLog, shown

ALPHA = 1e-3
"""Chance, at most, that any honest client of a log is called broken."""


Outcome = Literal["kept", "broken", "cannot be told"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the received updates of one client say about one promise.

    Args:
        client: its number.
        component: the declared defence with the fields that differ from their defaults.
        promise: what it promises about an update, in words; empty where it promises nothing that could be seen.
        outcome: `kept` in every round, `broken` in at least one, or `cannot be told`.
        why: a sentence.
        statistic, threshold: of the round that speaks most against it, in the units that `promise` names.
        p: chance of such a statistic if the promise is kept, or a bound of it; None where the threshold is no
            matter of chance.
        level: the p below which a promise counts as broken: alpha over all tests of the log; None likewise.
        round: the round that speaks most against it.
        rounds: in how many rounds it was looked at.

    """

    client: int
    component: str
    promise: str
    outcome: Outcome
    why: str
    statistic: float | None = None
    threshold: float | None = None
    p: float | None = None
    level: float | None = None
    round: int | None = None
    rounds: int = 0

    @property
    def sentence(self) -> str:
        """All that a report needs to say."""
        return f"Client {self.client}, {self.component}: {self.outcome}: {self.why}"


@dataclass(frozen=True, slots=True)
class Pledge:
    """One promise of one client, or none of a component; `why` it cannot be looked at, where that is so."""

    client: int
    component: str
    promise: Promise | None
    why: str = ""

    @property
    def sought(self) -> Promise | None:
        """The promise, where updates can be held against it."""
        return None if self.why else self.promise

    def verdict(self, why: str = "") -> Verdict:
        """That nothing can be told."""
        words = "" if self.promise is None else self.promise.words
        return Verdict(self.client, self.component, words, "cannot be told", why or self.why)


def pledged(client: int, specs: Sequence[Mapping[str, Any]], clients: int) -> list[Pledge]:
    """What a client's components promise, in their order; components that change nothing promise nothing."""
    built, found = [made(spec) for spec in specs], list[Pledge]()
    for place, (spec, defence) in enumerate(zip(specs, built, strict=True)):
        if isinstance(defence, str):
            found.append(Pledge(client, shown(spec.get("name"), NAMED), None, defence))
            continue
        if is_neutral(defence):
            continue
        label, cohort = label_of(defence), spec.get(COHORT, 1)
        if why := unshared(defence, spec, clients):
            found.append(Pledge(client, label, None, why))
            continue
        promises = promised(defence, cohort)
        if not promises:
            found.append(Pledge(client, label, None, unseen(defence)))
        for promise in promises:
            blurs = [other for other in built[place + 1 :] if not outlives(promise, other)]
            why = f"{named(blurs[0])} changed the update after it" if blurs else ""
            found.append(Pledge(client, label, promise, why))
    return found


def check(log: UpdateLog, declared: Declared | None = None, alpha: float = ALPHA) -> list[Verdict]:
    """Whether each client kept each promise, judged on the received updates of a log alone.

    Args:
        log: what a server received.
        declared: components by client, in the order in which they acted; None: what the log says they declared.
        alpha: chance, at most, that any honest client of the log is called broken.

    Returns:
        One verdict for each client and promise, in order of client; one too for each component that promises
        nothing that could be seen. Empty where nothing is declared.

    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha: got {alpha}; expected a number between 0 and 1")
    said = log.declared if declared is None else declared
    if beyond := [client for client in said if not 0 <= client < log.clients]:
        raise InputError(f"declared: got client {beyond[0]}; expected clients from 0 to {log.clients - 1}")
    pledges = [pledge for client in sorted(said) for pledge in pledged(client, said[client], log.clients)]
    if log.observable == "aggregate":
        why = "only the aggregate was recorded, in which no single update can be seen"
        return [pledge.verdict(why) for pledge in pledges]
    findings, level = judged(log, pledges, alpha)
    return [
        pledge.verdict() if pledge.sought is None else concluded(pledge, findings[at], level)
        for at, pledge in enumerate(pledges)
    ]


def judged(
    log: UpdateLog, pledges: Sequence[Pledge], alpha: float
) -> tuple[list[list[tuple[int, Finding]]], float]:
    """What each received update says about each promise, with its round, and the level of a single test."""
    answers = Counter(client for number in log.rounds for client in log.round(number).clients)
    tests = sum(answers[one.client] for one in pledges if one.sought is not None and one.sought.by_chance)
    level = alpha / max(1, tests)
    findings: list[list[tuple[int, Finding]]] = [[] for _ in pledges]
    for number in log.rounds:
        logged = log.round(number)
        for client, row, age in zip(logged.clients, logged.rows(), logged.ages.tolist(), strict=True):
            mine = [(at, one.sought) for at, one in enumerate(pledges) if one.client == client and one.sought]
            received = Arrived(row, log.start_of(number - age), log.tensors) if mine else None
            for at, promise in mine:
                assert received is not None
                findings[at].append((number, promise.found(received, level)))
    return findings, level


def concluded(pledge: Pledge, findings: Sequence[tuple[int, Finding]], level: float) -> Verdict:
    """The verdict over a client's rounds: broken in one is broken, kept only if every round tells."""
    assert pledge.promise is not None
    if not findings:
        return pledge.verdict("no update of this client was received")
    number, worst = max(findings, key=lambda one: (one[1].broken, one[1].against))
    n, broken = len(findings), sum(one.broken for _, one in findings)
    silent = [(at, one) for at, one in findings if not one.telling]
    outcome: Outcome = "broken" if broken else "cannot be told" if silent else "kept"
    if outcome == "cannot be told":
        number, worst = silent[0]
    often = f"in {broken} of {n} rounds" if broken else f"{n - len(silent)} of {n} rounds tell" if silent else ""
    return Verdict(
        client=pledge.client,
        component=pledge.component,
        promise=pledge.promise.words,
        outcome=outcome,
        why=f"round {number}: {worst.said}" + (f" ({often})" if often else ""),
        statistic=worst.statistic,
        threshold=worst.threshold,
        p=worst.p,
        level=level if pledge.promise.by_chance else None,
        round=number,
        rounds=n,
    )
