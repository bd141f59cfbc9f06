"""The same bytes on Flower as on the local engine: trace, checkpoint and scores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("flwr", reason="Flower is not installed; it comes with the extra flower")
pytest.importorskip("ray", reason="Ray is not installed; it comes with the extra flower")

from fedsiege.files import read_tensors

pytestmark = pytest.mark.flower

BASE: dict[str, Any] = {
    "data": "digits",
    "clients": 4,
    "rounds": 3,
    "threads": 1,
    "seed": 5,
    "device": "cpu",
    "record_every": 1,
    "checkpoint_every": 1,
    "examples_per_client": 60,
    "candidates": {"members": 20, "ifl": 20, "ofl": 20},
    "attacks": ["loss_series", "fedmia_ii"],
}

RUNS: dict[str, dict[str, Any]] = {
    "passive, some invited, some late, some lost": {
        "participation": 0.75,
        "delay": 2,
        "dropout": 0.1,
        "attacks": ["loss_series", "blackbox_loss"],
    },
    "cofedmid with compensation": {
        "coalition": {"name": "cofedmid", "members": [0, 2, 3]},
        "validation": 40,
        "defences": [{"name": "perturb", "sigma": 0.01, "clients": [1]}],
    },
    "a rule with history": {"aggregator": "foolsgold", "server_defences": [{"name": "fldetector", "window": 1}]},
    "fedpoisonmia": {
        "adversary": {"name": "fedpoisonmia", "knowledge": "full"},
        "compromised": {"clients": [1, 3]},
        "aggregator": "median",
    },
    "model replacement": {
        "adversary": {"name": "model_replacement", "gamma": "estimated"},
        "compromised": {"clients": [2], "first": 2},
        "backdoor": {"trigger": {"name": "pixel", "row": 0, "column": 0}, "target": 3},
    },
}


def ran(config: Path, out: Path, *options: str) -> dict[str, Any]:
    """Run the command; result.json. A process of its own: Ray leaves handles open where it runs."""
    command = [sys.executable, "-m", "fedsiege", "run", str(config), "--out", str(out), "--quiet", *options]
    # Counters are sums of NumPy's too, whose own threads Ray sets to one in its workers.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


@pytest.mark.parametrize("name", RUNS)
def test_a_simulated_run_leaves_the_bytes_of_a_local_one(name: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**BASE, **RUNS[name]}))
    local, flower = tmp_path / "local", tmp_path / "flower"
    one, other = ran(config, local), ran(config, flower, "--set", "engine=flower")
    trace = [path.relative_to(local) for path in sorted((local / "trace").rglob("*")) if path.is_file()]
    assert len(trace) >= 4
    for path in [*trace, Path("scores.parquet"), Path("candidates.parquet")]:
        assert (flower / path).read_bytes() == (local / path).read_bytes(), path
    for part in ("attacks", "components", "task", "poisoning", "coalitions"):
        assert other[part] == one[part], part
    assert read(flower / "checkpoint.safetensors") == read(local / "checkpoint.safetensors")


def read(path: Path) -> dict[str, bytes]:
    """The tensors of a checkpoint: models, and what components keep."""
    return {name: tensor.numpy().tobytes() for name, tensor in read_tensors(path).items()}
