"""The experiments, and grids of them, that travel with the package, by name."""

import re
from collections.abc import Iterable
from pathlib import Path

from fedsiege.errors import InputError
from fedsiege.registry import nearest

FOLDER = Path(__file__).parent / "experiments"
TEMPLATE = Path(__file__).parent / "template.yaml"
"""The commented config that `fedsiege init` writes."""

GRID_KEYS = frozenset({"base", "experiment", "set", "axes", "cells", "seeds", "budget", "overrides"})
"""Keys that a grid may have and an experiment may not."""


def is_grid(keys: Iterable[object]) -> bool:
    """Whether a file with these keys is a grid of experiments."""
    return not GRID_KEYS.isdisjoint(keys)


def names() -> list[str]:
    """Every shipped experiment (`quickstart`, `fedmia/cifar100_alexnet`, ...), sorted."""
    return [name for name, keys in _shipped() if not is_grid(keys)]


def grids() -> list[str]:
    """Every shipped grid, sorted."""
    return [name for name, keys in _shipped() if is_grid(keys)]


def _shipped() -> list[tuple[str, list[str]]]:
    """Every file's name, sorted, and its keys: what begins a line, so that a list need not parse them all."""
    paths = sorted(FOLDER.rglob("*.yaml"), key=lambda path: path.relative_to(FOLDER).with_suffix("").as_posix())
    return [
        (
            path.relative_to(FOLDER).with_suffix("").as_posix(),
            re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE),
        )
        for path in paths
    ]


def find(config: str | Path) -> Path:
    """The file a config argument means: a file of the user's, else a shipped experiment or grid.

    A shipped one answers to `quickstart`, `quickstart.yaml` and `experiments/quickstart.yaml` alike.
    Raises InputError naming the nearest shipped one.
    """
    path = Path(config)
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("experiments/").removesuffix(".yaml").removesuffix(".yml")
    known = sorted([*names(), *grids()])
    if name in known:
        return FOLDER / f"{name}.yaml"
    what = "is a folder; expected a YAML file" if path.is_dir() else "no such file or shipped experiment"
    raise InputError(f"{config}: {what}{nearest(name, known)}; shipped: {', '.join(known) or 'none'}")
