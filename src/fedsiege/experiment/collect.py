"""From the cells' folders to sweep.json: what the report of a sweep is made from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedsiege.aggregators.base import LinearAggregator
from fedsiege.data.candidates import resolve_targets
from fedsiege.defences.client.base import is_neutral
from fedsiege.defences.coalition.base import Coalition
from fedsiege.experiment import folder as run_folder
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.grid import Cell, Grid
from fedsiege.experiment.prepare import defences_of
from fedsiege.experiment.published import Beside, asked_rows
from fedsiege.files import write_json
from fedsiege.registry import build, label_of, name_of
from fedsiege.report.poisoning.schema import begins_fresh

SWEEP = "sweep.json"
SCHEMA = 1

Status = Literal["done", "failed", "missing"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it stands with a cell; `error` says in a line why it failed."""

    status: Status
    error: str | None = None


def write(folder: Path, grid: Grid, rows: Sequence[Mapping[str, Any]], beside: Beside | None = None) -> None:
    """Write sweep.json, whole or not at all; `beside` is what the grid's paper reports."""
    content = {
        "schema": SCHEMA,
        "title": grid.title,
        "description": grid.description,
        "budget": grid.budget,
        "axes": {field: list(values) for field, values in grid.axes.items()},
        "seeds": grid.seeds,
        "cells": list(rows),
        "paper": beside.compared(rows) if beside else None,
    }
    write_json(folder / SWEEP, content)


def row(folder: Path, cell: Cell, outcome: Outcome) -> dict[str, Any]:
    """One cell with one seed: what it is, how it stands with it, and its figures where it is done."""
    names, labels = defended(cell.experiment)
    rule = build("aggregator", cell.experiment.aggregator, "aggregator")
    return {
        "name": cell.name,
        "axes": dict(cell.axes),
        "changes": dict(cell.changes),
        "seed": cell.seed,
        "folder": cell.folder,
        "defences": names,
        "labels": labels,
        "partly": partly(cell.experiment),
        "rule": label_of(rule),
        "averages": isinstance(rule, LinearAggregator),
        "status": outcome.status,
        "error": outcome.error,
        **(figures(folder / cell.folder) if outcome.status == "done" else NOTHING),
    }


BY_ROUND = ("rounds", "accuracy")
"""What result.json says of decisions round by round."""

NOTHING: Mapping[str, Any] = {
    "accuracy": None,
    "train_accuracy": None,
    "loss": None,
    "attacks": [],
    "idle": [],
    "unproven": {},
    "privacy": [],
    "poisoning": None,
    "wall_seconds": None,
}


def figures(folder: Path) -> dict[str, Any]:
    """The figures of a finished run: accuracy, every attack on all targets against all non-members, poisoning."""
    result = json.loads((folder / run_folder.RESULT).read_text(encoding="utf-8"))
    task = result["task"]
    return {
        "accuracy": task["accuracy"],
        "train_accuracy": task["train_accuracy"],
        "loss": task["loss"],
        "attacks": [
            {
                "attack": one["attack"],
                "name": one["name"],
                "title": one["title"],
                "adapted": one["adapted"],
                "upper_bound": one.get("upper_bound", False),
                "n_nonmembers": one["n_nonmembers"],
                "n_distinct_nonmembers": one["n_distinct_nonmembers"],
                "auc": _picked(one["auc"]),
                "tpr_at_fpr": {
                    fpr: _picked(rate, "false_positives", "warning") for fpr, rate in one["tpr_at_fpr"].items()
                },
            }
            for one in asked_rows(result["attacks"], probed(result))
        ],
        "idle": [one["label"] for one in result["components"] if not one["acted"]],
        "unproven": {one["label"]: one["unproven"] for one in result["components"] if one.get("unproven")},
        "privacy": result.get("privacy", []),
        "poisoning": poisoned(result),
        "wall_seconds": result["cost"]["wall_seconds"],
    }


def probed(result: Mapping[str, Any]) -> bool:
    """Whether attackers of a run made membership visible."""
    adversary = (result.get("poisoning") or {}).get("adversary") or {}
    return bool(adversary.get("probes", False))


def poisoned(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run says of poisoning, but for what is by round; null where it says nothing.

    Where attackers made membership visible, `counters` is what the attack counted. `fresh` is whether the model was
    untrained before the first attack, so that nothing is compared with it.
    """
    part = result.get("poisoning")
    if part is None:
        return None
    adversary = part.get("adversary")
    config = result["experiment"]["config"]
    fresh = adversary is not None and begins_fresh(config, adversary["attack_rounds"])
    found = {**{key: value for key, value in part.items() if key != "attacks"}, "fresh": fresh}
    if decisions := part.get("decisions"):
        found["decisions"] = {key: value for key, value in decisions.items() if key not in BY_ROUND}
        found["counters"] = _counters(result, "poisoning")
    return found


def _counters(result: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What the component of this kind counted; empty where there is none."""
    return next((dict(one["counters"]) for one in result["components"] if one["kind"] == kind), {})


def defended(experiment: Experiment) -> tuple[list[str], list[str]]:
    """The registered names of the defences and their labels: the clients', the coalition's, the server's."""
    made: list[tuple[str, str]] = [
        (name_of(one.defence), one.label)
        for one in defences_of(experiment)
        # A coalition that does nothing is how attacks on an undefended one's aggregate are asked for.
        if not (isinstance(one.defence, Coalition) and is_neutral(one.defence))
    ]
    for i, spec in enumerate(experiment.server_defences):
        component = build("server_defence", spec, f"server_defences.{i}")
        made.append((name_of(component), label_of(component)))
    return [name for name, _ in made], [label for _, label in made]


def partly(experiment: Experiment) -> bool:
    """Whether some of the audited clients use a defence that others do not: pooled figures then mix both."""
    targets = set(resolve_targets(experiment.targets, experiment.clients))
    return any(0 < len(one.clients & targets) < len(targets) for one in defences_of(experiment))


def _picked(measured: Mapping[str, Any], *more: str) -> dict[str, Any]:
    return {key: measured.get(key) for key in ("value", "low", "high", "n", *more)}
