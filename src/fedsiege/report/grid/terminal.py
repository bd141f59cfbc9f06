"""A sweep's result for the terminal."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedsiege.report.grid.findings import (
    BELOW_UNDEFENDED,
    EQUALLY_MANY,
    EVERY,
    RATE,
    STRONGEST,
    basis,
    done,
    epsilons,
    headlines,
    idle,
    setting_name,
    strongest_cautions,
    unfinished,
    unproven,
    warnings,
)
from fedsiege.report.grid.finished import FinishedSweep
from fedsiege.report.grid.paper import paper_table, verdicts
from fedsiege.report.grid.poisoning import findings as poisoning
from fedsiege.report.grid.poisoning.measures import Siege
from fedsiege.report.grid.poisoning.terminal import tables
from fedsiege.report.grid.tables import extremes, heading
from fedsiege.report.grid.verdict import Headline
from fedsiege.report.schema import Measured
from fedsiege.report.tabular import MARK, WIDE, figured, open_table
from fedsiege.report.words import bare_points, digits, fixed, fixed_span, listed, percent, points_span, span

COLOURS = {True: "bold green", False: "bold red", None: "bold"}
FIRST = 8  # unfinished runs that are named; the page has all


COLUMN = 12  # columns that a figure and its heading take


def summary(sweep: FinishedSweep, width: int = 80) -> RenderableType:
    """Headline, hypervolumes, strongest attack per defence, the paper's figures and warnings, for a terminal."""
    parts: list[RenderableType] = [Text(sweep.report.title or "Sweep", style="bold")]
    for found in headlines(sweep):
        parts.append(Text(found.statement, style=COLOURS[found.helps]))
        parts += [Text(line, style="dim") for line in found.support]
        parts += _settled(found) if found.about == "poisoning" else _audited(sweep, found, width)
    if sweep.besieged:
        siege = Siege.of(sweep)
        parts += [part for table in tables(siege, width) for part in (Text(), table)]
        parts.append(Text(poisoning.basis(siege), style="dim"))
    paper = sweep.report.paper
    if paper:
        parts += [Text(), paper_table(sweep, paper), Text(verdicts(paper))]
    return Padding(Group(*parts, Text(), *_notes(sweep)), (1, 1))


def _settled(found: Headline) -> list[RenderableType]:
    """Of each of several settings with attackers its verdict."""
    said = ((one.setting or EVERY, one.statement) for one in found.verdicts)
    return [part for name, text in said for part in (Text(), Text(name, style="bold"), Text(text))]


def _audited(sweep: FinishedSweep, found: Headline, width: int) -> list[RenderableType]:
    """Of each setting its verdict, hypervolumes and strongest attacks."""
    parts: list[RenderableType] = []
    several = len(sweep.settings) > 1
    for verdict in found.verdicts:
        if several:
            name = setting_name(sweep, verdict.setting)
            parts += [Text(), Text(name, style="bold"), Text(verdict.statement)]
        if sweep.families(verdict.setting) and sweep.attacks(verdict.setting):
            parts += [Text(), hypervolumes(sweep, verdict.setting, width)]
        if any(point.figures for point in sweep.by_setting[verdict.setting]):
            parts += [Text(), strongest(sweep, verdict.setting, width)]
    return parts


def hypervolumes(sweep: FinishedSweep, setting: str, width: int = 80) -> Table:
    """Attacks by families of defences; each attack's best defence in bold, unless undefended is better.

    More families than fit side by side stand below each other, beside the strongest attacks only.
    """
    largest, _ = extremes(sweep, setting)
    families = sweep.columns(setting)
    attacks = (*sweep.attacks(setting), None)
    upright = len(families) * COLUMN <= width - COLUMN
    table = open_table("hypervolume of (test error, TPR): larger is a better defence, smaller a stronger attack")
    table.add_column("Attack" if upright else "Defence", overflow="fold")

    def figure(attack: str | None, family: str) -> Text:
        one = sweep.hypervolume(setting, family, attack)
        style = "bold" if (attack, family) in largest else ""
        return figured(fixed(one.value), fixed_span(one), style, width >= WIDE)

    def name(attack: str | None) -> Text:
        return Text(STRONGEST if attack is None else _name(sweep, attack))

    if upright:
        for family in families:
            table.add_column(Text(heading(family)), justify="right", overflow="fold")
        for attack in attacks:
            table.add_row(name(attack), *(figure(attack, family) for family in families))
    else:
        shown = (None, *attacks[: max(1, width // (2 * COLUMN) - 2)])
        for attack in shown:
            table.add_column(name(attack), justify="right")
        for family in families:
            table.add_row(Text(heading(family)), *(figure(attack, family) for attack in shown))
    return table


def strongest(sweep: FinishedSweep, setting: str, width: int = 80) -> Table:
    """Each cell's accuracy, what it costs, and the attack that finds most."""
    table = open_table("the strongest attack on each cell, chosen with the truth in hand")
    table.add_column("Cell", overflow="fold")
    for head in ("Accuracy", "Cost, points", RATE):
        table.add_column(head, justify="right")
    table.add_column("Attack", overflow="fold")
    wide = width >= WIDE
    for point in sweep.by_setting[setting]:
        best = point.strongest
        if best is None:
            continue
        cost = sweep.cost(point)
        table.add_row(
            Text(point.short, style="" if point.defended else "italic"),
            _percent(point.accuracy, "", wide),
            figured(bare_points(cost.value), points_span(cost), "", wide) if point.defended else "",
            _percent(best.tpr, MARK if best.warnings else "", wide),
            Text(_name(sweep, best.attack)),
        )
    return table


def _name(sweep: FinishedSweep, attack: str) -> str:
    return sweep.names[attack] + (" [adapted]" if attack in sweep.adapted else "")


def _percent(measured: Measured, mark: str, wide: bool) -> Text:
    if measured.value is None:
        return Text(percent(None))
    return figured(digits(measured.value) + mark, span(measured), "", wide)


def _notes(sweep: FinishedSweep) -> list[Text]:
    notes = [Text(done(sweep)), *([Text(basis(sweep), style="dim")] if sweep.audited else [])]
    if sweep.styles and sweep.names:
        notes.append(Text(f"{BELOW_UNDEFENDED} {EQUALLY_MANY}", style="dim"))
    notes += [Text(f"{point.called}: {one}.") for point in sweep.points for one in epsilons(point)]
    notes += [Text(f"{MARK} {one}", style="yellow") for one in strongest_cautions(sweep)]
    notes += [Text(f"! {one}", style="yellow") for one in warnings(sweep)]
    left = unfinished(sweep)
    notes += [Text(f"  {cell}, seed {seed}: {status}: {why}") for cell, seed, status, why in left[:FIRST]]
    if len(left) > FIRST:
        notes.append(Text(f"  and {len(left) - FIRST:,} more, see report.html"))
    notes += [
        Text(f"! never acted: {label}, in {listed(cells)}.", style="bold yellow") for label, cells in idle(sweep)
    ]
    return [*notes, *(Text(f"! {one}", style="bold yellow") for one in unproven(sweep))]
