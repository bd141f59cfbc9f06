"""Published, ours, interval, verdict: any experiment with a `paper:` part, run and compared."""

from collections.abc import Sequence
from pathlib import Path

from fedsiege.errors import InputError
from fedsiege.experiment.config import load
from fedsiege.experiment.run import run
from fedsiege.report.result import Result


def reproduce(
    name: str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
) -> Result:
    """Run an experiment that states published figures; `Result.data["paper"]` holds the comparison."""
    if load(name, overrides).paper is None:
        raise InputError(f"{name}: has no `paper:` part with published figures to compare with")
    return run(name, out, overrides=overrides, resume=resume, progress=progress)
