"""The tables about poisoning for a terminal."""

from rich.table import Table
from rich.text import Text

from fedsiege.report.measured import Measured
from fedsiege.report.poisoning import decided
from fedsiege.report.poisoning.findings import held_out
from fedsiege.report.poisoning.rows import SENT, lines, moments, sent, sides, some_unusable
from fedsiege.report.poisoning.schema import Poisoning
from fedsiege.report.tabular import figured, open_table
from fedsiege.report.words import NONE, digits, span

FIRST = 12
"""Rounds of attack that are listed; the page has all."""


def tables(poisoning: Poisoning | None, wide: bool) -> list[Table]:
    """Decisions on membership, accuracies, what became of answers, what was submitted; those that say something."""
    if poisoning is None:
        return []
    found = [
        decisions(poisoning, wide),
        accuracies(poisoning, wide),
        answers(poisoning, wide),
        submitted(poisoning),
    ]
    return [table for table in found if table.row_count]


def decisions(poisoning: Poisoning, wide: bool) -> Table:
    """How often the decision on membership was right: over the last rounds, in the best, and by guessing."""
    found = poisoning.decisions
    table = open_table(f"decisions on {decided.asked(found)}: {decided.RULE}" if found else "")
    table.add_column("", overflow="fold")
    table.add_column("right, per cent", justify="right")
    for one in decided.rows(found):
        table.add_row(Text(one.name), _share(one.figure, wide))
    return table


def accuracies(poisoning: Poisoning, wide: bool) -> Table:
    """Main and backdoor accuracy before the attack, after it and at the end; per cent with intervals."""
    tested = f": {held_out(poisoning.backdoor)}" if poisoning.backdoor else ""
    table = open_table(f"accuracy of the global model, per cent{tested}")
    table.add_column("", overflow="fold")
    columns = moments(poisoning)
    for head in columns.values():
        table.add_column(Text(head), justify="right")
    for one in lines(poisoning):
        table.add_row(Text(one.name), *(figured(*one.written(moment), "", wide) for moment in columns))
    return table


def answers(poisoning: Poisoning, wide: bool) -> Table:
    """What the server made of the answers of attackers and of honest clients."""
    table = open_table("what became of answers")
    table.add_column("")
    dropped = some_unusable(poisoning)
    heads = ("Answers", *(["Unusable"] * dropped), "Rejected, %", "Mean share kept", "Mean factor")
    for head in heads:
        table.add_column(head, justify="right")
    for one in sides(poisoning):
        unusable = [one.unusable] * dropped
        table.add_row(one.name, one.answers, *unusable, _share(one.rejected, wide), one.kept, one.scale)
    return table


def submitted(poisoning: Poisoning) -> Table:
    """What was submitted in the first rounds of attack, beside the honest updates."""
    more = len(poisoning.attacks) - FIRST
    rest = f"; {more:,} more rounds in report.html" if more > 0 else ""
    table = open_table(f"what attackers submitted{rest}")
    for head in SENT:
        table.add_column(head, justify="right")
    for one in poisoning.attacks[:FIRST]:
        table.add_row(*sent(one))
    return table


def _share(figure: Measured, wide: bool) -> Text:
    return Text(NONE) if figure.value is None else figured(digits(figure.value), span(figure), "", wide)
