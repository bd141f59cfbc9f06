"""table.csv: every figure of every attack, target and kind of non-members; table.tex: the run's Table 1.

The LaTeX table has the layout of Zhu et al. 2025 (FedMIA, Table 1): attacks as columns, TPR at 0.1 % FPR and AUC
as rows, here with intervals. It needs the package booktabs.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedsiege.files import write_bytes
from fedsiege.report.findings import basis
from fedsiege.report.finished import Finished, Row, Where
from fedsiege.report.schema import Measured
from fedsiege.report.words import NONE, defused, digits, fixed, fixed_span, fpr_name, span

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\u00a0": "~",
    "–": "--",
    "’": "'",
    "·": r"\textperiodcentered{}",
}
COLUMNS = 5  # attacks side by side in the LaTeX table; more go below, as a page is only so wide


def frame(run: Finished, target: Where | None = None, against: str = "all") -> pd.DataFrame:
    """One row an attack, figures as numbers: AUC and TPR at each FPR with their intervals, false positives."""
    return _frame(run, run.rows(target, against))


def everything(run: Finished) -> pd.DataFrame:
    """The same for every target and kind of non-members, one below the other."""
    wheres: list[Where] = list(dict.fromkeys([*run.wheres, *run.targets]))
    rows = [row for kind in run.againsts for where in wheres for row in run.rows(where, kind)]
    return _frame(run, rows)


def write_tables(run: Finished) -> list[Path]:
    """Write table.csv and table.tex into the run's folder; return the paths."""
    text = everything(run).map(defused).to_csv(index=False, lineterminator="\n")
    paths = [run.folder / "table.csv", run.folder / "table.tex"]
    write_bytes(paths[0], text.encode())
    write_bytes(paths[1], latex(run).encode())
    return paths


def latex(run: Finished) -> str:
    """The table of the run's pooled figures, ready for \\input."""
    rows = run.rows()
    blocks = [rows[i : i + COLUMNS] for i in range(0, len(rows), COLUMNS)]
    width = max((len(block) for block in blocks), default=1)
    return booktabs(_caption(run, rows), width, [_block(run, block) for block in blocks])


def booktabs(caption: str, columns: int, blocks: Sequence[str]) -> str:
    """A LaTeX table of these blocks of lines, with a first column of names and so many of figures."""
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{caption}}}",
        f"  \\begin{{tabular}}{{l{'r' * columns}}}",
        "    \\toprule",
        *"\n    \\midrule\n".join(blocks).splitlines(),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def escape(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return "".join(LATEX.get(letter, letter if letter.isprintable() else " ") for letter in text)


def _frame(run: Finished, rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as a table whose columns keep their type where a figure is missing."""
    table = pd.DataFrame([_record(run, row) for row in rows])
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
            _line("", [escape(row.name) for row in rows]),
            "    \\midrule",
            _line(
                f"TPR at {escape(fpr_name(fpr))} FPR (\\%)",
                [_bold(digits(r.value), s) for r, s in zip(rates, strong, strict=True)],
            ),
            _line("", [_small(span(r)) for r in rates]),
            _line("AUC", [_bold(fixed(a.value), s) for a, s in zip(aucs, strong, strict=True)]),
            _line("", [_small(fixed_span(a)) for a in aucs]),
        )
    )


def _line(head: str, cells: Sequence[str]) -> str:
    return f"    {' & '.join([head, *cells])} \\\\"


def _bold(text: str, strong: bool) -> str:
    text = escape(text) if text == NONE else text
    return f"\\textbf{{{text}}}" if strong else text


def _small(text: str) -> str:
    return f"{{\\scriptsize [{escape(text)}]}}" if text else ""
