"""table.csv: every figure of every attack, target and kind of non-members; table.tex: the run's Table 1.

A run that is about poisoning has poisoning.csv and rounds.csv besides, and a table of its own in table.tex. The
LaTeX table of membership has the layout of Zhu et al. 2025 (FedMIA, Table 1): attacks as columns, TPR at 0.1 % FPR
and AUC as rows, here with intervals. It needs the package booktabs.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedsiege.files import write_bytes
from fedsiege.report.booktabs import booktabs, escape, line, small
from fedsiege.report.findings import basis
from fedsiege.report.finished import Finished, Row, Where
from fedsiege.report.poisoning import tables as poisoning
from fedsiege.report.schema import Measured
from fedsiege.report.words import NONE, defused, digits, fixed, fixed_span, fpr_name, span

COLUMNS = 5  # attacks side by side in the LaTeX table; more go below, as a page is only so wide
FIGURES = (
    *("attack", "title", "upper_bound", "target", "worst_target", "against", "n_members", "n_nonmembers"),
    *("auc", "auc_low", "auc_high"),
)
RATES = (("tpr", ""), ("tpr", "_low"), ("tpr", "_high"), ("false_positives", ""))


def frame(run: Finished, target: Where | None = None, against: str | None = None) -> pd.DataFrame:
    """One row an attack, figures as numbers: AUC and TPR at each FPR with their intervals, false positives."""
    return _frame(run, run.rows(target, against))


def everything(run: Finished) -> pd.DataFrame:
    """The same for every target and kind of non-members, one below the other."""
    wheres: list[Where] = list(dict.fromkeys([*run.wheres, *run.targets]))
    rows = [row for kind in run.againsts for where in wheres for row in run.rows(where, kind)]
    return _frame(run, rows)


def write_tables(run: Finished) -> list[Path]:
    """Write table.csv, table.tex and, where there is poisoning, poisoning.csv and rounds.csv; return the paths."""
    contents = {"table.csv": csv(everything(run)), "table.tex": latex(run)}
    if run.poisoning:
        contents |= {
            "poisoning.csv": csv(poisoning.frame(run.poisoning)),
            "rounds.csv": csv(poisoning.rounds_frame(run)),
        }
    for name, text in contents.items():
        write_bytes(run.folder / name, text.encode())
    return [run.folder / name for name in contents]


def csv(table: pd.DataFrame) -> str:
    """A table as the text of a file in which no cell is a formula."""
    return str(table.map(defused).to_csv(index=False, lineterminator="\n"))


def latex(run: Finished) -> str:
    """The tables of the run's pooled figures and of what attackers did to it, ready for \\input."""
    attacked = poisoning.latex(run)
    return "\n".join(
        [*([_membership(run)] if run.audited or not attacked else []), *([attacked] if attacked else [])]
    )


def _membership(run: Finished) -> str:
    rows = run.rows()
    blocks = [rows[i : i + COLUMNS] for i in range(0, len(rows), COLUMNS)]
    width = max((len(block) for block in blocks), default=1)
    return booktabs(_caption(run, rows), width, [_block(run, block) for block in blocks])


def _frame(run: Finished, rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as a table whose columns keep their type where a figure is missing."""
    rates = [f"{name}@{fpr}{side}" for fpr in run.fprs for name, side in RATES]
    table = pd.DataFrame([_record(run, row) for row in rows], columns=[*FIGURES, *rates])
    kinds = {name: "float64" for name in table.columns if name.startswith(("auc", "tpr@"))}
    kinds |= {name: "Int64" for name in table.columns if name.startswith(("n_", "false_positives@", "worst_"))}
    return table.astype(kinds)


def _record(run: Finished, row: Row) -> dict[str, object]:
    record: dict[str, object] = {
        "attack": row.attack,
        "title": row.name,
        "upper_bound": row.upper_bound,
        "target": row.target,
        "worst_target": row.worst_target if row.target == "worst" else None,
        "against": row.against,
        "n_members": row.n_members,
        "n_nonmembers": row.n_nonmembers,
        **_figure("auc", row.auc),
    }
    for fpr in run.fprs:
        rate = row.rate(fpr)
        record |= _figure(f"tpr@{fpr}", rate)
        record[f"false_positives@{fpr}"] = rate.false_positives
    return record


def _figure(name: str, figure: Measured) -> dict[str, object]:
    return {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}


def _caption(run: Finished, rows: Sequence[Row]) -> str:
    title = escape(run.report.experiment.title)
    if not rows:
        return f"{title}: no attack was measured."
    return f"{title}: membership inference on {escape(basis(run, rows))}, with 95\\,\\% intervals."


def _block(run: Finished, rows: Sequence[Row]) -> str:
    fpr = run.headline_fpr
    best = run.best(run.rows())
    rates = [row.rate(fpr) for row in rows]
    aucs = [row.auc for row in rows]
    strong = [best is not None and row.attack == best.attack for row in rows]
    return "\n".join(
        (
            line("", [escape(row.name) for row in rows]),
            "    \\midrule",
            line(
                f"TPR at {escape(fpr_name(fpr))} FPR (\\%)",
                [_bold(digits(r.value), s) for r, s in zip(rates, strong, strict=True)],
            ),
            line("", [small(span(r)) for r in rates]),
            line("AUC", [_bold(fixed(a.value), s) for a, s in zip(aucs, strong, strict=True)]),
            line("", [small(fixed_span(a)) for a in aucs]),
        )
    )


def _bold(text: str, strong: bool) -> str:
    text = escape(text) if text == NONE else text
    return f"\\textbf{{{text}}}" if strong else text
