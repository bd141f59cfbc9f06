"""A sweep in two worker processes against one: cells of a grid are the natural parallelism.

Both sides are the whole sweep, with the start of the workers and the report, on one thread a worker; the scores of
every cell must be the same bytes. Wall time, not CPU time: what is gained is a person's waiting.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, Unmeasurable, bench, ratios, spread
from fedsiege.experiment import sweep
from fedsiege.experiment.pool import cores

WORKERS, REPEATS = 2, 2
GRID: dict[str, Any] = {
    "base": "quickstart",
    "set": {"rounds": 12, "threads": 1, "device": "cpu"},
    "axes": {
        "defences": {
            "none": [],
            "perturb 0.01": [{"name": "perturb", "sigma": 0.01}],
            "sparsify 0.9": [{"name": "sparsify", "share": 0.9, "spare": 100}],
        },
        "training.lr": [0.05, 0.1],
    },
    "seeds": [0, 1],
}
"""Twelve cells of some seconds, each with its own training: three defences, two settings, two seeds."""


@bench(
    "grid_2",
    "x",
    "higher",
    f"wall time of a sweep of twelve small cells with one worker to that with {WORKERS}, one thread each",
)
def grid_2() -> list[Figure]:
    if cores() < WORKERS:
        raise Unmeasurable(f"this process may use {cores()} core; it takes {WORKERS}")
    times: dict[int, list[float]] = {1: [], WORKERS: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(REPEATS):
            found = {jobs: swept(Path(folder) / f"{turn}-{jobs}", jobs, times[jobs]) for jobs in times}
            assert found[1] == found[WORKERS], "the cells' scores differ with the number of workers"
    return [
        spread("grid_2", ratios(times[1], times[WORKERS]), "x", "higher"),
        *(spread(f"grid_2_jobs_{jobs}", seconds, "s", "lower") for jobs, seconds in times.items()),
    ]


def swept(place: Path, jobs: int, times: list[float]) -> dict[str, bytes]:
    """The scores of every cell of a sweep; `times` gets its wall seconds."""
    since = time.perf_counter()
    sweep(GRID, place, jobs=jobs, progress=False)
    times.append(time.perf_counter() - since)
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("scores.parquet")}
