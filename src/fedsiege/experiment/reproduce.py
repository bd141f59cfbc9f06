"""Published, ours, interval, verdict: any experiment or grid with a `paper:` part, run and compared."""

from collections.abc import Sequence
from pathlib import Path

from fedsiege.errors import InputError
from fedsiege.experiment.config import load, read_mapping
from fedsiege.experiment.grid import Grid
from fedsiege.experiment.run import run
from fedsiege.experiment.sweep import sweep
from fedsiege.report.grid import SweepResult
from fedsiege.report.result import Result
from fedsiege.shipped import find, is_grid


def reproduce(
    name: str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    jobs: int | None = None,
    engine: str = "local",
    resume: bool = False,
    progress: bool = True,
) -> Result | SweepResult:
    """Run an experiment, or a grid of them, that states published figures; `data["paper"]` of the result compares.

    `jobs` and `engine` are those of `sweep`, for a grid alone. InputError where no figures are stated.
    """
    if is_grid(read_mapping(find(name))[1]):
        _stated(name, Grid.load(name, overrides)[0].paper)
        return sweep(name, out, overrides=overrides, jobs=jobs, engine=engine, resume=resume, progress=progress)
    _stated(name, load(name, overrides).paper)
    if jobs is not None or engine != "local":
        field, got = ("jobs", jobs) if jobs is not None else ("engine", engine)
        raise InputError(f"{field}: got {got!r} for {name}, a single experiment; expected it for a grid alone")
    return run(name, out, overrides=overrides, resume=resume, progress=progress)


def _stated(name: str | Path, paper: object) -> None:
    if paper is None:
        raise InputError(f"{name}: has no `paper:` part with published figures to compare with")
