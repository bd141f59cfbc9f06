"""A paper's figures beside the sweep's, cell by cell: in words, for a terminal, and as a frame."""

from dataclasses import dataclass

import pandas as pd
from rich.table import Table
from rich.text import Text

from fedsiege.report import findings
from fedsiege.report.findings import Compared
from fedsiege.report.grid.finished import FinishedSweep
from fedsiege.report.grid.schema import Paper, Published
from fedsiege.report.schema import Measured
from fedsiege.report.tabular import open_table
from fedsiege.report.words import bare_points, count, digits, listed, points_span, span

ACCURACY = "accuracy"
CHANGE = "accuracy_change"
DECISIONS = {
    "last_decision": "right over the last rounds",
    "best_decision": "right in the best round, chosen with the truth",
}
SIDES = ("agrees", "ours is higher", "ours is lower")
COLUMNS = (
    *("cell", "attack", "metric", "against", "published", "spread", "rounding"),
    *("ours", "ours_low", "ours_high", "seeds", "verdict"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A published figure beside ours, written out; `seeds` is over how many ours is a mean."""

    subject: str
    compared: Compared
    seeds: str
    verdict: str


def lines(sweep: FinishedSweep, paper: Paper) -> dict[str, list[Line]]:
    """Cell -> its lines, both in the paper's order."""
    found: dict[str, list[Line]] = {}
    for figure in paper.figures:
        bare = "Decisions on membership" if figure.metric in DECISIONS else "Test accuracy"
        subject = sweep.names.get(figure.attack, figure.attack) if figure.attack else bare
        seeds = str(figure.ours.n or "") if figure.ours else ""
        found.setdefault(figure.cell, []).append(Line(subject, compared(figure), seeds, figure.verdict))
    return found


def compared(figure: Published) -> Compared:
    """A published figure and ours, written alike: shares in per cent, changes of accuracy in points."""
    ours = figure.ours or Measured(value=None, low=None, high=None)
    spread = f"± {100 * figure.spread:.2f}" if figure.spread is not None else ""
    if figure.metric == ACCURACY or figure.metric in DECISIONS:
        name = DECISIONS.get(figure.metric, ACCURACY)
        return Compared(name, digits(figure.published), spread, digits(ours.value), span(ours))
    if figure.metric == CHANGE:
        name = f"change from {figure.against}, points"
        return Compared(name, bare_points(figure.published), spread, bare_points(ours.value), points_span(ours))
    return findings.compared(figure)


def verdicts(paper: Paper) -> str:
    """With how many of the published figures ours agrees, in a sentence."""
    said = [figure.verdict for figure in paper.figures]
    agrees, higher, lower = (sum(one.startswith(side) for one in said) for side in SIDES)
    left = len(said) - agrees - higher - lower
    rest = f"; {left:,} {'is' if left == 1 else 'are'} not compared" if left else ""
    total = count(len(said), "published figure")
    return f"Of {total} ours agrees with {agrees:,}, is higher than {higher:,} and lower than {lower:,}{rest}."


def caution(paper: Paper) -> str:
    """Which fields a profile or an override changed; nothing where none did."""
    if not paper.changed:
        return ""
    differ = "differs" if len(paper.changed) == 1 else "differ"
    return f"The published figures were measured in another setting: {listed(paper.changed)} {differ} here."


def paper_table(sweep: FinishedSweep, paper: Paper) -> Table:
    """Published, ours, interval and verdict, figure by figure below each cell's name; shares in per cent."""
    table = open_table(f"beside the paper: {paper.table or paper.source}")
    table.add_column("Cell", overflow="fold")
    table.add_column("figure", overflow="fold")
    for head in ("published", "ours", "interval", "seeds"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for cell, own in lines(sweep, paper).items():
        table.add_row(Text(cell, style="bold"))
        for line in own:
            one = line.compared
            cells = (
                f"  {line.subject}",
                one.metric,
                one.published,
                one.ours,
                one.interval,
                line.seeds,
                line.verdict,
            )
            table.add_row(*map(Text, cells))
    return table


def paper_frame(paper: Paper) -> pd.DataFrame:
    """One row per published figure: plain numbers, shares as shares."""
    table = pd.DataFrame([_record(figure) for figure in paper.figures], columns=list(COLUMNS))
    return table.astype({"seeds": "Int64"})


def _record(figure: Published) -> dict[str, object]:
    ours = figure.ours or Measured(value=None, low=None, high=None)
    return {
        "cell": figure.cell,
        "attack": figure.attack or None,
        "metric": figure.metric,
        "against": figure.against or None,
        "published": figure.published,
        "spread": figure.spread,
        "rounding": figure.rounding,
        "ours": ours.value,
        "ours_low": ours.low,
        "ours_high": ours.high,
        "seeds": ours.n,
        "verdict": figure.verdict,
    }
