"""What Flower's simulation costs: the same rounds there and on the local engine, in one process.

Every measurement is a fresh process (`python -m benchmarks.flower WHAT NUMBER`): Ray's object store and the memory
of one run must not count for the next. Wall time: most of what Flower takes it waits for.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.fresh import fresh, megabytes
from benchmarks.measure import Figure, bench, spread
from benchmarks.memory import tiny
from fedsiege.experiment.engines import require
from fedsiege.experiment.prepare import prepare
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Engine
from fedsiege.federation.state import Models, State

CLIENTS, ROUNDS = 10_000, 100
FEW, MANY, WIDE = 100, 1000, 4000
"""Clients that all take part in a simulated round, and the hidden units that make their model weigh something."""
REPEATS = 2


@bench(
    "flower_ratio",
    "x",
    "higher",
    f"a steady round on Flower's simulation to one on the local engine: {CLIENTS:,} tiny clients, 1 % a round",
)
def flower_ratio() -> list[Figure]:
    found = fresh("flower", "ratio", str(CLIENTS))
    return [
        spread("flower_ratio", found["ratios"], "x", "higher"),
        spread("flower_ratio_local", [1000 * found["local"]], "ms a round", "lower"),
        spread("flower_ratio_flower", [1000 * found["flower"]], "ms a round", "lower"),
        spread("flower_ratio_start", [found["start"]], "s", "lower"),
    ]


@bench(
    "flower_memory",
    "x",
    "lower",
    f"peak of a simulation's server with {MANY:,} clients in every round to one with {FEW}: FedAvg, the same data",
)
def flower_memory() -> list[Figure]:
    peaks = {
        clients: [fresh("flower", "memory", str(clients))["peak"] for _ in range(REPEATS)]
        for clients in (FEW, MANY)
    }
    return [
        spread(
            "flower_memory", [many / few for few, many in zip(peaks[FEW], peaks[MANY], strict=True)], "x", "lower"
        ),
        *(spread(f"flower_memory_{clients}", peaks[clients], "MB", "lower") for clients in peaks),
    ]


def of_ratio(clients: int) -> dict[str, float | list[float]]:
    """Seconds of the rounds after the first on both engines; the last models must be the same."""
    from fedsiege.flower.simulation import simulated

    with tempfile.TemporaryDirectory() as folder:
        experiment = tiny(Path(folder) / "made.npz", clients).model_copy(
            update={"rounds": ROUNDS, "threads": 1, "attacks": []}
        )
        prepared = prepare(experiment)
        start = prepared.task.state.clone()

        def timed(engine: Engine) -> tuple[list[float], Tensor]:
            times, since, end = list[float](), time.perf_counter(), start
            for done in prepared.federation(engine=engine).run(State(0, Models((start.clone(),)))):
                assert done.counters["server"]["answers"] == clients // 100
                times.append(time.perf_counter() - since)
                since, end = time.perf_counter(), done.end
            return times[1:], end

        local, end = timed(LocalEngine())
        since = time.perf_counter()
        with simulated(experiment) as engine:
            begun = time.perf_counter() - since
            flower, other = timed(engine)
    assert torch.equal(end, other), "the engines differ"
    usual = sum(local) / len(local)
    tenths = [flower[i::10] for i in range(10)]
    return {
        "ratios": [sum(some) / len(some) / usual for some in tenths],
        "local": usual,
        "flower": sum(flower) / len(flower),
        "start": begun,
    }


def of_memory(clients: int) -> dict[str, float]:
    """Two rounds in which all clients take part, added up as they come."""
    from fedsiege.flower.simulation import simulated

    with tempfile.TemporaryDirectory() as folder:
        made = tiny(Path(folder) / "made.npz", MANY)
        changes = {
            "clients": clients,
            "participation": 1.0,
            "rounds": 2,
            "threads": 1,
            "attacks": [],
            "model": {"name": "mlp", "hidden": [WIDE]},
        }
        experiment = made.model_copy(update=changes)
        prepared = prepare(experiment)
        start = State(0, Models((prepared.task.state.clone(),)))
        with simulated(experiment) as engine:
            for done in prepared.federation(engine=engine).run(start):
                assert done.counters["server"]["answers"] == clients
    return {"peak": megabytes("VmHWM")}


CHILDREN: dict[str, Callable[[int], object]] = {"ratio": of_ratio, "memory": of_memory}

if __name__ == "__main__":
    require("flwr", "ray")
    torch.set_num_threads(1)
    print(json.dumps(CHILDREN[sys.argv[1]](int(sys.argv[2]))))
