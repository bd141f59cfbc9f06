"""Flower's own simulation: a node for each client, played by a few workers of Ray; the server is this process."""

import functools
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedsiege.errors import FedSiegeError
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.ray_pool import connected
from fedsiege.flower.client import client_app
from fedsiege.flower.engine import FlowerEngine
from fedsiege.flower.seat import digest

PER_WORKER = 4
"""Clients in flight for each worker: enough that none waits, few enough that memory does not grow with clients."""

START = 120.0
"""Seconds in which the simulation must have begun."""


def configured(context: Context, config: str) -> str:  # noqa: ARG001 - a node's configuration does not matter here
    """The config that the simulation is of."""
    return config


@contextmanager
def simulated(experiment: Experiment) -> Iterator[FlowerEngine]:
    """An engine whose clients are Flower's virtual nodes, for as long as the context lasts.

    The simulation runs on a thread of its own and its ServerApp only hands out the grid: the rounds stay where
    they are on every engine, and so do interrupts.
    """
    spec = experiment.engine
    cores = os.cpu_count() or 1
    client = client_app(functools.partial(configured, config=json.dumps(experiment.model_dump(mode="json"))))
    grids: queue.Queue[Grid | BaseException] = queue.Queue()
    over, server = threading.Event(), ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - as Flower calls it
        grids.put(grid)
        over.wait()

    def simulate() -> None:
        try:
            resources: dict[str, Any] = {"num_cpus": spec.cpus, "num_gpus": spec.gpus}
            run_simulation(server, client, experiment.clients, backend_config={"client_resources": resources})
        except BaseException as error:  # whatever it is, it belongs to who waits for it
            grids.put(error)

    def check() -> None:
        if not thread.is_alive() or not grids.empty():
            why = f": {grids.get()}" if not grids.empty() else ""
            raise FedSiegeError(f"engine: Flower's simulation ended{why}")

    thread = threading.Thread(target=simulate, name="simulation", daemon=True)
    options = {"num_cpus": max(cores, spec.cpus)}
    with quiet(), found_by_workers(), connected(alone=True, **options):
        thread.start()
        try:
            grid = grids.get(timeout=START)
            if isinstance(grid, BaseException):
                raise FedSiegeError(f"engine: Flower's simulation does not start: {grid}") from grid
            in_flight = spec.in_flight or PER_WORKER * max(1, cores // spec.cpus)
            chunked = spec.model_copy(update={"in_flight": in_flight})
            engine = FlowerEngine(grid, chunked, digest(experiment), copies=True, check=check)
            if known := numbered(grid, experiment.clients, check):
                engine.seat(known)
            yield engine
        finally:
            over.set()
            thread.join()


def numbered(grid: Grid, clients: int, check: Callable[[], None]) -> list[int]:
    """The ids of all virtual nodes in the order of their partitions, in which Flower registers them.

    Nothing where two were registered at the same moment: then they have to be asked, which takes minutes with ten
    thousand of them. With its answers each says its number again.
    """
    until = time.monotonic() + START
    while len(found := list(grid.get_nodes())) < clients:
        check()
        if time.monotonic() > until:
            raise FedSiegeError(f"engine: {len(found)} of {clients} virtual nodes are there after {START:g} s")
        time.sleep(0.05)
    moments = {node.registered_at: node.node_id for node in found}
    return [moments[moment] for moment in sorted(moments)] if len(moments) == clients else []


@contextmanager
def found_by_workers() -> Iterator[None]:
    """Let workers find what this process finds: a user's own module lies where the command was typed."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in (*sys.path, before) if path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def quiet() -> Iterator[None]:
    """Flower's own log at errors alone: a run says by itself how it goes."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
