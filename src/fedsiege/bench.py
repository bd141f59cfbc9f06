"""The way to the benchmarks, which lie beside the source and not in the package."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from fedsiege.errors import InputError

ROOT = Path(__file__).parents[2]
"""The checkout, where this package is one."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What numerical libraries ask when they are loaded."""


def command() -> Any:
    """The module `benchmarks.command`; InputError without a checkout.

    One thread for every library that is loaded from now on: figures of one machine are then comparable.
    """
    folder = ROOT / "benchmarks"
    if not (folder / "command.py").is_file():
        raise InputError(
            f"bench: {folder} is not there: benchmarks are not part of the installed package; get the source code "
            "with git clone, run pip install -e . in it, and call fedsiege bench again"
        )
    os.environ.update(dict.fromkeys(THREADS, "1"))
    sys.path.insert(0, str(ROOT))
    return importlib.import_module("benchmarks.command")
