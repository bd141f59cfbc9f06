"""What every benchmark shares: a figure, the registry of benchmarks, and interleaved CPU times."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value with its spread (lowest and highest of the repeats).

    Where `measured` is false, `reason` says why and the values are None.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    better: Better
    measured: bool = True
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The figure as `--json` prints it."""
        return {field: getattr(self, field) for field in self.__slots__}


class Unmeasurable(Exception):
    """This machine cannot measure the figure; the message says why."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A figure that can be asked for by name, and how to measure it (and what comes with it)."""

    name: str
    unit: str
    better: Better
    about: str
    measure: Callable[[], list[Figure]]

    def run(self) -> list[Figure]:
        """The figure of this name first; one figure that says why not, where it cannot be measured."""
        gc.collect()
        try:
            return self.measure()
        except Unmeasurable as error:
            return [self.unmeasured(str(error))]
        except ModuleNotFoundError as error:
            return [self.unmeasured(f"{error.name} is not installed")]

    def unmeasured(self, reason: str) -> Figure:
        """The figure without its values, and why."""
        return Figure(self.name, None, None, None, self.unit, self.better, False, reason)


BENCHMARKS: dict[str, Benchmark] = {}


def bench(
    name: str, unit: str, better: Better, about: str
) -> Callable[[Callable[[], list[Figure]]], Callable[[], list[Figure]]]:
    """Register a function that measures the figure `name` (its first one) and others that belong to it."""

    def register(measure: Callable[[], list[Figure]]) -> Callable[[], list[Figure]]:
        BENCHMARKS[name] = Benchmark(name, unit, better, about, measure)
        return measure

    return register


def spread(name: str, values: list[float], unit: str, better: Better) -> Figure:
    """The median of repeats with their lowest and highest."""
    return Figure(name, median(values), min(values), max(values), unit, better)


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call, all threads of the process together: other processes disturb it least."""
    since = time.process_time()
    call()
    return time.process_time() - since


def interleaved(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each side, in turns, after one turn that is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, call in sides.items():
            seconds = cpu_seconds(call)
            if turn:
                times[name].append(seconds)
    return times


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    """Turn by turn, how many times longer the first side takes."""
    return [a / b for a, b in zip(slow, fast, strict=True)]
