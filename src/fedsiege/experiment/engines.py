"""The engine that a config names. Flower's room lies above this one: it is looked for when it is asked for."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.progress import Bars
from fedsiege.federation.local import LocalEngine
from fedsiege.federation.rounds import Engine

LOCAL = LocalEngine()
"""Clients trained one after the other, in this process."""


def require(*packages: str) -> None:
    """InputError where a package of the extra `flower` is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"engine: flower needs {package}, which is not installed; expected it: pip install fedsiege[flower]"
            )


@contextmanager
def engine_of(experiment: Experiment, bars: Bars) -> Iterator[Engine]:
    """The engine of a run, for as long as it is needed."""
    if experiment.engine.name == "local":
        yield LOCAL
        return
    with bars.waiting("Flower"):
        from fedsiege.flower.simulation import simulated
    with simulated(experiment) as engine:
        yield engine
