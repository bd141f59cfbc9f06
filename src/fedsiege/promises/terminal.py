"""The verdicts in a terminal, and for programs."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsiege.errors import InputError
from fedsiege.promises.declared import declared_in
from fedsiege.promises.judgement import ALPHA, Outcome, Verdict, check
from fedsiege.update_log import UpdateLog

COLOURS: dict[Outcome, str] = {"kept": "green", "broken": "bold red", "cannot be told": "yellow"}
"""Of an outcome in a terminal."""


def table(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts for a terminal."""
    made_of = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("Client", "Declared", "Promise", "Verdict", "Why"):
        made_of.add_column(name, justify="right" if name == "Client" else "left", overflow="fold")
    for one in verdicts:
        cells = [str(one.client), one.component, one.promise or "-", one.outcome, one.why]
        made_of.add_row(
            *(Text(cell, style=COLOURS[one.outcome] if at == 3 else "") for at, cell in enumerate(cells))
        )
    return made_of


def as_json(verdicts: Sequence[Verdict], log: UpdateLog) -> dict[str, Any]:
    """The verdicts for a program: `{"log": ..., "verdicts": [...], "counts": {...}}`."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    return {"log": str(log.folder), "counts": dict(counts), "verdicts": [asdict(one) for one in verdicts]}


def verify(log: UpdateLog, declared: Path | None = None, json_wanted: bool = False) -> bool:
    """Check a log, show the verdicts in the terminal or as JSON; whether no promise is broken.

    `declared` is a file as `declared_in` reads it, in place of what the log says. InputError where nobody declares
    anything.
    """
    said = log.declared if declared is None else declared_in(declared, log.clients)
    verdicts = check(log, said)
    if not any(said.values()):
        raise InputError(f"{log.folder}: nobody declares a defence; expected some in log.json, or --declared FILE")
    counts = Counter(verdict.outcome for verdict in verdicts)
    if json_wanted:
        print(json.dumps(as_json(verdicts, log), indent=2))
        return not counts["broken"]
    console = Console(soft_wrap=False)
    console.print(table(verdicts))
    level = next((one.level for one in verdicts if one.level is not None), None)
    chance = f"; a test's level is {level:.2g}, {ALPHA:g} over all of them" if level is not None else ""
    words = ", ".join(f"{counts[outcome]} {outcome}" for outcome in COLOURS)
    found = f"{len(verdicts)} promise" + ("" if len(verdicts) == 1 else "s")
    console.print(f"{found}: {words}{chance}", highlight=False)
    return not counts["broken"]
