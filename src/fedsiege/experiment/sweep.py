"""A grid of experiments, carried out: cells side by side, each in a run folder of its own, then one report."""

import importlib.util
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from rich.console import Console

from fedsiege.errors import InputError
from fedsiege.experiment import collect
from fedsiege.experiment import folder as run_folder
from fedsiege.experiment.board import Board, clock
from fedsiege.experiment.cell import LOG, Ended, Work
from fedsiege.experiment.collect import SWEEP, Outcome
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.grid import Cell, Grid
from fedsiege.experiment.pool import Event, LocalPool, Started, cores
from fedsiege.experiment.prepare import Shelf, check, prepare
from fedsiege.experiment.published import Beside
from fedsiege.experiment.run import torch_threads
from fedsiege.experiment.shadows import plan_shadows
from fedsiege.experiment.sharing import Bundle, bundles
from fedsiege.files import write_bytes
from fedsiege.report import grid as report
from fedsiege.report.grid import SweepResult

T = TypeVar("T")

GRID = run_folder.GRID
CELLS = "cells"

ENGINES = "local", "ray"

EVERY = 1.0
"""Seconds between two looks at how far the running cells are."""

PATIENCE = 10.0
"""Seconds that a killed sweep's workers have for noticing that they are alone."""


class Pool(Protocol):
    """Whatever gets bundles of cells carried out, and tells what happens; None when for `every` seconds nothing."""

    def events(self, bundles: Sequence[tuple[Work, ...]], every: float) -> Generator[Event | None]:
        """What happens, as it happens; the work ends with the generator."""
        ...


def sweep(
    grid: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    jobs: int | None = None,
    engine: str = "local",
    resume: bool = False,
    progress: bool = True,
) -> SweepResult:
    """Run every cell of a grid with every seed, and report which defence helps, and what it costs.

    Args:
        grid: a path, the name of a shipped grid, or a mapping.
        out: the sweep's folder; `runs/<name of the file>` when left out.
        overrides: `a.b=value` for every cell, or one of the grid's own keys: `profile=small`, `seeds=[0]`.
        jobs: cells at the same time (one when left out); each has the machine's cores divided by it as threads.
        engine: `local` for processes on this machine, `ray` for the tasks of a Ray cluster.
        resume: go on in a folder that already holds this sweep; finished cells are left as they are.
        progress: show a live table.

    A cell that fails does not stop the others; the result has them with what was wrong.

    """
    made, where = Grid.load(grid, overrides)
    cells = made.cells_of(where)
    for cell in cells:
        _on_its_own(where, cell, check)
    place = Path(out or Path("runs") / ("grid" if isinstance(grid, Mapping) else Path(where).stem))
    pool = _pool(engine, jobs, place)
    console = Console(stderr=True) if progress else None
    _check(place, made, resume)
    with console.status("checking every cell") if console else nullcontext():
        unfinished = [cell for cell in cells if not run_folder.finished(place / cell.folder)]
        shadows = _try_all(where, unfinished, _threads(engine, jobs))
    if console and shadows:
        console.print(_announced(shadows), markup=False, highlight=False, soft_wrap=True)
    with opened(place, made, resume):
        _carry_out(place, made, cells, pool, console, Beside.of(made, where, cells))
        report.write(place)
    return SweepResult.read(place)


def _try_all(where: str, cells: list[Cell], threads: int) -> dict[Path, bool]:
    """Prepare a run of every cell, its data included, so that what cannot run is refused before the first one.

    Returns the folders of the shadow federations that the cells want, and whether each is cached. They are another
    for each seed, so cells that want some are prepared with all of theirs; and others for other `threads` of torch,
    which are those of a worker whose cell does not say.
    """
    shelf, wants, found = Shelf(), dict[str, bool](), dict[Path, bool]()

    def planned(experiment: Experiment) -> dict[Path, bool]:
        with torch_threads(experiment.threads or threads):
            return {one.folder: one.finished for one in plan_shadows(prepare(experiment, shelf)).runs}

    for cell in cells:
        if wants.get(cell.name, True):
            shadows = _on_its_own(where, cell, planned)
            wants[cell.name] = bool(shadows)
            found |= shadows
    return found


def _announced(shadows: Mapping[Path, bool]) -> str:
    """What the shadow federations of all cells will cost, in a sentence."""
    count, cached = len(shadows), sum(shadows.values())
    places = ", ".join(sorted({str(folder.parent) for folder in shadows}))
    return (
        f"The cells want {count} shadow federation{'' if count == 1 else 's'} in all: {cached} cached, "
        f"{count - cached} to train; kept in {places}"
    )


def _on_its_own(where: str, cell: Cell, check: Callable[[Experiment], T]) -> T:
    try:
        return check(cell.experiment)
    except InputError as error:
        raise type(error)(f"{where}: cell {cell.name!r}: {error}") from None


def _pool(engine: str, jobs: int | None, place: Path) -> Pool:
    if engine not in ENGINES:
        raise InputError(f"engine: got {engine!r}; expected {' or '.join(ENGINES)}")
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: got {jobs}; expected 1 or more")
    if engine == "local":
        return LocalPool(jobs or 1, _threads(engine, jobs), place / LOG)
    if jobs is not None:
        raise InputError(f"jobs: got {jobs}; expected none with engine ray: the cluster's size decides")
    if importlib.util.find_spec("ray") is None:
        raise InputError("engine: got 'ray', and Ray is not installed; expected it: pip install fedsiege[flower]")
    from fedsiege.experiment.ray_pool import RayPool

    return RayPool(place / LOG)


def _threads(engine: str, jobs: int | None) -> int:
    """Threads of torch in a worker whose cell does not say how many."""
    return 1 if engine == "ray" else max(1, cores() // (jobs or 1))


def _carry_out(
    place: Path, grid: Grid, cells: list[Cell], pool: Pool, console: Console | None, beside: Beside | None
) -> None:
    """All cells that are not finished; sweep.json says after each of them how things stand."""
    done = [i for i, cell in enumerate(cells) if run_folder.finished(place / cell.folder)]
    left = bundles(cells, done)
    rows = [
        collect.row(place, cell, Outcome("done" if i in set(done) else "missing")) for i, cell in enumerate(cells)
    ]
    collect.write(place, grid, rows, beside)
    _wait_for_locks([place / cells[i].folder for bundle in left for i in bundle.todo])
    if not left:
        return
    board = Board(place, cells, done, console)
    with board.shown(), closing(pool.events([_works(place, cells, one) for one in left], EVERY)) as events:
        for event in events:
            if isinstance(event, Started):
                board.started(event.place)
            elif isinstance(event, Ended):
                outcome = Outcome("failed" if event.error else "done", event.error)
                row = rows[event.place] = collect.row(place, cells[event.place], outcome)
                collect.write(place, grid, rows, beside)
                board.ended(event.place, outcome.status, event.error or _told(row))
            else:
                board.refresh()


def _works(place: Path, cells: Sequence[Cell], bundle: Bundle) -> tuple[Work, ...]:
    """A bundle with its folders; the first of its cells that has trained gives the others what it has."""
    folders = {i: (place / cells[i].folder).absolute() for i in bundle.cells}
    return tuple(
        Work(i, folders[i], cells[i].experiment, tuple(folders[j] for j in bundle.cells if j != i))
        for i in bundle.todo
    )


def _told(row: Mapping[str, Any]) -> str:
    return f"accuracy {row['accuracy']:.3f}, {clock(row['wall_seconds'])}"


@contextmanager
def opened(place: Path, grid: Grid, resume: bool) -> Iterator[None]:
    """Hold the sweep's folder for one process, after a look that nothing of anybody else's would be overwritten.

    Raises InputError when the folder holds something else, another grid, or another process's sweep.
    """
    _check(place, grid, resume)
    place.mkdir(parents=True, exist_ok=True)
    with (place / run_folder.LOCK).open("a+") as lock:
        run_folder.hold(lock, place)
        _check(place, grid, resume)
        if not (place / GRID).exists():
            text = yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            write_bytes(place / GRID, text.encode())
        yield


def _check(place: Path, grid: Grid, resume: bool) -> None:
    left = run_folder.check_free(place, resume, "sweep")
    if (place / GRID).is_file():
        run_folder.check_same(place / GRID, grid.model_dump(mode="json"), "grid", "sweep")
        return
    theirs = {CELLS, SWEEP, LOG, run_folder.CONFIG, run_folder.RESULT, run_folder.TRACE, run_folder.REPORT}
    if theirs.intersection(left):
        there = min(theirs.intersection(left))
        raise InputError(f"{place}: has {there} but no {GRID}; it is not a sweep that can go on")


def _wait_for_locks(folders: Sequence[Path]) -> None:
    """The workers of a sweep that was killed notice it soon; InputError when one goes on."""
    until = time.monotonic() + PATIENCE
    for lock in [folder / run_folder.LOCK for folder in folders]:
        while lock.is_file():
            try:
                with lock.open("a+") as file:
                    run_folder.hold(file, lock.parent)
                break
            except InputError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
