"""Sweep folders made by hand: every figure is a plain formula of defence, attack and seed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .made import HOSTILE

ATTACKS = {
    "loss_series": ("Loss-Series", 0.25),
    "avg_cosine": ("Avg-Cosine", 0.55),
    "fedmia_ii": ("FedMIA-II", 0.67),
    "fedmia_ii(coordinates=nonzero)": ("FedMIA-II (non-zero coordinates)", 0.6),
}
LEVELS: dict[str, tuple[list[str], list[str], float, float]] = {
    "none": ([], [], 0.0, 1.0),
    "perturb 0.01": (["perturb"], ["perturb(sigma=0.01)"], 0.004, 0.8),
    "perturb 0.05": (["perturb"], ["perturb(sigma=0.05)"], 0.05, 0.3),
    "sparsify 0.9": (["sparsify"], ["sparsify(share=0.9)"], 0.012, 0.5),
    "sparsify 0.99": (["sparsify"], ["sparsify(share=0.99)"], 0.09, 0.25),
    "half data": (["augment", "sample"], ["augment", "sample(share=0.5)"], 0.016, 0.35),
}
"""Name -> names, labels, accuracy lost, and the factor by which TPRs fall."""

MODELS = {"alexnet": 0.42, "resnet18": 0.5}
FEW = "2,000 non-members are too few for 0.1 % FPR: no false positive is allowed; 10,000 would allow 10"


def figure(value: float, reach: float = 0.02, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": max(value - reach, 0.0), "high": min(value + reach, 1.0), "n": 500, **more}


def attacked(label: str, strength: float, seed: int) -> dict[str, Any]:
    title, tpr = ATTACKS[label]
    value = tpr * strength * (1 + 0.03 * seed)
    return {
        "attack": label, "name": label.split("(")[0], "title": title, "adapted": "coordinates=" in label,
        "auc": figure(0.5 + 0.4 * value),
        "tpr_at_fpr": {
            "0.01": figure(min(value + 0.1, 1.0), warning=None),
            "0.001": figure(value, warning=FEW if label == "loss_series" else None),
        },
    }  # fmt: skip


def cell(level: str, model: str, seed: int, base: float) -> dict[str, Any]:
    names, labels, lost, factor = LEVELS[level]
    axes = {"defences": level, "model": model}
    return {
        "name": f"defences={level}, model={model}", "axes": axes, "seed": seed, "defences": names, "labels": labels,
        "folder": f"cells/{level}-{model}/seed{seed}".replace(" ", "-"),
        "status": "done", "error": None, "train_accuracy": 0.97, "loss": 2.1,
        "accuracy": base - lost + 0.002 * seed - 0.001 * (seed * len(level) % 4),
        "attacks": [
            attacked(label, factor if label != "fedmia_ii(coordinates=nonzero)" or "sparsify" not in names
                     else 1.2 * factor, seed)
            for label in ATTACKS if "coordinates=" not in label or "sparsify" in names
        ],
        "idle": [], "privacy": [], "wall_seconds": 61.5,
    }  # fmt: skip


def sweep(models: Sequence[str] = ("alexnet",), seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """sweep.json of a plausible grid, all cells done."""
    axes = {"defences": list(LEVELS), "model": list(models)}
    cells = [cell(level, model, seed, MODELS[model]) for model in models for level in LEVELS for seed in seeds]
    return {
        "schema": 1, "title": "Six defences on CIFAR-100", "description": "Every defence at two strengths.",
        "budget": 0.02, "axes": axes, "seeds": list(seeds), "cells": cells,
    }  # fmt: skip


def run(
    name: str, seed: int, accuracy: float, tprs: dict[str, float], *defences: str, **more: Any
) -> dict[str, Any]:
    """A finished run with figures given by hand."""
    return {
        "name": name, "axes": {"defences": name}, "seed": seed, "folder": f"cells/{name}/seed{seed}",
        "defences": list(defences), "labels": [f"{one}()" for one in defences], "status": "done", "error": None,
        "accuracy": accuracy, "train_accuracy": None, "loss": None, "idle": [], "privacy": [], "wall_seconds": None,
        "attacks": [
            {"attack": label, "name": label, "title": label.upper(), "adapted": False,
             "auc": {"value": 0.5 + tpr / 2, "low": 0.4, "high": 0.9, "n": 10},
             "n_nonmembers": 10_000,
             "tpr_at_fpr": {
                 "0.001": {"value": tpr, "low": tpr / 2, "high": 2 * tpr, "n": 5000, "false_positives": 10,
                           "warning": None},
                 "0.01": {"value": min(1.0, 1.2 * tpr), "low": None, "high": None, "n": 5000, "warning": None}}}
            for label, tpr in tprs.items()
        ],
        **more,
    }  # fmt: skip


def grid(*cells: dict[str, Any], **more: Any) -> dict[str, Any]:
    """sweep.json of these runs, whose only axis is that of the defences."""
    names = list(dict.fromkeys(one["name"] for one in cells))
    seeds = sorted({one["seed"] for one in cells})
    return {"schema": 1, "axes": {"defences": names}, "seeds": seeds, "cells": list(cells), **more}


def undo(one: dict[str, Any], status: str, error: str | None) -> None:
    """Make a cell one that did not finish, in place."""
    one |= {"status": status, "error": error, "accuracy": None, "train_accuracy": None, "loss": None,
            "attacks": [], "wall_seconds": None}  # fmt: skip


def troubled() -> dict[str, Any]:
    """Two settings with a failed cell, a missing one, an idle defence and a guarantee."""
    data = sweep(("alexnet", "resnet18"))
    by_name = {(one["name"], one["seed"]): one for one in data["cells"]}
    undo(by_name["defences=perturb 0.05, model=alexnet", 1], "failed", "training diverged in round 3 & stopped")
    undo(by_name["defences=sparsify 0.99, model=resnet18", 2], "missing", None)
    for seed in (0, 1, 2):
        by_name["defences=sparsify 0.9, model=resnet18", seed]["idle"] = ["sparsify(share=0.9)"]
        by_name["defences=perturb 0.01, model=alexnet", seed]["privacy"] = [
            {"label": "perturb(sigma=0.01)", "unit": "client", "against": "server", "epsilon": 8.25, "delta": 1e-5,
             "accountant": "rdp", "note": ""}
        ]  # fmt: skip
    return data


def figure_of(cell: str, metric: str, published: float, verdict: str, **more: Any) -> dict[str, Any]:
    """A line of the comparison with a paper; `ours` is (value, low, high, seeds)."""
    ours = more.pop("ours", None)
    return {
        "cell": cell, "attack": "", "metric": metric, "against": "", "published": published, "spread": None,
        "rounding": 0.005, "ours": ours and dict(zip(("value", "low", "high", "n"), ours, strict=True)),
        "verdict": verdict, **more,
    }  # fmt: skip


def with_paper(data: dict[str, Any]) -> dict[str, Any]:
    """The same beside a paper: two cells, one of them in two places; an attack that was not run; accuracies."""
    none, half = "defences=none, model=alexnet", "defences=half data, model=alexnet"
    figures = [
        figure_of(none, "auc", 0.82, "agrees", attack="fedmia_ii", spread=0.02, ours=(0.811, 0.8, 0.822, 3)),
        figure_of(
            half,
            "tpr@0.001",
            0.0124,
            "ours is higher (profile small)",
            attack="fedmia_ii",
            spread=0.0035,
            ours=(0.242, 0.2, 0.28, 3),
        ),
        figure_of(half, "auc", 0.5, "not measured", attack="seqmia"),
        figure_of(none, "accuracy", 0.46, "ours is lower", ours=(0.42, None, None, 1)),
        figure_of(half, "accuracy_change", -0.01, "agrees", against=none, ours=(-0.016, -0.02, 0.004, 3)),
    ]
    paper = {
        "claim": "Half the data is enough.",
        "source": "Nobody et al.",
        "table": "Table 4",
        "link": "https://arxiv.org/abs/2601.06866",
        "changed": ["rounds", "model"],
        "figures": figures,
    }
    return {**data, "paper": paper}  # fmt: skip


def hostile() -> dict[str, Any]:
    """The same with markup, formulas and TeX in every text."""
    data: dict[str, Any] = json.loads(json.dumps(with_paper(troubled())))
    data |= {"title": HOSTILE, "description": HOSTILE + "{{7*7}}"}
    data["paper"] |= {"claim": HOSTILE, "table": HOSTILE, "link": "javascript:document.title='owned'"}
    data["paper"]["changed"] = [HOSTILE]
    for one in data["paper"]["figures"]:
        one |= {"cell": f"={HOSTILE}", "attack": HOSTILE, "against": HOSTILE, "verdict": HOSTILE}
    for one in data["cells"]:
        one["name"] = f"={HOSTILE}{one['name']}"
        one["axes"] = {key: f"@{HOSTILE}$_\\x{value}" for key, value in one["axes"].items()}
        one["defences"] = [f"+{HOSTILE}%_$\\{name}" for name in one["defences"]]
        one["labels"] = [f"{HOSTILE}{label}" for label in one["labels"]]
        one["folder"] = f"javascript:alert('{HOSTILE}')"
        one["error"] = one["error"] and f"-{HOSTILE}"
        one["idle"] = [f"{HOSTILE}{label}" for label in one["idle"]]
        for guarantee in one["privacy"]:
            guarantee |= {"label": HOSTILE, "accountant": HOSTILE}
        for attack in one["attacks"]:
            attack |= {"attack": f"{HOSTILE}{attack['attack']}", "title": f"=_$\\x_1{HOSTILE}{attack['title']}"}
            attack["tpr_at_fpr"]["0.001"]["warning"] = HOSTILE
    return data


def folder(place: Path, data: dict[str, Any]) -> Path:
    """Write the file that the report reads."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "sweep.json").write_text(json.dumps(data), encoding="utf-8")
    return place
