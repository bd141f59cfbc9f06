"""Worker processes on this machine: they live as long as the sweep, and are replaced when they are killed."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from fedsiege.bench import THREADS
from fedsiege.errors import FedSiegeError
from fedsiege.experiment.cell import Ended, Work, carry_out
from fedsiege.experiment.prepare import Shelf

READY = "ready"
LAST_BREATH = 5.0
"""Seconds that a process has for ending after its pipe was closed."""
TRIES = 2
"""A cell whose worker dies is tried again, once."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker took up a cell."""

    place: int


Event = Started | Ended


@dataclass(slots=True)
class _Lane:
    """One worker, and what is left of the cells that it was given."""

    process: SpawnProcess
    pipe: Connection
    left: deque[Work] = field(default_factory=deque)
    ready: bool = False


@dataclass(frozen=True, slots=True)
class LocalPool:
    """So many worker processes; torch has `threads` threads in each, but for cells that say otherwise."""

    jobs: int
    threads: int
    log: Path

    def events(self, bundles: Sequence[tuple[Work, ...]], every: float) -> Generator[Event | None]:
        """Carry out all bundles; what happens, as it happens, and None when for `every` seconds nothing did.

        Workers end with the generator, whatever ends it, and with this process, however it ends. FedSiegeError when
        a worker cannot even start.
        """
        waiting, deaths = deque(bundles), Counter[int | None]()
        with _library_threads(self.threads):
            lanes = [self._lane() for _ in range(min(self.jobs, len(waiting)))]
            try:
                while lanes:
                    spoke = wait([lane.pipe for lane in lanes], every)
                    if not spoke:
                        yield None
                    for lane in [lane for lane in lanes if lane.pipe in spoke]:
                        try:
                            said = lane.pipe.recv()
                        except (EOFError, ConnectionError):
                            yield from self._replaced(lanes, lane, deaths)
                            continue
                        if said == READY:
                            lane.ready, deaths[None] = True, 0
                        else:
                            lane.left.popleft()
                            yield said
                        yield from _next(lanes, lane, waiting)
            finally:
                for lane in lanes:
                    _end(lane)
                if self.log.is_file() and not self.log.stat().st_size:
                    self.log.unlink()

    def _lane(self) -> _Lane:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.threads, self.log))
        process.start()
        theirs.close()
        return _Lane(process, ours)

    def _replaced(self, lanes: list[_Lane], dead: _Lane, deaths: Counter[int | None]) -> Iterator[Event]:
        """A new worker in place of a dead one goes on with its cells, but for one that two workers died of.

        `deaths` counts by cell; under None, those of workers that could not begin.
        """
        dead.process.join(LAST_BREATH)
        _end(dead)
        how = _ended_how(dead.process.exitcode)
        place = dead.left[0].place if dead.left and dead.ready else None
        deaths[place] += 1
        if deaths[place] == TRIES:
            if place is None:
                raise FedSiegeError(
                    f"a worker process {how} before it could begin; a script calls fedsiege.sweep under "
                    "if __name__ == '__main__':"
                )
            dead.left.popleft()
            yield Ended(place, f"its worker process {how}, {TRIES} times")
        fresh = self._lane()
        fresh.left = dead.left
        lanes[lanes.index(dead)] = fresh


def _next(lanes: list[_Lane], lane: _Lane, waiting: deque[tuple[Work, ...]]) -> Iterator[Event]:
    """Tell a worker what is next; one for which nothing is left ends."""
    if not lane.left and waiting:
        lane.left = deque(waiting.popleft())
    if not lane.left:
        _end(lane)
        lanes.remove(lane)
        return
    with contextlib.suppress(BrokenPipeError):  # it died meanwhile: the next look at its pipe says so
        lane.pipe.send(lane.left[0])
    yield Started(lane.left[0].place)


def _end(lane: _Lane) -> None:
    """Every file of a run is whole or absent, so a worker can end anywhere."""
    lane.process.kill()
    lane.process.join()
    lane.pipe.close()


def _ended_how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"


@contextlib.contextmanager
def _library_threads(threads: int) -> Iterator[None]:
    """How many threads the numerical libraries of a process that begins meanwhile have."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve(pipe: Connection, threads: int, log: Path) -> None:
    """A worker: carry out what comes through the pipe, until it closes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_follow_parent, daemon=True).start()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    pipe.send(READY)
    shelf = Shelf()
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(carry_out(pipe.recv(), log, shelf))


def _follow_parent() -> None:
    """End this process, at once, when the parent has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
