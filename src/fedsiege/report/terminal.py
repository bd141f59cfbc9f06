"""The run's result for the terminal: one table which a person likes reading."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedsiege.report.findings import (
    AGAINST,
    basis,
    cautions,
    compared,
    defended,
    guarantees,
    guarded,
    headlines,
    idle,
    unproven,
    warnings,
    where_name,
)
from fedsiege.report.finished import Finished, Row
from fedsiege.report.poisoning import findings as poisoning
from fedsiege.report.poisoning.terminal import tables
from fedsiege.report.schema import Null, Paper
from fedsiege.report.tabular import MARK, WIDE, figured, open_table
from fedsiege.report.words import digits, fixed, fixed_span, fpr_name, hundredths, listed, percent, span

COLOURS = {True: "bold red", False: "bold green", None: "bold"}


def summary(run: Finished, width: int = 80) -> RenderableType:
    """Headlines, tables, null test, accuracy and warnings of a run, for a terminal this wide."""
    said = [defended(run), guarded(run), *poisoning.done(run.poisoning, len(run.report.task.clients))]
    parts: list[RenderableType] = [
        Text(run.report.experiment.title, style="bold"),
        *(Text(one, style="dim") for one in said if one),
    ]
    for found in headlines(run):
        parts.append(Text(found.statement, style=COLOURS[found.leaks]))
        parts += [Text(line, style="dim") for line in found.support]
    if run.rows():
        parts += [Text(), figures_table(run, width)]
    if run.report.null_test:
        parts += [Text(), null_table(run, run.report.null_test)]
    for table in tables(run.poisoning, width >= WIDE):
        parts += [Text(), table]
    if run.report.paper:
        parts += [Text(), paper_table(run, run.report.paper)]
    return Padding(Group(*parts, Text(), *_notes(run)), (1, 1))


def figures_table(run: Finished, width: int = 80) -> Table:
    """Attacks by AUC and TPR at each FPR, intervals beside or below; the best attack in bold."""
    rows = run.rows()
    best = run.best(rows)
    title = f"{where_name(run, run.wheres[0])}, against {AGAINST[run.against]}: {basis(run, rows)}"
    table = open_table(title)
    table.add_column("Attack", overflow="fold")
    table.add_column("AUC", justify="right", no_wrap=True)
    for fpr in run.fprs:
        table.add_column(Text(f"TPR at\n{fpr_name(fpr)}"), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(run, row, row is best, width >= WIDE))
    return table


def null_table(run: Finished, tests: list[Null]) -> Table:
    """The verdict of the null test, attack by attack."""
    table = open_table("null test")
    table.add_column("Attack", overflow="fold")
    for head in ("against", "nulls", "mean AUC", "coverage", "TPR at 1 % FPR"):
        table.add_column(head, justify="left" if head == "against" else "right")
    table.add_column("verdict")
    for one in tests:
        table.add_row(
            Text(run.names[one.attack]),
            one.against,
            f"{one.nulls:,}",
            figured(fixed(one.mean_auc.value), fixed_span(one.mean_auc)),
            percent(one.coverage),
            figured(*hundredths(one.tpr_at_1pct)),
            Text("passed", style="green") if one.passed else Text("not passed", style="bold red"),
        )
    return table


def paper_table(run: Finished, paper: Paper) -> Table:
    """Published, ours, interval and verdict, figure by figure; TPR in per cent."""
    table = open_table(f"beside the paper: {paper.table or paper.source}")
    table.add_column("Attack", overflow="fold")
    table.add_column("figure", overflow="fold")
    for head in ("published", "ours", "interval"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for figure in paper.figures:
        line = compared(figure)
        cells = (run.names.get(figure.attack, figure.attack), line.metric, line.published, line.ours, line.interval)
        table.add_row(*map(Text, cells), Text(figure.verdict))
    return table


def _cells(run: Finished, row: Row, strong: bool, wide: bool) -> list[Text]:
    style = "bold" if strong else ""
    cells = [
        Text(("▸ " if strong else "  ") + row.name, style=style),
        figured(fixed(row.auc.value), fixed_span(row.auc), style, wide),
    ]
    for fpr in run.fprs:
        rate = row.rate(fpr)
        mark = MARK if rate.warning else ""
        cells.append(figured(digits(rate.value) + mark, span(rate), style, wide))
    return cells


def _notes(run: Finished) -> list[Text]:
    task = run.report.task
    notes = (
        [Text("TPR in per cent at a false-positive rate; 95 % intervals beside or below.", style="dim")]
        if run.rows()
        else []
    )
    learnt = f"Test accuracy {percent(task.accuracy)}"
    if task.train_accuracy is not None:
        learnt += f", training accuracy {percent(task.train_accuracy)}"
    notes.append(Text(learnt + "."))
    notes += [Text(f"Guarantee of {one}") for one in guarantees(run)]
    notes += [Text(f"{MARK} {one}", style="yellow") for one in cautions(run, run.rows())]
    notes += [Text(f"! {one}", style="yellow") for one in warnings(run)]
    if idle(run):
        acted = f"never acted: {listed(idle(run))}. What it should have done was not done."
        notes.append(Text(f"! {acted}", style="bold yellow"))
    notes += [Text(f"! {one}", style="bold yellow") for one in unproven(run)]
    return notes
