"""What a person sees of a sweep while it goes on."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import TINY

from fedsiege.experiment.board import Board, clock
from fedsiege.experiment.grid import Cell, Grid


@pytest.fixture
def cells() -> list[Cell]:
    made, where = Grid.load({"experiment": {**TINY, "rounds": 10}, "axes": {"clients": [3, 4, 5, 6]}})
    return made.cells_of(where)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the clock, in seconds."""
    time = [0.0]
    monkeypatch.setattr("fedsiege.experiment.board.time.monotonic", lambda: time[0])
    return time


def text(board: Board) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as captured:
        console.print(board.table())
    return [" ".join(line.split()) for line in captured.get().splitlines()]


def test_states_rounds_times_and_the_time_to_go(cells: list[Cell], now: list[float], tmp_path: Path) -> None:
    board = Board(tmp_path, cells, [0], None)
    assert board.summary() == "1 done, 3 waiting; 0:00"
    board.started(1)
    now[0] = 20
    board.ended(1, "failed", "why [red]not[/red]")
    board.started(2)
    trace = tmp_path / cells[2].folder / "trace"
    trace.mkdir(parents=True)
    for number in (2, 5):
        (trace / f"round_{number:06d}.safetensors").touch()
    now[0] = 30
    # One of three cells and half of another in 30 seconds: as long again for the other half and the last.
    assert text(board) == [
        "cell seed state rounds time",
        "clients=3 0 done 10",
        "clients=4 0 failed 10 0:20 why [red]not[/red]",
        "clients=5 0 running 5/10 0:10",
        "clients=6 0 waiting 10",
        "1 running, 1 failed, 1 done, 1 waiting; 0:30, about 0:30 to go",
    ]


def test_cells_that_do_not_fit_are_counted_and_the_running_ones_come_first(
    cells: list[Cell], tmp_path: Path
) -> None:
    console = Console(file=io.StringIO(), height=7, width=100, force_terminal=True)
    board = Board(tmp_path, cells, [0, 1], console)
    board.started(3)
    lines = text(board)
    assert [line.partition(" ")[0] for line in lines[:4]] == ["cell", "clients=3", "clients=4", "clients=6"]
    assert lines[4] == "and 1 more cells"


def test_a_terminal_gets_a_live_table(cells: list[Cell], tmp_path: Path) -> None:
    out = io.StringIO()
    board = Board(tmp_path, cells, [], Console(file=out, width=100, force_terminal=True))
    with board.shown():
        board.started(0)
        board.ended(0, "done", "accuracy 0.900, 0:01")
        board.refresh()
    assert "accuracy 0.900" in out.getvalue()
    assert "[1/4]" not in out.getvalue()


@pytest.mark.parametrize("quiet", [False, True])
def test_elsewhere_there_is_a_line_for_each_run_or_nothing(quiet: bool, cells: list[Cell], tmp_path: Path) -> None:
    out = io.StringIO()
    board = Board(tmp_path, cells, [0], None if quiet else Console(file=out, width=40))
    with board.shown():
        board.started(1)
        board.refresh()
        board.ended(1, "failed", "a reason that is longer than the line is wide [x]")
    line = "[2/4] failed: clients=4, seed 0: a reason that is longer than the line is wide [x]\n"
    assert out.getvalue() == ("" if quiet else line)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36610, "10:10:10")]
)
def test_a_clock(seconds: Any, shown: str) -> None:
    assert clock(seconds) == shown
