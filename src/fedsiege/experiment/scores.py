"""From a recorded trace to scores: every attack, every target, every candidate."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedsiege.attacks.membership.base import MembershipAttack, adaptations
from fedsiege.data.candidates import MEMBERS, Audit
from fedsiege.errors import InputError
from fedsiege.experiment.prepare import Planned, Prepared
from fedsiege.experiment.shadows import Shadowed
from fedsiege.files import write_bytes
from fedsiege.records import Counters, Floats, Ids
from fedsiege.streams import stream
from fedsiege.trace import Trace
from fedsiege.view import SINGLE_UPDATES, Background, Evidence, Known, Labels, Shadow, View, apart

CHUNK = 2**29
"""Bytes of scores that an attack makes in one go; it reads the evidence once for all their targets."""

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Scored:
    """One attack's scores of one audit's candidates, row by row with `audit.ids`, from so many recorded rounds."""

    label: str
    audit: Audit
    values: NDArray[np.float64]
    rounds: int

    def nonmembers(self, kind: str) -> Ids:
        """The ids behind the second row of `against`."""
        groups = self.audit.groups
        wanted: NDArray[np.bool_] = ~np.isin(groups, MEMBERS) & ((groups == kind) | (kind == "all"))
        ids: Ids = self.audit.ids[wanted]
        return ids

    def against(self, kind: str) -> Pair:
        """Scores of members and of non-members; `ifl` and `ofl` keep only non-members of that group.

        In a null run pseudo-members keep company with their own kind: those drawn as IFL stand against IFL.
        """
        groups = self.audit.groups
        members = np.isin(groups, MEMBERS)
        others = ~members
        if kind != "all":
            others &= groups == kind
            members &= np.isin(groups, ("member", f"pseudo_{kind}"))
        return self.values[members], self.values[others]


class Narrowed:
    """Evidence with some of its columns: those that an attack may know of."""

    def __init__(self, evidence: Evidence, columns: Labels) -> None:
        self._evidence, self._columns = evidence, columns
        self.rounds, self.clients = evidence.rounds, evidence.clients
        self.labels = np.asarray(evidence.labels)[columns]

    def present(self, t: int) -> NDArray[np.bool_]:
        """Who answered [K]."""
        return self._evidence.present(t)

    def head(self, t: int) -> Floats:
        """The updates of the last layer [K, C]: of no column."""
        return self._evidence.head(t)

    def rise(self, t: int) -> Floats:
        """How far each class was raised [K, C]: of no column."""
        return self._evidence.rise(t)

    def __getattr__(self, signal: str) -> Callable[[int], Floats]:
        read = getattr(self._evidence, signal)
        return lambda t: read(t)[..., self._columns]


@dataclass(frozen=True, slots=True)
class Told:
    """What an attack is shown of a run: its columns of the trace and, besides the evidence, its background.

    An attack that wants no population is scored as if there were none: what other attacks want changes nothing.
    """

    columns: Labels
    background: Background

    @classmethod
    def of(cls, prepared: Prepared, planned: Planned, trace: Trace, shadows: Sequence[Shadowed]) -> "Told":
        """What a planned attack wants, and no more."""
        attack, drawn = planned.attack, prepared.candidates.population
        own = drawn[: attack.population_wanted]
        columns = np.flatnonzero(~np.isin(trace.ids, drawn) | np.isin(trace.ids, own))
        population = np.flatnonzero(np.isin(trace.ids[columns], own))
        updates = adaptations(attack).get("updates", "sent")
        seen = [one.shown(updates) for one in shadows[: attack.shadows_wanted]]
        shown = [
            # Empty where no attack asks what shadow federations make of the real candidates.
            replace(one, asked=one.asked[columns] if len(one.asked) else one.asked, known=served_by(planned, one))
            for one in seen
        ]
        return cls(columns, Background(tuple(shown), population))

    def seen(self, evidence: Evidence) -> Evidence:
        """The evidence, without the columns that the attack does not know of."""
        if len(self.columns) == len(evidence.labels):
            return evidence
        narrowed: Any = Narrowed(evidence, self.columns)
        shown: Evidence = narrowed
        return shown

    def with_truth(self, known: Known | None) -> Background:
        """The background for one audit: the truth about a half of it, where the attack is told that."""
        return self.background if known is None else replace(self.background, known=(known,))


def served_by(planned: Planned, shadow: Shadow) -> tuple[Known, ...]:
    """The clients of a shadow federation that took part in enough recorded rounds for the attack."""
    evidence = shadow.evidence
    if planned.vantage not in SINGLE_UPDATES:
        return shadow.known
    attendance = {number: evidence.present(t) for t, number in enumerate(evidence.rounds)}
    return tuple(known for known in shadow.known if planned.serves(known.target, attendance))


class Redrawn:
    """Evidence in which non-members are drawn anew for every client and round, as FedMIA's published code does.

    Only for reproducing published figures (`candidates.compat: fedmia`): it manufactures low false-positive
    results, because a non-member's mean over rounds is then a mean over different examples, a member's is not.
    """

    def __init__(self, trace: Evidence, target: int, pools: list[NDArray[np.int64]], seed: int) -> None:
        self._trace, self._target, self._pools, self._seed = trace, target, pools, seed
        self.rounds, self.clients, self.labels = trace.rounds, trace.clients, trace.labels

    def present(self, t: int) -> NDArray[np.bool_]:
        """Who answered [K]."""
        return self._trace.present(t)

    def head(self, t: int) -> Floats:
        """The updates of the last layer [K, C]: of no candidate."""
        return self._trace.head(t)

    def rise(self, t: int) -> Floats:
        """How far each class was raised [K, C]: of no candidate."""
        return self._trace.rise(t)

    def __getattr__(self, signal: str) -> Callable[[int], Floats]:
        read = getattr(self._trace, signal)
        return lambda t: self._redraw(read(t), t)

    def _redraw(self, values: Floats, t: int) -> Floats:
        if values.ndim == 1:
            return values[self._order(t, self._target, len(values))]
        rows = [row[self._order(t, client, len(row))] for client, row in enumerate(values)]
        return np.stack(rows)

    def _order(self, t: int, client: int, m: int) -> NDArray[np.int64]:
        order = np.arange(m)
        rng = stream(self._seed, "redraw", self._target, t, client)
        for pool in self._pools:
            order[pool] = rng.permutation(pool)
        return order


def score_all(
    prepared: Prepared, trace: Trace, step: Callable[[], None], shadows: Sequence[Shadowed] = ()
) -> tuple[list[Scored], dict[str, Counters]]:
    """Every attack on every audit, and what each attack counted; `step` is called for each.

    `shadows` are the run's shadow federations; an attack gets as many as it wants. One that is told the truth about
    half of an audit is scored audit by audit, so that it is told no other's, and judged on the other half.

    Targets that took part in too few recorded rounds for an attack are left out; InputError if that is all of them.
    """
    audits = prepared.candidates.audits
    rows = [np.searchsorted(trace.ids, audit.ids) for audit in audits]
    scored: list[Scored] = []
    counters: dict[str, Counters] = {}
    for planned in prepared.attacks:
        total = counters.setdefault(planned.label, {})
        told = Told.of(prepared, planned, trace, shadows)
        ids = trace.ids[told.columns]
        found: dict[int, Scored] = {}
        for evidence, asked in _one_by_one(planned, _together(prepared, planned, trace, rows)):
            known, judged = _split(prepared, planned, ids, [audits[i] for i in asked])
            shown, background = told.seen(evidence), told.with_truth(known)
            view = View(shown, planned.vantage, background)
            scores = _scores(planned, view, [audit.target for audit in judged], len(ids))
            fresh = View(shown, planned.vantage, background)
            _spot_check(planned, view, fresh, judged[-1].target, scores)
            for i, audit in zip(asked, judged, strict=True):
                values, rounds = scores[audit.target]
                found[i] = Scored(planned.label, audit, values[np.searchsorted(ids, audit.ids)], rounds)
                step()
            for name, n in view.counters.items():
                total[name] = total.get(name, 0) + n
        if not found:
            raise InputError(f"attack {planned.label}: no target took part in enough recorded rounds")
        for _ in range(len(audits) - len(found)):
            step()
        scored += [found[i] for i in sorted(found)]
    return scored, counters


def _together(
    prepared: Prepared, planned: Planned, trace: Trace, rows: list[NDArray[np.int64]]
) -> Iterator[tuple[Evidence, list[int]]]:
    """Evidence, and the audits, by their places, that are scored on it in one go."""
    audits = prepared.candidates.audits
    targets = [target for target in dict.fromkeys(one.target for one in audits) if served(planned, target, trace)]
    told = trace.variant(adaptations(planned.attack).get("updates", "sent"))
    size = max(1, CHUNK // (8 * len(trace.ids)))
    # Who looks at nobody else sees no fellow members either, and all targets alike.
    coalitions = planned.coalitions if planned.attack.needs_others else ()
    for evidence, there in apart(told, coalitions, targets):
        if prepared.experiment.candidates.compat != "none":
            for i, audit in enumerate(audits):
                if audit.target in there:
                    yield _redrawn(prepared, evidence, audit, rows[i]), [i]
            continue
        for start in range(0, len(there), size):
            some = there[start : start + size]
            yield evidence, [i for i, audit in enumerate(audits) if audit.target in some]


def _one_by_one(
    planned: Planned, together: Iterator[tuple[Evidence, list[int]]]
) -> Iterator[tuple[Evidence, list[int]]]:
    """Evidence and the audits that are scored on it in one go: one at a time where an attack is told the truth."""
    for evidence, asked in together:
        for some in [[i] for i in asked] if planned.attack.truth_wanted else [asked]:
            yield evidence, some


def _split(prepared: Prepared, planned: Planned, ids: Ids, audits: list[Audit]) -> tuple[Known | None, list[Audit]]:
    """What an attack is told of the truth about its only audit, and what it is judged on; all, if it is not."""
    if not planned.attack.truth_wanted:
        return None, audits
    told, judged = audits[0].halves(prepared.experiment.seed)
    return Known(told.target, np.searchsorted(ids, told.ids), told.members), [judged]


def _scores(planned: Planned, view: View, asked: list[int], m: int) -> dict[int, tuple[NDArray[np.float64], int]]:
    """The scores [m] of every target that is asked about, and from how many rounds they are."""
    targets = list(dict.fromkeys(asked))
    values = np.asarray(planned.attack.score_targets(view, targets), dtype=np.float64)
    if values.shape[:1] != (len(targets),):
        raise InputError(
            f"attack {planned.label}: made scores of shape {values.shape} for {len(targets)} targets; expected "
            f"({len(targets)}, {m}), a row for each target"
        )
    return {t: (_checked(planned, row, m), _rounds_used(view, t)) for t, row in zip(targets, values, strict=True)}


def _spot_check(
    planned: Planned, view: View, fresh: View, target: int, scores: dict[int, tuple[NDArray[np.float64], int]]
) -> None:
    """Compare a user's own `score_targets` with `score` for one target: rows mixed up would pass unseen."""
    cls = type(planned.attack)
    both = cls.score is not MembershipAttack.score and cls.score_targets is not MembershipAttack.score_targets
    if cls.__module__.startswith("fedsiege.") or not both:
        return
    alone = np.asarray(planned.attack.score(fresh, target), dtype=np.float64)
    if not np.allclose(scores[target][0], alone, rtol=1e-6, atol=1e-9):
        raise InputError(
            f"attack {planned.label}: score_targets gives client {target} other scores than score does; "
            "expected the same, in the order of the targets"
        )
    for name, n in fresh.counters.items():
        counted = [view.of(one).counters.get(name, 0) for one in scores]
        if counted[list(scores).index(target)] != n or sum(counted) != view.counters.get(name, 0):
            raise InputError(
                f"attack {planned.label}: score counts {name} {n:g} for client {target}, score_targets does not; "
                "expected the same: what concerns one target is counted in view.of(target)"
            )


def _checked(planned: Planned, values: NDArray[np.float64], m: int) -> NDArray[np.float64]:
    """The scores, if they are what an attack of a user's own must make too."""
    if values.shape != (m,) or not np.isfinite(values).all():
        raise InputError(
            f"attack {planned.label}: made scores of shape {values.shape}, {int((~np.isfinite(values)).sum())} of "
            f"them not finite; expected {m} finite numbers, one for each candidate"
        )
    return values


def _rounds_used(view: View, target: int) -> int:
    """How many rounds a target's scores are from: an attack need not count, and what it read is known anyway."""
    part = view.of(target)
    if "rounds_used" not in part.counters:
        part.count("rounds_used", len(part.rounds_read or view.rounds_read))
    return int(part.counters["rounds_used"])


def served(planned: Planned, target: int, trace: Trace) -> bool:
    """Whether the trace holds enough rounds of this target for the attack."""
    if planned.vantage not in SINGLE_UPDATES:
        return True  # and under secure aggregation nobody knows who was present
    return planned.serves(target, {number: trace.present(t) for t, number in enumerate(trace.rounds)})


def _redrawn(prepared: Prepared, trace: Evidence, audit: Audit, rows: NDArray[np.int64]) -> Evidence:
    pools = [rows[audit.groups == group] for group in ("ifl", "ofl")]
    redrawn: Any = Redrawn(trace, audit.target, pools, prepared.experiment.seed)
    evidence: Evidence = redrawn
    return evidence


def write_candidates(path: Path, prepared: Prepared) -> None:
    """Write which examples are asked about: id, where it lies in the data, label; not who is a member."""
    examples = prepared.candidates.asked
    write_table(
        path,
        pa.table(
            {
                "candidate": pa.array(examples.ids.tolist(), pa.string()),
                "row": pa.array([prepared.data.rows[i] for i in examples.ids.tolist()], pa.string()),
                "label": examples.y.cpu().numpy(),
            }
        ),
    )


def write_scores(path: Path, scored: list[Scored]) -> None:
    """Write all scores, rows sorted by target, draw, candidate, attack; equal runs give equal bytes."""
    labels = sorted({one.label for one in scored})
    sizes = [len(one.values) for one in scored]

    def spread(values: list[int]) -> NDArray[np.int32]:
        return np.repeat(np.array(values, dtype=np.int32), sizes)

    target, draw = spread([s.audit.target for s in scored]), spread([s.audit.draw for s in scored])
    attack = spread([labels.index(s.label) for s in scored])
    candidate = np.concatenate([s.audit.ids for s in scored])
    group = np.concatenate([s.audit.groups for s in scored])
    values = np.concatenate([s.values for s in scored])
    order = np.lexsort((attack, candidate, draw, target))
    table = pa.table(
        {
            "target": target[order],
            "draw": draw[order],
            "candidate": pa.array(candidate[order].tolist(), pa.string()),
            "group": pa.array(group[order].tolist(), pa.string()),
            "attack": pa.array(np.array(labels)[attack[order]].tolist(), pa.string()),
            "score": values[order],
        }
    )
    write_table(path, table)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as parquet, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())
