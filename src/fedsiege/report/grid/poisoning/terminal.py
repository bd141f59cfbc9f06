"""A sweep's cells under attack for a terminal."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fedsiege.report.grid.poisoning.measures import Siege, attacked
from fedsiege.report.grid.poisoning.places import ALL
from fedsiege.report.tabular import figured, open_table

NARROW = ("decision_last", "decision_best", "backdoor_attacked", "backdoor_last", "main_last", "attackers_rejected")
ROOMY = 112
"""Columns from which all measures fit."""


def tables(siege: Siege, width: int) -> list[RenderableType]:
    """A table per setting."""
    return [cells(siege, setting, width) for setting in siege.places.settings]


def cells(siege: Siege, setting: str, width: int = 80) -> Table:
    """The setting's cells by attack and defence; accuracies in per cent, losses in points, intervals below."""
    measures = [one for one in siege.measures() if width >= ROOMY or one.key in NARROW]
    lead = f"{setting or ALL}: " if len(siege.places.settings) > 1 else ""
    table = open_table(f"{lead}accuracies and rejected answers in per cent, main accuracy lost in points")
    places = siege.places
    for head in places.heads.values():
        table.add_column(head, overflow="fold")
    for one in measures:
        table.add_column(Text(one.short.replace(" attack", "").replace(", ", ",\n")), justify="right", no_wrap=True)
    for point in places.of(setting):
        style = "" if attacked(point) else "italic"
        figures = [figured(*one.written(one.figure(siege, point)), "", wide=False) for one in measures]
        table.add_row(*(Text(name, style) for name in places.named(point)), *figures)
    return table
