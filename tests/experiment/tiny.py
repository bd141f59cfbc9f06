"""A run of a second: scikit-learn's wine, five clients, six rounds."""

from pathlib import Path
from typing import Any

import yaml

TINY: dict[str, Any] = {
    "data": "wine",
    "model": {"name": "mlp", "hidden": [8]},
    "clients": 5,
    "rounds": 6,
    "training": {"epochs": 2, "batch": 8, "lr": 0.1},
    "record_every": 2,
    "checkpoint_every": 2,
    "candidates": {"ifl": 20, "ofl": 30},
    "attacks": ["blackbox_loss", "avg_cosine", "fedmia_ii", "label_only"],
    "threads": 1,
}

RUN_FILES = {
    "config.yaml",
    "candidates.parquet",
    "checkpoint.safetensors",
    "trace",
    "scores.parquet",
    "curves.json",
    "result.json",
    "report.html",
    "figures",
    "table.csv",
    "table.tex",
}


def written(path: Path, **changes: Any) -> Path:
    """TINY with changes, as a config file."""
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False), encoding="utf-8")
    return path


def deterministic(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes in equal runs: everything but times, places and what shows them."""
    names = ["config.yaml", "candidates.parquet", "scores.parquet", "curves.json"]
    trace = sorted(path.relative_to(folder).as_posix() for path in (folder / "trace").iterdir())
    return {name: (folder / name).read_bytes() for name in [*names, *trace]}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its time of change and its size."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}
