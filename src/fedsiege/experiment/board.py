"""A sweep as it goes: a live table on a terminal, plain lines elsewhere, or nothing at all."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedsiege.experiment.folder import TRACE
from fedsiege.experiment.grid import Cell
from fedsiege.trace import recorded_in

STYLES = {"running": "bold cyan", "failed": "bold red", "done": "green", "waiting": "dim"}
"""How a state looks, those that a person wants to see first in front."""


class Board:
    """What is known of every cell while a sweep goes on. States are `waiting`, `running`, `done` and `failed`."""

    def __init__(self, folder: Path, cells: Sequence[Cell], done: Sequence[int], console: Console | None) -> None:
        self._folder, self._cells, self._console = folder, cells, console
        self._states = ["done" if place in set(done) else "waiting" for place in range(len(cells))]
        self._notes = ["" for _ in cells]
        self._since: dict[int, float] = {}
        self._took: dict[int, float] = {}
        self._began, self._before = time.monotonic(), len(done)
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table while this lasts, where there is somebody to look at it."""
        if self._console is None or not self._console.is_terminal:
            yield
            return
        with Live(self.table(), console=self._console, auto_refresh=False, vertical_overflow="crop") as self._live:
            yield
        self._live = None

    def refresh(self) -> None:
        """Show how far the running cells are."""
        if self._live is not None:
            self._live.update(self.table(), refresh=True)

    def started(self, place: int) -> None:
        """A worker took up a cell, or took it up again."""
        self._states[place] = "running"
        self._since[place] = time.monotonic()
        self.refresh()

    def ended(self, place: int, state: str, note: str) -> None:
        """A cell is done or failed; `note` says what came of it."""
        self._states[place], self._notes[place] = state, note
        self._took[place] = time.monotonic() - self._since.get(place, self._began)
        if self._live is None and self._console is not None:
            cell, over = self._cells[place], sum(one in ("done", "failed") for one in self._states)
            self._console.print(
                Text(f"[{over}/{len(self._cells)}] {state}: {cell.name}, seed {cell.seed}: {note}"), soft_wrap=True
            )
        self.refresh()

    def table(self) -> RenderableType:
        """The cells that fit on the screen, in the order of the grid, and a line about all of them."""
        room = max(3, (self._console.height if self._console else 24) - 4)
        first = {state: rank for rank, state in enumerate(STYLES)}
        shown = sorted(range(len(self._cells)), key=lambda place: (first[self._states[place]], place))[:room]
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("cell", "seed", "state", "rounds", "time", ""):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for place in sorted(shown):
            state = self._states[place]
            table.add_row(
                Text(self._cells[place].name),
                str(self._cells[place].seed),
                Text(state, STYLES[state]),
                self._rounds(place),
                self._time(place),
                Text(self._notes[place]),
            )
        hidden = len(self._cells) - len(shown)
        more = [Text(f"and {hidden} more cells", "dim")] if hidden else []
        return Group(table, *more, Text(self.summary()))

    def summary(self) -> str:
        """How many cells are in which state, the time since the beginning, and the time to go."""
        counts = [f"{self._states.count(state)} {state}" for state in STYLES if state in self._states]
        left = self._to_go()
        to_go = "" if left is None else f", about {clock(left)} to go"
        return f"{', '.join(counts)}; {clock(time.monotonic() - self._began)}{to_go}"

    def _to_go(self) -> float | None:
        """Seconds, if the rest goes on as this session did: by cells, and rounds of those that are running."""
        over = sum(state in ("done", "failed") for state in self._states) - self._before
        running = [place for place, state in enumerate(self._states) if state == "running"]
        part = over + sum(self._recorded(place) / self._cells[place].experiment.rounds for place in running)
        left = len(self._cells) - self._before - part
        return (time.monotonic() - self._began) * left / part if part > 0 else None

    def _recorded(self, place: int) -> int:
        """The last recorded round of a cell: what can be known from outside."""
        return max(recorded_in(self._folder / self._cells[place].folder / TRACE), default=0)

    def _rounds(self, place: int) -> str:
        rounds = self._cells[place].experiment.rounds
        return f"{self._recorded(place)}/{rounds}" if self._states[place] == "running" else f"{rounds}"

    def _time(self, place: int) -> str:
        if place in self._took:
            return clock(self._took[place])
        return clock(time.monotonic() - self._since[place]) if place in self._since else ""


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as a clock shows them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
