"""How long a person waits for a command that needs no torch."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import Figure, Unmeasurable, bench, spread

COMMAND = Path(sys.executable).with_name("fedsiege")
REPEATS = 7


@bench("start_help", "s", "lower", "wall time of `fedsiege --help`, a fresh process of the installed command")
def start_help() -> list[Figure]:
    return [started("start_help", "--help")]


@bench("start_list", "s", "lower", "wall time of `fedsiege list`, a fresh process of the installed command")
def start_list() -> list[Figure]:
    return [started("start_list", "list")]


def started(name: str, *arguments: str) -> Figure:
    """Wall seconds of the command, from the second time on: the first one fills the caches."""
    if not COMMAND.is_file():
        raise Unmeasurable(f"{COMMAND} is not there; expected the command installed beside this Python")
    seconds = []
    for _ in range(1 + REPEATS):
        since = time.perf_counter()
        subprocess.run([str(COMMAND), *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - since)
    return spread(name, seconds[1:], "s", "lower")
