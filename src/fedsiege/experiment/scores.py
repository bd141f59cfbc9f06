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
from fedsiege.experiment.prepare import Prepared
from fedsiege.files import write_bytes
from fedsiege.records import Counters, Floats
from fedsiege.streams import stream
from fedsiege.trace import Trace
from fedsiege.view import Evidence, View

MEMBERS = ("member", "pseudo_ifl", "pseudo_ofl")
"""Groups that an attack should rank high: the target's members, and a null run's pseudo-members."""

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Scored:
    """One attack's scores of one audit's candidates, row by row with `audit.ids`."""

    label: str
    audit: Audit
    values: NDArray[np.float64]

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
    """Every attack on every audit, and what each attack counted; `step` is called after each."""
    candidates, spec, seed = prepared.candidates, prepared.experiment.candidates, prepared.experiment.seed
    place = {identity: row for row, identity in enumerate(trace.ids.tolist())}
    rows = [np.array([place[i] for i in audit.ids.tolist()]) for audit in candidates.audits]
    scored: list[Scored] = []
    counters: dict[str, Counters] = {}
    for planned in prepared.attacks:
        total = counters.setdefault(planned.label, {})
        known: dict[int, NDArray[np.float64]] = {}
        for audit, wanted in zip(candidates.audits, rows, strict=True):
            if audit.target not in known or spec.compat != "none":
                evidence = _evidence(trace, audit, wanted, spec.compat, seed)
                view = View(evidence, planned.vantage)
                known[audit.target] = planned.attack.score(view, audit.target)
                for name, n in view.counters.items():
                    total[name] = total.get(name, 0) + n
            step()
            scored.append(Scored(planned.label, audit, known[audit.target][wanted]))
    return scored, counters


def _evidence(trace: Trace, audit: Audit, rows: NDArray[Any], compat: str, seed: int) -> Evidence:
    if compat == "none":
        return trace
    pools = [rows[audit.groups == group] for group in ("ifl", "ofl")]
    redrawn: Any = Redrawn(trace, audit.target, pools, seed)
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
