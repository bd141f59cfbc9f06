"""`fedsiege bench`: which figures are asked for, and how they are shown."""

import contextlib
import datetime
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from typing import TextIO

import torch

import benchmarks
from benchmarks.hardware import cpu_name
from benchmarks.measure import BENCHMARKS, Benchmark, Figure
from fedsiege.errors import FedSiegeError, InputError
from fedsiege.registry import nearest

MODULES = {"command", "fresh", "measure", "__main__"}
"""Modules of this folder that measure nothing."""


def registered() -> Mapping[str, Benchmark]:
    """Every benchmark of this folder, by name: its modules register what they measure."""
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.name not in MODULES:
            importlib.import_module(f"benchmarks.{module.name}")
    return BENCHMARKS


def chosen(known: Mapping[str, Benchmark], name: str | None) -> list[Benchmark]:
    """All benchmarks, the one of this name, or those whose names start with it; InputError names the known ones."""
    if name is None:
        return list(known.values())
    if name in known:
        return [known[name]]
    found = [benchmark for benchmark in known.values() if benchmark.name.startswith(name)]
    # A figure that comes with another one: `evidence_alexnet_k5_ms`.
    found = found or [benchmark for benchmark in known.values() if name.startswith(f"{benchmark.name}_")]
    if not name or not found:
        names = sorted(known)
        raise InputError(f"bench: nothing is named {name!r}{nearest(name, names)}; known: {', '.join(names)}")
    return found


def run(name: str | None, as_json: bool) -> None:
    """Measure what is asked for and show it: a line for each figure as it comes, or one JSON list at the end.

    With JSON the lines go to standard error; an interrupt leaves what was measured until then. A benchmark whose
    sides disagree has no figure; FedSiegeError says so after all others have been measured.
    """
    wanted = chosen(registered(), name)
    lines = sys.stderr if as_json else sys.stdout
    print(machine(), file=lines, flush=True)
    figures: list[Figure] = []
    wrong: list[str] = []
    try:
        with contextlib.redirect_stdout(lines):
            for benchmark in wanted:
                figures += _measured(benchmark, lines, wrong)
    finally:
        if as_json:
            print(json.dumps([figure.as_dict() for figure in figures], indent=2))
    if wrong:
        raise FedSiegeError(f"bench: the compared sides do not give the same result: {', '.join(wrong)}")


def machine() -> str:
    """What the figures were measured on, and when."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu_name()}, {cores} cores{gpu}; torch {torch.__version__}, 1 thread; {today}"


def line(figure: Figure, about: str) -> str:
    """One figure: name, value, unit, lowest to highest, which way is better, what it means."""
    if figure.value is None or figure.low is None or figure.high is None:
        return f"{figure.name:<24} not measured: {figure.reason}"
    value, low, high = (_rounded(number) for number in (figure.value, figure.low, figure.high))
    shown = f"{figure.name:<24} {value:>8} {figure.unit} ({low} to {high}, {figure.better} is better)"
    return f"{shown}  {about}".rstrip()


def _measured(benchmark: Benchmark, lines: TextIO, wrong: list[str]) -> list[Figure]:
    """The figures of one benchmark, shown; its name goes to `wrong` when what it compares is not the same."""
    torch.set_num_threads(1)
    try:
        with _waiting(benchmark.name):
            figures = benchmark.run()
    except AssertionError as error:
        wrong.append(benchmark.name)
        figures = [benchmark.unmeasured(str(error).strip().partition("\n")[0] or "the compared sides differ")]
    for figure in figures:
        about = benchmark.about if figure.name == benchmark.name else f"with {benchmark.name}"
        print(line(figure, about), file=lines, flush=True)
    return figures


@contextlib.contextmanager
def _waiting(name: str) -> Iterator[None]:
    """Say on a terminal what is being measured, until it is."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"measuring {name} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _rounded(number: float) -> str:
    """Four digits, or all before the point."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"
