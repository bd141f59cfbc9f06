"""Attacks by their registered names: `fedsiege.attacks.fedmia_ii(combine="sum_z")`."""

from typing import Any

from fedsiege.registry import index, load

KINDS = ("membership", "poisoning", "backdoor")


def __getattr__(name: str) -> type[Any]:
    for kind in KINDS:
        if (kind, name) in index():
            return load(kind, name)
    raise AttributeError(f"fedsiege has no attack {name!r}; `fedsiege list` shows them all")


def __dir__() -> list[str]:
    return sorted(name for kind, name in index() if kind in KINDS)
