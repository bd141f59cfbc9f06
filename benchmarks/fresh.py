"""Measurements in a fresh process, so that nothing of another one's memory counts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fedsiege
from benchmarks.measure import Unmeasurable

STATUS = Path("/proc/self/status")


def fresh(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m benchmarks.MODULE ARGUMENTS`, which prints one JSON object, measured."""
    if not STATUS.is_file():
        raise Unmeasurable(f"this system has no {STATUS}, which tells a process how much memory it takes")
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(fedsiege.__file__).parents[1])},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def megabytes(field: str) -> float:
    """Resident memory of this process: `VmRSS` now, `VmHWM` at its peak.

    Not `ru_maxrss`: on Linux a child inherits in it the size of the process that started it.
    """
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024 / 1e6
