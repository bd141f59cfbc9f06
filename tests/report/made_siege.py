"""Sweeps of attacks by defences, made by hand: every figure is a plain formula of attack, defence and seed."""

import json
from collections.abc import Sequence
from typing import Any

from . import made_sweep
from .made import HOSTILE
from .made_poisoning import OTHERS, TRIGGERED, share

HELD = 400
ATTACKS = {
    "none": (None, 0.0, 0.0),
    "replacement": ("Model replacement", 0.96, 0.06),
    "data poisoning": ("Data poisoning", 0.3, 0.01),
}
"""Name -> title, backdoor accuracy after the attack where nobody defends, main accuracy lost to it."""

DEFENCES: dict[str, tuple[bool, list[str], float, float, float, float]] = {
    "fedavg": (True, [], 1.0, 0.0, 0.0, 0.0),
    "norm bound": (True, ["norm_bounding(bound=2.0)"], 0.08, 0.005, 0.0, 0.0),
    "krum": (False, [], 0.9, 0.06, 0.5, 0.3),
}
"""Name -> weighted mean, defences, factor of backdoor accuracy, main accuracy lost, rejected of both sides."""


def poisoning(attack: str, defence: str, seed: int) -> dict[str, Any] | None:
    title, works, costs = ATTACKS[attack]
    _, _, factor, lost, caught, wronged = DEFENCES[defence]
    main = 0.8 - lost + 0.01 * seed
    if title is None:
        return None
    attacked = round(works * factor * TRIGGERED) - seed
    at = {
        moment: share(round(HELD * (main - times * costs)), HELD)
        for moment, times in (("before", 0), ("attacked", 2), ("last", 1))
    }
    return {
        "adversary": {
            "name": attack.replace(" ", "_"), "label": f"{attack.replace(' ', '_')}(gamma=10)", "title": title,
            "compromised": [0], "attack_rounds": [20], "plants": True,
        },
        "backdoor": {"trigger": "pixel", "title": "Pixel pattern", "target": 2, "target_name": "bird",
                     "test": TRIGGERED, "unit": "image"},
        "main": {**at, "lowest": share(round(HELD * 0.5), HELD)},
        "success": {"before": share(1, TRIGGERED), "attacked": share(max(attacked, 0), TRIGGERED),
                    "last": share(max(attacked // 2, 0), TRIGGERED), "mean": 0.7 * works * factor,
                    "persistence": {"rounds": 9, "censored": False}},
        "mistaken": {moment: share(5, OTHERS) for moment in ("before", "attacked", "last")},
        "detection": {
            "attackers": {"answers": 10, "rejected": share(round(10 * caught), 10), "kept": 0.5, "scale": 1.0},
            "honest": {"answers": 190, "rejected": share(round(190 * wronged), 190), "kept": 0.9, "scale": 1.0},
        },
        "fresh": False,
    }  # fmt: skip


def cell(attack: str, defence: str, seed: int, model: str | None = None) -> dict[str, Any]:
    averages, labels, _, lost, _, _ = DEFENCES[defence]
    axes = {"adversary": "null" if attack == "none" else attack, "aggregator": defence}
    axes |= {"model": model} if model else {}
    name = ", ".join(f"{field}={value}" for field, value in axes.items())
    part = poisoning(attack, defence, seed)
    quiet = round(HELD * (0.8 - lost + 0.01 * seed)) / HELD
    return {
        "name": name, "axes": axes, "seed": seed, "defences": [label.split("(")[0] for label in labels],
        "labels": labels, "folder": f"cells/{attack}-{defence}-{model}/seed{seed}".replace(" ", "-"),
        "status": "done", "error": None, "train_accuracy": 0.97, "loss": 0.5, "rule": defence, "averages": averages,
        "accuracy": part["main"]["last"]["value"] if part else quiet,
        "attacks": [], "idle": [], "privacy": [], "partly": False, "poisoning": part, "wall_seconds": 20.0,
    }  # fmt: skip


def siege(
    attacks: Sequence[str] = tuple(ATTACKS),
    defences: Sequence[str] = tuple(DEFENCES),
    seeds: Sequence[int] = (0, 1, 2),
    models: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """sweep.json of every attack against every defence, without an audit of membership."""
    axes = {"adversary": ["null" if one == "none" else one for one in attacks], "aggregator": list(defences)}
    axes |= {"model": list(models)} if models else {}
    cells = [
        cell(attack, defence, seed, model or None)
        for model in (models or [""])
        for attack in attacks
        for defence in defences
        for seed in seeds
    ]
    return {
        "schema": 1, "title": "Three defences against two attackers", "description": "A siege.", "budget": 0.02,
        "axes": axes, "seeds": list(seeds), "cells": cells, **more,
    }  # fmt: skip


def untargeted(data: dict[str, Any]) -> dict[str, Any]:
    """The same with attacks on main accuracy alone: no backdoor is measured."""
    made: dict[str, Any] = json.loads(json.dumps(data))
    for one in made["cells"]:
        if part := one["poisoning"]:
            part["adversary"] |= {"plants": False}
            part |= {"backdoor": None, "success": None, "mistaken": None}
    return made


def probed(data: dict[str, Any]) -> dict[str, Any]:
    """The same with attacks that make membership visible: decisions get worse with what a defence takes away."""
    made: dict[str, Any] = untargeted(data)
    for one in made["cells"]:
        if part := one["poisoning"]:
            works, costs = ATTACKS[one["axes"]["adversary"]][1:]
            factor = DEFENCES[one["axes"]["aggregator"]][2]
            right = round(306 * (0.5 + 0.4 * works * factor)) - one["seed"]
            part["adversary"] |= {"probes": True}
            part["decisions"] = {
                "members": 153, "nonmembers": 153, "chance": 0.5,
                "best": {"round": 35, **share(right + 15, 306)}, "last": {"rounds": 20, **share(right, 306)},
            }  # fmt: skip
            if costs > 0.05:
                part["counters"] = {"feasible_share": 0.25 + 0.05 * one["seed"]}
    return made


def audited(data: dict[str, Any]) -> dict[str, Any]:
    """The same with a membership attack on every cell."""
    made: dict[str, Any] = json.loads(json.dumps(data))
    for one in made["cells"]:
        one["attacks"] = [made_sweep.attacked("fedmia_ii", 1.0, one["seed"])]
    return made


def hostile() -> dict[str, Any]:
    """The same with markup, formulas and TeX in every text."""
    made: dict[str, Any] = json.loads(json.dumps(siege(models=("a", "b"))))
    made |= {"title": HOSTILE, "description": HOSTILE}
    for one in made["cells"]:
        one["name"] = f"={HOSTILE}{one['name']}"
        one["axes"] = {
            field: value if value == "null" else f"@{HOSTILE}$_\\x{value}" for field, value in one["axes"].items()
        }
        one["labels"] = [f"{HOSTILE}{label}" for label in one["labels"]]
        one["defences"] = [f"+{HOSTILE}{name}" for name in one["defences"]]
        one["rule"] = HOSTILE
        one["folder"] = f"javascript:alert('{HOSTILE}')"
        if part := one["poisoning"]:
            part["adversary"] |= {"title": f"=_$\\x{HOSTILE}", "label": f"-{HOSTILE}"}
            part["backdoor"] |= {"title": HOSTILE, "target_name": HOSTILE}
    return made
