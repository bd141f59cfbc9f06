"""The run folder: whose it is, what is done in it, and the lock of the process that works in it."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml

from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment
from fedsiege.files import write_bytes

CONFIG, RESULT, REPORT, SCORES, CURVES = (
    "config.yaml",
    "result.json",
    "report.html",
    "scores.parquet",
    "curves.json",
)
GRID = "grid.yaml"
LOCK, CHECKPOINT, TRACE, CANDIDATES = ".lock", "checkpoint.safetensors", "trace", "candidates.parquet"
REPORTED = (REPORT, "figures/roc.pdf", "figures/rounds.pdf", "table.csv", "table.tex")
"""What is written last, from the other files."""

FREE = ("out", "changed")
"""Fields that may change between a run and its resumption."""


@contextmanager
def opened(folder: Path, experiment: Experiment, resume: bool) -> Iterator[None]:
    """Hold the run folder for one process, after a look that nothing of anybody else's would be overwritten.

    A finished run is not touched, not even locked. A folder in which nothing was written goes away again.
    Raises InputError when the folder holds something else, another config, or another process's run. A lock whose
    process is gone no longer holds: the operating system gives it up with the process.
    """
    _check(folder, experiment, resume)
    if finished(folder):
        yield
        return
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        hold(lock, folder)
        try:
            _check(folder, experiment, resume)
            yield
        finally:
            if new and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()


def hold(lock: TextIO, folder: Path) -> None:
    """Lock the folder for this process until the open file closes; InputError when another process holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise InputError(f"{folder}: process {lock.read().strip() or '?'} is running in it") from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def begin(folder: Path, experiment: Experiment) -> None:
    """Write down whose folder it is, when everything about the run has been checked."""
    if not (folder / CONFIG).exists():
        write_bytes(folder / CONFIG, dump(experiment).encode())


def finished(folder: Path) -> bool:
    """Whether nothing is left to do in this folder."""
    return all((folder / name).is_file() for name in (CONFIG, RESULT, *REPORTED))


def dump(experiment: Experiment) -> str:
    """The whole config, defaults included, as YAML."""
    text: str = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def _check(folder: Path, experiment: Experiment, resume: bool) -> None:
    left = check_free(folder, resume, "run")
    if not left:
        return
    if not (folder / CONFIG).is_file():
        written = {RESULT, SCORES, CURVES, CHECKPOINT, TRACE, CANDIDATES}
        ours = sorted((written | {Path(name).parts[0] for name in REPORTED}).intersection(left))
        if ours:
            raise InputError(f"{folder}: has {ours[0]} but no {CONFIG}; it is not a run that can go on")
        if GRID in left:
            raise InputError(
                f"{folder}: holds a sweep ({GRID}), which fedsiege sweep goes on with; expected a run's"
            )
        return
    check_same(folder / CONFIG, experiment.model_dump(mode="json"), "config", "run")


def check_free(folder: Path, resume: bool, what: str) -> list[str]:
    """What is in the folder of a run or a sweep; InputError for a file in the way, or for anything not resumed."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"{folder}: {place} is a file; expected a folder to write the {what} to")
    left = [p.name for p in folder.iterdir() if p.name != LOCK] if folder.exists() else []
    if left and not resume:
        raise InputError(f"{folder}: exists and is not empty; choose another --out, or --resume to go on with it")
    return left


def check_same(path: Path, after: Mapping[str, Any], name: str, what: str) -> None:
    """Refuse to go on with a config or a grid that is not the one in the folder, naming the field that changed."""
    before = _loaded(path, name, what)
    changed = _difference({k: v for k, v in before.items() if k not in FREE}, after)
    if changed:
        field, old, new = changed
        raise InputError(
            f"{path.parent}: cannot resume with a changed {name}: {field} was {old!r} and is now {new!r}"
        )


def _loaded(path: Path, name: str, what: str) -> dict[str, Any]:
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{path}: not YAML; the {what} cannot be resumed") from None
    if not isinstance(before, dict):
        raise InputError(f"{path}: not a {what}'s {name}; the {what} cannot be resumed")
    return before


def _difference(before: Any, after: Any, field: str = "") -> tuple[str, Any, Any] | None:
    """The first place in which two configs differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before and k not in FREE)]:
            found = _difference(before.get(key), after.get(key), f"{field}.{key}" if field else str(key))
            if found:
                return found
        return None
    return None if before == after else (field, before, after)
