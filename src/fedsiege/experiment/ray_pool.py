"""The tasks of a Ray cluster: every node works in the sweep's folder, which lies where all of them see it."""

import importlib
import os
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedsiege.errors import FedSiegeError
from fedsiege.experiment.cell import Ended, Work, carry_out
from fedsiege.experiment.folder import LOCK
from fedsiege.experiment.pool import TRIES, Event, Started
from fedsiege.experiment.prepare import Shelf

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Ray tells nobody that it is used; and it leaves a task's view of the GPUs alone, as it will by default."""

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Where this is 0, as it is on those systems, a Ray that is started for the sweep listens on 127.0.0.1 alone."""

PLACES = ("FEDSIEGE_", "HF_", "FLWR_")
"""How the environment variables begin that decide where data is found: nodes get this process's own."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a task must find where it runs: the sweep's folder with this lock, and the folder of the command."""

    log: Path
    lock: str
    working: str
    modules: tuple[str, ...]

    def fault(self) -> str | None:
        """Why this node cannot work, if it cannot."""
        folder = self.log.parent
        try:
            seen = (folder / LOCK).read_text() == self.lock
        except OSError:
            seen = False
        if not seen:
            return (
                f"{folder}: node {socket.gethostname()} does not see what the sweep writes there; expected a "
                "folder on storage that every node of the cluster sees"
            )
        if not Path(self.working).is_dir():
            return (
                f"{self.working}: not on node {socket.gethostname()}; expected the folder of the command there too"
            )
        return None


@dataclass(frozen=True, slots=True)
class RayPool:
    """A task for each bundle; a cell has the threads that it asks for itself, else one."""

    log: Path

    def events(self, bundles: Sequence[tuple[Work, ...]], every: float) -> Generator[Event | None]:
        """Carry out all bundles; what happens, as it happens, and None when for `every` seconds nothing did.

        A node that does not see the sweep's folder fails the cells that it is given.
        FedSiegeError when there is no connection to the cluster.
        """
        log = self.log.absolute()
        site = Site(log, (log.parent / LOCK).read_text(), str(Path.cwd()), tuple(sys.path))
        tries: dict[int, int] = {}
        with connected() as ray:
            task = ray.remote(max_retries=0, num_returns="streaming")(carry_out_all)
            gpus = bool(ray.cluster_resources().get("GPU"))
            streams = {_submitted(task, works, site, gpus): list(works) for works in bundles}
            try:
                while streams:
                    spoke, _ = ray.wait(list(streams), timeout=every)
                    if not spoke:
                        yield None
                    for stream in spoke:
                        left = streams[stream]
                        try:
                            event: Event = ray.get(next(stream))
                        except StopIteration:
                            del streams[stream]
                        except ray.exceptions.RayError as error:
                            del streams[stream]
                            yield from _after_death(left, error, tries)
                            if left:
                                streams[_submitted(task, left, site, gpus)] = left
                        else:
                            if isinstance(event, Ended):
                                del left[0]
                            yield event
            finally:
                for stream in streams:
                    ray.cancel(stream, force=True)


def carry_out_all(works: tuple[Work, ...], site: Site) -> Iterator[Event]:
    """The task: carry out cells that share their training, one after the other."""
    fault = site.fault()
    if fault is None:
        os.chdir(site.working)
        sys.path += [path for path in site.modules if path not in sys.path]
        torch.set_num_threads(works[0].experiment.threads or 1)
    shelf = Shelf()
    for work in works:
        yield Started(work.place)
        yield carry_out(work, site.log, shelf) if fault is None else Ended(work.place, fault)


def _submitted(task: Any, works: Sequence[Work], site: Site, gpus: bool) -> Any:
    """The stream of a task's events. A task asks for a GPU where its cells would take one."""
    first = works[0].experiment
    wants = gpus if first.device == "auto" else first.device != "cpu"
    return task.options(num_cpus=first.threads or 1, num_gpus=int(wants)).remote(tuple(works), site)


def _after_death(left: list[Work], error: Exception, tries: dict[int, int]) -> Iterator[Event]:
    """A task did not come to its end: the cell that it was at is tried once more, then taken out of `left`."""
    place = left[0].place
    tries[place] = tries.get(place, 0) + 1
    if tries[place] == TRIES:
        del left[0]
        said = str(error).strip().partition("\n")[0]
        yield Ended(place, f"its Ray task ended {TRIES} times: {type(error).__name__}: {said}")


@contextmanager
def connected(alone: bool = False, **options: Any) -> Iterator[Any]:
    """Ray, connected to the cluster of $RAY_ADDRESS, else to one that runs here, else to one of its own.

    Args:
        alone: do not look for one that runs here.
        options: of a cluster of its own, as `ray.init` has them.

    """
    os.environ.update(QUIET)
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault(LOOPBACK, "0")  # read when Ray is imported
    ray = importlib.import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    places = {name: value for name, value in os.environ.items() if name.startswith(PLACES)}
    always: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if places:
        always["runtime_env"] = {"env_vars": places}
    own = {"address": "local", "include_dashboard": False, **options, **always}
    try:
        ray.init(**(own if alone and not address else {"address": address or "auto", **always}))
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address:
            said = str(error).strip().partition("\n")[0]
            raise FedSiegeError(f"RAY_ADDRESS: cannot connect to {address!r}: {said}") from None
        if alone:
            raise FedSiegeError(f"Ray does not start here: {error}") from None
        ray.init(**own)
    try:
        yield ray
    finally:
        ray.shutdown()
