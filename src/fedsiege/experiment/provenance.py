"""What a run was made with, and what it cost."""

import datetime
import hashlib
import json
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fedsiege import __version__
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.folder import FREE

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "datasets", "flwr-datasets", "pyarrow", "safetensors")


def provenance(experiment: Experiment, device: torch.device) -> dict[str, Any]:
    """Versions, machine, seed and the hash of the config."""
    return {
        "fedsiege": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "seed": experiment.seed,
        "config_hash": config_hash(experiment),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": commit(),
    }


def config_hash(experiment: Experiment) -> str:
    """SHA-256 of everything in the config that decides the result."""
    content = experiment.model_dump(mode="json", exclude=set(FREE))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def commit() -> str | None:
    """The git commit of the code, with '+' when it has changes; None for a package that git does not know."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is installed inside somebody's repository
        head, changes = git("rev-parse", "HEAD").strip(), git("status", "--porcelain", "--", str(here.parent))
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes.strip() else "")


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
