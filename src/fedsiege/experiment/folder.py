"""The run folder: whose it is, what is done in it, and the lock of the process that works in it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
LOCK, CHECKPOINT, TRACE, CANDIDATES = ".lock", "checkpoint.safetensors", "trace", "candidates.parquet"

FREE = ("out",)
"""Fields that may change between a run and its resumption."""


@contextmanager
def opened(folder: Path, experiment: Experiment, resume: bool) -> Iterator[None]:
    """Hold the run folder for one process, made ready for this experiment.

    Raises InputError when the folder holds something else, another config, or another process's run. A lock whose
    process is gone no longer holds: the operating system gives it up with the process.
    """
    _check(folder, experiment, resume)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise InputError(f"{folder}: process {lock.read().strip() or '?'} is running in it") from None
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        _check(folder, experiment, resume)
        if not (folder / CONFIG).exists():
            write_bytes(folder / CONFIG, dump(experiment).encode())
        yield


def finished(folder: Path) -> bool:
    """Whether nothing is left to do in this folder."""
    return (folder / RESULT).is_file() and (folder / REPORT).is_file()


def dump(experiment: Experiment) -> str:
    """The whole config, defaults included, as YAML."""
    text: str = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def _check(folder: Path, experiment: Experiment, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; expected a folder to write the run to")
    left = [p.name for p in folder.iterdir() if p.name != LOCK] if folder.exists() else []
    if not left:
        return
    if not resume:
        raise InputError(f"{folder}: exists and is not empty; choose another --out, or --resume to go on with it")
    if not (folder / CONFIG).is_file():
        ours = sorted({RESULT, REPORT, SCORES, CURVES, CHECKPOINT, TRACE, CANDIDATES}.intersection(left))
        if ours:
            raise InputError(f"{folder}: has {ours[0]} but no {CONFIG}; it is not a run that can go on")
        return
    before = _loaded(folder / CONFIG)
    after = experiment.model_dump(mode="json")
    changed = _difference({k: v for k, v in before.items() if k not in FREE}, after)
    if changed:
        field, old, new = changed
        raise InputError(f"{folder}: cannot resume with a changed config: {field} was {old!r} and is now {new!r}")


def _loaded(path: Path) -> dict[str, Any]:
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({error}); the run cannot be resumed") from None
    if not isinstance(before, dict):
        raise InputError(f"{path}: not a run's config; the run cannot be resumed")
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
