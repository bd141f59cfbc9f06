"""The attack stage of a large run: from recorded evidence to the scores of every target.

Every measurement is a fresh process on all its cores (`python -m benchmarks.attacks WHAT [FOLDER]`), so that
nothing of another one's memory counts. Wall time, because the stage uses threads.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fresh import fresh, megabytes
from benchmarks.measure import Figure, bench, spread
from fedsiege.registry import build
from fedsiege.trace import Header, Trace, write_round
from fedsiege.view import ArrayEvidence, Evidence, Values, View

CANDIDATES, CLIENTS, ROUNDS = 60_000, 100, 30
ATTACKS = (
    *("blackbox_loss", "grad_cosine", "grad_diff", "grad_norm"),
    *("loss_series", "avg_cosine", "fedmia_i", "fedmia_ii"),
)
ALONE = 17, 42, 99
"""Targets that are also scored one at a time."""
REPEATS = 2


@bench(
    "attack_stage",
    "s",
    "lower",
    f"wall time of {len(ATTACKS)} attacks, {CANDIDATES:,} candidates, {CLIENTS} clients, all of them targets, "
    f"{ROUNDS} recorded rounds in memory; all cores",
)
def attack_stage() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        arrays = fresh("attacks", "arrays")
        fresh("attacks", "write", folder)
        trace = fresh("attacks", "trace", folder)
    assert trace["scores"] == arrays["scores"], "evidence in memory and on disk gives different scores"
    return [
        spread("attack_stage", arrays["seconds"], "s", "lower"),
        spread("attack_stage_memory", arrays["peak"], "GB", "lower"),
        spread("attack_stage_speedup", arrays["speedup"], "x", "higher"),
        spread("attack_stage_trace", trace["seconds"], "s", "lower"),
        spread("attack_stage_trace_memory", trace["peak"], "GB", "lower"),
    ]


def recorded(t: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Losses and cosines [clients, candidates] of one round, with gradients and updates of length 1.

    Candidates differ in difficulty, and every second one is a member of one client.
    """
    difficulty = np.random.default_rng(0).normal(size=CANDIDATES).astype(np.float32)
    rng = np.random.default_rng((1, t))
    loss, cosine = (rng.standard_normal((CLIENTS, CANDIDATES), dtype=np.float32) for _ in range(2))
    loss *= 0.3
    loss += difficulty
    np.exp(loss, out=loss)
    cosine *= 0.01
    members = np.arange(0, CANDIDATES, 2)
    loss[members // 2 % CLIENTS, members] *= 0.5
    cosine[members // 2 % CLIENTS, members] += 0.05
    return loss, cosine


def of_arrays() -> dict[str, Any]:
    """All targets together, from arrays, and a few of them one at a time."""
    shape = ROUNDS, CLIENTS, CANDIDATES
    arrays = {name: np.empty(shape, dtype=np.float32) for name in ("loss", "cosine", "diff")}
    for t in range(ROUNDS):
        arrays["loss"][t], arrays["cosine"][t] = recorded(t)
        np.multiply(arrays["cosine"][t], 2, out=arrays["diff"][t])
        arrays["diff"][t] -= 1
    evidence = ArrayEvidence({**arrays, "norm2": np.ones((ROUNDS, CANDIDATES), dtype=np.float32)})
    found = together(evidence)
    alone = one_at_a_time(evidence, found.pop("rows"))
    return {**found, "speedup": [alone / seconds for seconds in found["seconds"]]}


def of_trace(folder: Path) -> dict[str, Any]:
    """All targets together, from the files of a trace."""
    found = together(Trace(folder))
    del found["rows"]
    return found


def write_trace(folder: Path) -> dict[str, Any]:
    """Write the same evidence as a run records it."""
    ids = np.array([f"{i:06d}" for i in range(CANDIDATES)])
    Header(CLIENTS, 10, ("total",), (10,), ids, np.zeros(CANDIDATES, dtype=np.int64)).write(folder)
    for t in range(ROUNDS):
        loss, cosine = (torch.from_numpy(array) for array in recorded(t))
        tensors = {
            "loss": loss,
            "dot": cosine[None],
            "update_norm2": torch.ones(1, CLIENTS),
            "gradient_norm2": torch.ones(1, 1, CANDIDATES),
            "start_of": torch.zeros(CLIENTS, dtype=torch.int64),
            "present": torch.ones(CLIENTS, dtype=torch.uint8),
        }
        write_round(folder, t + 1, tensors)
    return {}


def together(evidence: Evidence) -> dict[str, Any]:
    """Wall seconds of all attacks on all targets, the peak of memory, and the scores: a checksum, and some rows."""
    seconds = []
    for _ in range(REPEATS):
        checksum, rows, total = hashlib.sha256(), {}, 0.0
        for name in ATTACKS:
            attack = build("membership", name, "benchmark")
            since = time.perf_counter()
            scores = attack.score_targets(View(evidence, attack.vantage), range(CLIENTS))
            total += time.perf_counter() - since
            assert scores.shape == (CLIENTS, CANDIDATES)
            checksum.update(scores.tobytes())
            rows[name] = scores[list(ALONE)]
        seconds.append(total)
    return {"seconds": seconds, "peak": [megabytes("VmHWM") / 1000], "scores": checksum.hexdigest(), "rows": rows}


def one_at_a_time(evidence: Evidence, expected: dict[str, Values]) -> float:
    """Wall seconds that all targets would take like this, from a few, which must have the same scores."""
    total = 0.0
    for name in ATTACKS:
        for target, scores in zip(ALONE, expected[name], strict=True):
            attack = build("membership", name, "benchmark")
            since = time.perf_counter()
            alone = attack.score(View(evidence, attack.vantage), target)
            total += time.perf_counter() - since
            assert np.array_equal(alone, scores), f"{name}: target {target} alone has other scores"
    return total / len(ALONE) * CLIENTS


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"arrays": of_arrays, "write": write_trace, "trace": of_trace}

if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(json.dumps(CHILDREN[sys.argv[1]](*map(Path, sys.argv[2:]))))
