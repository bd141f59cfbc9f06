"""From a recorded trace to scores: every attack, every target, every candidate."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedsiege.data.candidates import Audit
from fedsiege.errors import InputError
from fedsiege.experiment.prepare import Planned, Prepared
from fedsiege.files import write_bytes
from fedsiege.records import Counters, Floats, Ids
from fedsiege.streams import stream
from fedsiege.trace import Trace
from fedsiege.view import SINGLE_UPDATES, Evidence, View

MEMBERS = ("member", "pseudo_ifl", "pseudo_ofl")
"""Groups that an attack should rank high: the target's members, and a null run's pseudo-members."""

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
    prepared: Prepared, trace: Trace, step: Callable[[], None]
) -> tuple[list[Scored], dict[str, Counters]]:
    """Every attack on every audit, and what each attack counted; `step` is called after each.

    Targets that took part in too few recorded rounds for an attack are left out; InputError if that is all of them.
    """
    candidates = prepared.candidates
    place = {identity: row for row, identity in enumerate(trace.ids.tolist())}
    rows = [np.array([place[i] for i in audit.ids.tolist()]) for audit in candidates.audits]
    scored: list[Scored] = []
    counters: dict[str, Counters] = {}
    for planned in prepared.attacks:
        total = counters.setdefault(planned.label, {})
        known: dict[int, tuple[NDArray[np.float64], int]] = {}
        for audit, wanted in zip(candidates.audits, rows, strict=True):
            step()
            if not served(planned, audit.target, trace):
                continue
            if audit.target not in known or prepared.experiment.candidates.compat != "none":
                view = View(_evidence(prepared, trace, audit, wanted), planned.vantage)
                values = _checked(planned, planned.attack.score(view, audit.target), len(trace.ids))
                # An attack need not count; what it read is known anyway.
                view.counters.setdefault("rounds_used", len(view.rounds_read))
                known[audit.target] = values, int(view.counters["rounds_used"])
                for name, n in view.counters.items():
                    total[name] = total.get(name, 0) + n
            values, rounds = known[audit.target]
            scored.append(Scored(planned.label, audit, values[wanted], rounds))
        if not known:
            raise InputError(f"attack {planned.label}: no target took part in enough recorded rounds")
    return scored, counters


def _checked(planned: Planned, values: NDArray[np.float64], m: int) -> NDArray[np.float64]:
    """The scores, if they are what an attack of a user's own must make too."""
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (m,) or not np.isfinite(values).all():
        raise InputError(
            f"attack {planned.label}: made scores of shape {values.shape}, {int((~np.isfinite(values)).sum())} of "
            f"them not finite; expected {m} finite numbers, one for each candidate"
        )
    return values


def served(planned: Planned, target: int, trace: Trace) -> bool:
    """Whether the trace holds enough rounds of this target for the attack."""
    if planned.vantage not in SINGLE_UPDATES:
        return True  # and under secure aggregation nobody knows who was present
    return planned.serves(target, {number: trace.present(t) for t, number in enumerate(trace.rounds)})


def _evidence(prepared: Prepared, trace: Trace, audit: Audit, rows: NDArray[Any]) -> Evidence:
    if prepared.experiment.candidates.compat == "none":
        return trace
    pools = [rows[audit.groups == group] for group in ("ifl", "ofl")]
    redrawn: Any = Redrawn(trace, audit.target, pools, prepared.experiment.seed)
    evidence: Evidence = redrawn
    return evidence


def write_candidates(path: Path, prepared: Prepared) -> None:
    """Write which examples are asked about: id, where it lies in the data, label; not who is a member."""
    examples = prepared.candidates.examples
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
