"""Published figures and ours: which of ours stands beside a published one, and what is said of the two.

A single run has its own figures and intervals. A grid has one figure a seed, of which the mean is compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from fedsiege.experiment.config import NEUTRAL, Experiment
from fedsiege.experiment.grid import ACCURACIES, DECISIONS, NO_ATTACK, Cell, Figure, Grid, GridPaper
from fedsiege.report.grid.finished import joined, spread
from fedsiege.report.schema import Measured

NOT_THE_SETTING = {*NEUTRAL, "changed"}
"""Fields in which two runs of one published setting may differ."""

Rows = Sequence[Mapping[str, Any]]


def attack_row(rows: Rows, attack: str) -> Mapping[str, Any] | None:
    """The figures of an attack, given by its label or its registered name.

    The attack as the paper has it is labelled with its bare name; a variant of it stands in if it is alone, but
    never an upper bound: whoever wants that names its label.
    """
    named = [
        row
        for row in rows
        if attack == row["attack"] or (attack == row["name"] and not row.get("upper_bound", False))
    ]
    return min(named, key=lambda row: bool(row["attack"] != attack), default=None)


def asked_rows(rows: Rows, probed: bool) -> list[Mapping[str, Any]]:
    """Each attack's row that answers what was asked: all targets pooled, against all non-members.

    Where attackers made membership visible (`probed`) that is whether data is anybody's, for attacks that can ask.
    """
    anybodys = {row["attack"]: row for row in rows if row["target"] == "any"} if probed else {}
    pooled = [row for row in rows if row["target"] == "pooled" and row["against"] == "all"]
    return [anybodys.get(row["attack"], row) for row in pooled]


def metric_of(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """An attack's AUC, or its TPR at the FPR of `tpr@0.001`: value, low, high and n."""
    found = row["auc"] if metric == "auc" else row["tpr_at_fpr"].get(metric.removeprefix("tpr@"), {})
    return {key: found.get(key) for key in ("value", "low", "high", "n")}


def verdict(published: float, margin: float, ours: Mapping[str, Any] | None, null: bool, changed: str) -> str:
    """Agrees where the published value, give or take the margin, meets our interval; else which of both is higher.

    `null` says that the run tests the audit itself, `changed` how its setting differs from the published one.
    """
    if null:
        return "not compared: a null test"
    if ours is None or None in (ours["value"], ours["low"], ours["high"]):
        return "not measured"
    if ours["low"] <= published + margin and published - margin <= ours["high"]:
        found = "agrees"
    else:
        found = "ours is higher" if ours["value"] > published else "ours is lower"
    return f"{found} ({changed})" if changed else found


def changed_by(profile: str | None, fields: Sequence[str]) -> str:
    """What made a setting another one than was published; nothing where no field is."""
    return "" if not fields else f"profile {profile}" if profile else "changed setting"


@dataclass(frozen=True, slots=True)
class Beside:
    """What a grid's paper reports, ready to be compared with however many runs are finished.

    `changes` has, by the cell's name, the fields in which a profile and overrides change the setting that the grid
    publishes; what the grid itself sets, and which seeds are run, changes no setting. `null` are the cells that
    test the audit itself.
    """

    paper: GridPaper
    profile: str | None
    changes: Mapping[str, Sequence[str]]
    null: frozenset[str]

    @classmethod
    def of(cls, grid: Grid, where: str, cells: Sequence[Cell]) -> Self | None:
        """The paper of a grid with these cells; None where it has none. `where` is what messages call the grid."""
        if grid.paper is None:
            return None
        asked = grid.profile is not None or bool(grid.overrides)
        plain = grid.model_copy(update={"profile": None, "overrides": {}}).cells_of(where) if asked else cells
        changes = {
            here.name: _differences(there.experiment, here.experiment)
            for there, here in zip(plain, cells, strict=True)
        }
        null = frozenset(cell.name for cell in cells if cell.experiment.candidates.null)
        return cls(grid.paper, grid.profile, changes, null)

    def compared(self, rows: Rows) -> dict[str, Any]:
        """The published figures beside ours, from the rows of sweep.json; `changed` has the fields of all cells."""
        return {
            **self.paper.model_dump(exclude={"figures", "rounding"}),
            "changed": list(dict.fromkeys(field for fields in self.changes.values() for field in fields)),
            "figures": [self._figure(figure, rows) for figure in self.paper.figures],
        }

    def _figure(self, figure: Figure, rows: Rows) -> dict[str, Any]:
        ours = _ours(figure, rows)
        rounding = self.paper.rounding.get(figure.metric, 0.0)
        margin = 2 * (figure.spread or 0.0) + rounding
        cells = [figure.cell, *([figure.against] if figure.against else [])]
        changed = changed_by(self.profile, [field for cell in cells for field in self.changes[cell]])
        null = not self.null.isdisjoint(cells)
        return {
            **figure.model_dump(exclude={"value"}),
            "published": figure.value,
            "rounding": rounding,
            "ours": ours,
            "verdict": verdict(figure.value, margin, _taken(figure, ours), null, changed),
        }


def _differences(published: Experiment, run: Experiment) -> list[str]:
    return [
        field
        for field in Experiment.model_fields
        if field not in NOT_THE_SETTING and getattr(published, field) != getattr(run, field)
    ]


def _ours(figure: Figure, rows: Rows) -> dict[str, Any] | None:
    """Our figure over the seeds that finished, `n` of them; None where there is none."""
    runs = _finished(figure.cell, rows)
    if figure.metric in DECISIONS:
        found = _decided(DECISIONS[figure.metric], runs)
    else:
        found = _accuracy(figure, runs, rows) if figure.metric in ACCURACIES else _attacked(figure, runs)
    return None if found.value is None else found.model_dump()


def _attacked(figure: Figure, runs: Mapping[int, Mapping[str, Any]]) -> Measured:
    scored = (attack_row(run["attacks"], figure.attack) for run in runs.values())
    return joined([Measured.model_validate(metric_of(row, figure.metric)) for row in scored if row is not None])


def _decided(which: str, runs: Mapping[int, Mapping[str, Any]]) -> Measured:
    """How often the decision was right in the best round or in the last ones, of the runs that looked."""
    parts = ((run["poisoning"] or {}).get("decisions") for run in runs.values())
    return spread([part[which]["value"] for part in parts if part is not None])


def _accuracy(figure: Figure, runs: Mapping[int, Mapping[str, Any]], rows: Rows) -> Measured:
    """Test accuracy, or by how much it is above that of the cell `against`, paired by seed."""
    if figure.metric == "accuracy":
        return spread([run["accuracy"] for run in runs.values()])
    others = _finished(figure.against, rows)
    return spread(
        [run["accuracy"] - others[seed]["accuracy"] for seed, run in runs.items() if seed in others], (-1.0, 1.0)
    )


def _finished(cell: str, rows: Rows) -> dict[int, Mapping[str, Any]]:
    return {
        row["seed"]: row
        for row in rows
        if row["name"] == cell and row["status"] == "done" and row["accuracy"] is not None
    }


def _taken(figure: Figure, ours: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Our figure as the verdict takes it: without an interval (one seed, or all alike) it stands for itself."""
    if ours is None or figure.metric not in NO_ATTACK or ours["low"] is not None:
        return ours
    return {**ours, "low": ours["value"], "high": ours["value"]}
