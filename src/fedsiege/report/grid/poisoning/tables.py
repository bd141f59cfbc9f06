"""poisoning.csv and poisoning_runs.csv of a sweep, and its tables of attacks by defences for a paper."""

from collections.abc import Iterator

import pandas as pd

from fedsiege.report.booktabs import booktabs, escape, line, small
from fedsiege.report.grid.finished import FinishedSweep, Point
from fedsiege.report.grid.poisoning.measures import FEASIBLE, Measure, Siege, attacked, parts, planted, plants
from fedsiege.report.grid.poisoning.places import ALL, Block
from fedsiege.report.grid.schema import Cell
from fedsiege.report.measured import Measured
from fedsiege.report.poisoning.judged import UNKNOWN
from fedsiege.report.poisoning.schema import Course, Poisoning

COLUMNS = 6  # defences side by side in the LaTeX table; more go below
PAPER = ("decision_last", "decision_best", "backdoor_attacked", "backdoor_mean", "backdoor_last", "main_last")
"""The measures that the LaTeX tables have; the files have all."""
CELLS = ("setting", "cell", "attack", "defence", "adversary", "rule", "labels", "seeds", "plants", "planted")
RUNS = (
    *("setting", "cell", "attack", "defence", "seed", "status", "failure", "folder", "adversary", "plants"),
    *("rule", "labels", "accuracy", "fresh", "backdoor_mean", "persistence", "persistence_censored"),
)
COURSES = {"main": "main", "backdoor": "success", "mistaken": "mistaken"}
SIDES = ("attackers", "honest")


def frame(siege: Siege) -> pd.DataFrame:
    """One row per cell: every measure over its seeds with its interval, and whether its backdoor was planted."""
    measures = siege.measures()
    names = [f"{one.key}{side}" for one in measures for side in ("", "_low", "_high")]
    records = [_cell(siege, point, measures) for point in siege.sweep.points]
    table = pd.DataFrame(records, columns=[*CELLS, *names])
    return table.astype({**dict.fromkeys(names, "float64"), "planted": "boolean"})


def runs_frame(siege: Siege) -> pd.DataFrame:
    """One row per run, with its own figures and their intervals, and why it failed."""
    records = [_run(siege, point, cell) for point in siege.sweep.points for cell in point.cells]
    figures = dict.fromkeys(name for record in records for name in record if name not in RUNS)
    return pd.DataFrame(records, columns=[*RUNS, *figures])


def latex(siege: Siege) -> str:
    """A table for each of the main measures, attacks by defences, settings below each other; "" without any."""
    measures = [one for one in siege.measures() if one.key in PAPER]
    return "\n".join(_table(siege, one) for one in measures)


def _cell(siege: Siege, point: Point, measures: list[Measure]) -> dict[str, object]:
    labels = dict.fromkeys(one.adversary.label for one in parts(point).values() if one.adversary)
    record: dict[str, object] = {
        **_where(siege, point),
        "adversary": " + ".join(labels) or None,
        "rule": point.cells[0].rule,
        "labels": " + ".join(point.labels),
        "seeds": len(point.done),
        "plants": plants(point),
        "planted": planted(siege, point) if attacked(point) else None,
    }
    for one in measures:
        record |= _sides(one.key, one.figure(siege, point))
    return record


def _run(siege: Siege, point: Point, cell: Cell) -> dict[str, object]:
    record: dict[str, object] = {
        **_where(siege, point),
        **cell.model_dump(include={"seed", "status", "folder", "rule", "accuracy"}),
        "failure": cell.error,
        "labels": " + ".join(cell.labels),
    }
    if one := cell.poisoning:
        lasts = one.success.persistence if one.success else None
        record |= {
            "adversary": one.adversary.label if one.adversary else None,
            "plants": one.adversary.plants if one.adversary else None,
            "fresh": one.fresh,
            "backdoor_mean": one.success.mean if one.success else None,
            "persistence": lasts.rounds if lasts else None,
            "persistence_censored": lasts.censored if lasts else None,
            **_figures(one),
        }
    return record


def _figures(one: Poisoning) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, part in COURSES.items():
        course: Course | None = getattr(one, part)
        for moment in ("before", "attacked", "last"):
            found |= _sides(f"{name}_{moment}", (getattr(course, moment) if course else None) or UNKNOWN)
    found |= _sides("main_lowest", one.main.lowest or UNKNOWN)
    for side in SIDES:
        answers = getattr(one.detection, side)
        found |= {f"{side}_answers": answers.answers, **_sides(f"{side}_rejected", answers.rejected or UNKNOWN)}
        found |= {f"{side}_kept": answers.kept, f"{side}_scale": answers.scale}
    if decisions := one.decisions:
        found |= {**_sides("decision_last", decisions.last), **_sides("decision_best", decisions.best)}
        found |= {"decision_best_round": decisions.best.round, "decision_chance": decisions.chance}
        found |= {FEASIBLE: one.counters.get(FEASIBLE)}
    return found


def _where(siege: Siege, point: Point) -> dict[str, object]:
    places = siege.places
    return {
        "setting": places.setting(point),
        "cell": point.name,
        "attack": places.attack(point),
        "defence": places.defence(point),
    }


def _sides(name: str, figure: Measured) -> dict[str, object]:
    return {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}


def _table(siege: Siege, measure: Measure) -> str:
    blocks = [
        (block, block.columns[i : i + COLUMNS])
        for block in siege.places.blocks
        for i in range(0, len(block.columns), COLUMNS)
    ]
    width = max((len(columns) for _, columns in blocks), default=1)
    several = len(siege.places.settings) > 1
    body = ["\n".join(_block(siege, measure, block, columns, width, several)) for block, columns in blocks]
    return booktabs(_caption(siege.sweep, measure), width, body)


def _block(
    siege: Siege, measure: Measure, block: Block, columns: tuple[str, ...], width: int, several: bool
) -> Iterator[str]:
    if several:
        yield f"    \\multicolumn{{{width + 1}}}{{l}}{{\\itshape {escape(block.setting or ALL)}}} \\\\"
    yield line("", [escape(column) for column in columns])
    yield "    \\midrule"
    for row in siege.rows(block, measure):
        points = [block.at(row, column) for column in columns]
        written = [measure.written(measure.figure(siege, point) if point else UNKNOWN) for point in points]
        yield line(escape(row), [escape(value) for value, _ in written])
        if any(interval for _, interval in written):
            yield line("", [small(interval) for _, interval in written])


def _caption(sweep: FinishedSweep, measure: Measure) -> str:
    title = f"{escape(sweep.report.title)}: " if sweep.report.title else ""
    unit = "\\%" if measure.unit == "share" else "points"
    return f"{title}{escape(measure.name[:1].lower() + measure.name[1:])} ({unit}), attacks by defences."
