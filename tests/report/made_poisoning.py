"""Runs with compromised clients, made by hand: a backdoor that fades after one shot, and what else there can be."""

import json
import math
from typing import Any

from scipy import stats

from .made import HOSTILE

HELD, TRIGGERED, OTHERS = 360, 50, 324
SHOT, LAST = 30, 60


def share(found: int, total: int) -> dict[str, Any]:
    """A share with Wilson's interval, as scipy has it."""
    low, high = stats.binomtest(found, total).proportion_ci(method="wilson")
    return {"value": found / total, "low": float(low), "high": float(high), "n": total}


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 100}


def fading(number: int) -> float:
    """Backdoor accuracy after a round: 4 % before the shot, 96 % after it, then less and less."""
    found = 2 if number < SHOT else round(TRIGGERED * 0.96 * math.exp((SHOT - number) / 25))
    return found / TRIGGERED


def poisoned(data: dict[str, Any]) -> dict[str, Any]:
    """The same run with one attacker in one round, who replaces the model, and a server that clips."""
    made: dict[str, Any] = json.loads(json.dumps(data))
    task = made["task"]
    task["history"] = [
        {"round": 0, "accuracy": 0.1, "loss": 2.4, "backdoor": 0.0, "mistaken": 0.05},
        *task["history"],
    ]
    for one in task["history"][1:]:
        dip = 0.15 if one["round"] == SHOT else 0.0
        one |= {"accuracy": round(one["accuracy"] - dip, 4), "backdoor": fading(one["round"]), "mistaken": 0.0123,
                "attackers": int(one["round"] == SHOT)}  # fmt: skip
    for one in task["clients"]:
        one["compromised"] = one["client"] == 3
    made["components"] += [
        {"name": "model_replacement", "kind": "poisoning", "label": "model_replacement(gamma=10)", "acted": True,
         "counters": {"poisoned_updates": 1, "mean_gamma": 10.0}},
        {"name": "norm_bounding", "kind": "server_defence", "label": "norm_bounding(bound=5.0)", "acted": True,
         "counters": {"clipped": 301}},
    ]  # fmt: skip
    made["poisoning"] = {
        "adversary": {
            "name": "model_replacement", "label": "model_replacement(gamma=10)", "title": "Model replacement",
            "compromised": [3], "attack_rounds": [SHOT], "plants": True,
        },
        "backdoor": {
            "trigger": "pixel", "title": "Pixel pattern", "target": 2, "target_name": "bird", "test": TRIGGERED,
            "unit": "image",
        },
        "main": {"before": share(325, HELD), "attacked": share(270, HELD), "last": share(329, HELD),
                 "lowest": share(270, HELD)},
        "success": {"before": share(2, TRIGGERED), "attacked": share(48, TRIGGERED), "last": share(14, TRIGGERED),
                    "mean": 0.5432, "persistence": {"rounds": 17, "censored": False}},
        "mistaken": {"before": share(4, OTHERS), "attacked": share(10, OTHERS), "last": share(4, OTHERS)},
        "detection": {
            "attackers": {"answers": 1, "rejected": share(0, 1), "kept": 1.0, "scale": 0.1372},
            "honest": {"answers": 599, "rejected": share(0, 599), "kept": 1.0, "scale": 0.9876},
        },
        "attacks": [
            {"round": SHOT, "attackers": 1, "norm": 36.441, "norm_ratio": 12.34, "norm_rank": 1, "of": 10,
             "cosine": 0.0123, "accuracy": 0.7234, "success": 0.98},
        ],
    }  # fmt: skip
    return made


def repeated(data: dict[str, Any]) -> dict[str, Any]:
    """Two attackers in every round from 21 on, most of whose answers the server rejects."""
    made = poisoned(data)
    rounds = list(range(21, LAST + 1))
    made["poisoning"]["adversary"] |= {
        "title": "DBA",
        "label": "dba",
        "compromised": [0, 5],
        "attack_rounds": rounds,
    }
    made["poisoning"]["success"] |= {"attacked": share(3, TRIGGERED), "last": share(31, TRIGGERED), "mean": 0.4444,
                                     "persistence": {"rounds": 0, "censored": True}}  # fmt: skip
    made["poisoning"]["detection"] = {
        "attackers": {"answers": 80, "rejected": share(60, 80), "kept": 0.25, "scale": 1.0},
        "honest": {"answers": 520, "rejected": share(13, 520), "kept": 0.975, "scale": 1.0},
    }
    made["poisoning"]["attacks"] = [
        {"round": number, "attackers": 2, "norm": 3.0 + 0.1 * number, "norm_ratio": 1.5, "norm_rank": 2, "of": 10,
         "cosine": 0.4, "accuracy": 0.9, "success": 0.8}
        for number in rounds
    ]  # fmt: skip
    for one in made["task"]["history"]:
        one["attackers"] = 2 if one["round"] in rounds else 0
    return made


def voted(data: dict[str, Any]) -> dict[str, Any]:
    """The same, and a defence of the server's has copies of the final model vote."""
    made = poisoned(data)
    made["poisoning"]["defended_use"] = {
        "label": "crfl(sigma=0.5)", "accuracy": share(315, HELD), "success": share(9, TRIGGERED),
        "mistaken": share(6, OTHERS),
    }  # fmt: skip
    return made


def garbled(data: dict[str, Any]) -> dict[str, Any]:
    """Repeated attacks, some of whose answers, and one honest one, no server could use."""
    made = repeated(data)
    found = made["poisoning"]["detection"]
    found["attackers"] |= {"unusable": 20, "rejected": share(45, 60)}
    found["honest"] |= {"unusable": 1, "rejected": share(13, 519)}
    made["poisoning"]["adversary"] |= {"planned_rounds": 45}
    return made


def untargeted(data: dict[str, Any]) -> dict[str, Any]:
    """An attack on the accuracy itself: there is no backdoor to measure, and the server takes a plain mean."""
    made = poisoned(data)
    made["poisoning"]["adversary"] |= {"name": "label_flip", "label": "label_flip", "title": "Label flipping",
                                       "plants": False}  # fmt: skip
    made["poisoning"] |= {"backdoor": None, "success": None, "mistaken": None}
    made["poisoning"]["detection"]["attackers"]["scale"] = made["poisoning"]["detection"]["honest"]["scale"] = 1.0
    made["components"] = [one for one in made["components"] if one["kind"] != "server_defence"]
    for one in made["poisoning"]["attacks"]:
        one |= {"success": None, "cosine": None}
    for one in made["task"]["history"]:
        one |= {"backdoor": None, "mistaken": None}
    return made


def probed(data: dict[str, Any], kept: float = 0.75) -> dict[str, Any]:
    """An attack from round 21 on that makes membership visible, and a server that rejects a quarter of it.

    Decisions get better by a hundredth every second round, are right most often in round 35, and by 217 of 306 on
    average over the last twenty.
    """
    made = untargeted(repeated(data))
    rounds = list(range(21, LAST + 1))
    accuracy = [0.5 + 0.005 * place for place in range(len(rounds))]
    accuracy[rounds.index(35)] = 254 / 306
    made["poisoning"]["adversary"] |= {"name": "fedpoisonmia", "label": "fedpoisonmia", "title": "FedPoisonMIA"}
    made["poisoning"]["adversary"] |= {"compromised": [0], "attack_rounds": rounds, "probes": True}
    made["poisoning"]["detection"]["attackers"] |= {"answers": 40, "rejected": share(10, 40), "kept": kept}
    made["poisoning"]["decisions"] = {
        "members": 153, "nonmembers": 153, "chance": 0.5, "rounds": rounds, "accuracy": accuracy,
        "best": {"round": 35, **share(254, 306)}, "last": {"rounds": 20, **share(217, 306)},
    }  # fmt: skip
    made["cost"] |= {"crafting_seconds": 12.5, "combining_seconds": 3.25}
    return made


def of_anybody(data: dict[str, Any]) -> dict[str, Any]:
    """The same, and each attack was also asked whether examples are anybody's."""
    made: dict[str, Any] = json.loads(json.dumps(data))
    pooled = [one for one in made["attacks"] if (one["target"], one["against"]) == ("pooled", "ofl")]
    for one in pooled:
        anyone = {key: value for key, value in one.items() if key != "mean_over_targets"}
        made["attacks"].append({**anyone, "target": "any", "n_members": 153, "auc": figure(0.777, 0.7, 0.8)})
    return made


def unattacked(data: dict[str, Any]) -> dict[str, Any]:
    """Nobody attacks, and what the model does with the trigger is measured all the same."""
    made = poisoned(data)
    nothing = {"answers": 0, "rejected": None, "kept": None, "scale": None}
    made["components"] = [one for one in made["components"] if one["kind"] != "poisoning"]
    made["poisoning"] |= {"adversary": None, "attacks": []}
    made["poisoning"]["main"] = {"before": None, "attacked": None, "last": share(329, HELD), "lowest": None}
    made["poisoning"]["success"] = {"before": None, "attacked": None, "last": share(2, TRIGGERED), "mean": 0.04,
                                    "persistence": None}  # fmt: skip
    made["poisoning"]["mistaken"] = {"before": None, "attacked": None, "last": share(4, OTHERS)}
    made["poisoning"]["detection"]["attackers"] = nothing
    for one in made["task"]["history"]:
        one |= {"attackers": 0, "backdoor": 0.04}
    for one in made["task"]["clients"]:
        one["compromised"] = False
    return made


def alone(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """result.json and curves.json of the same run without an audit of membership."""
    made: dict[str, Any] = json.loads(json.dumps(data))
    made |= {"attacks": [], "null_test": None, "warnings": []}
    made["components"] = [one for one in made["components"] if one["kind"] != "membership"]
    made["data"]["candidates"] = {"members": 0, "ifl": 0, "ofl": 0, "union": 0, "targets": [], "null": False,
                                  "compat": "none"}  # fmt: skip
    made["experiment"]["config"] |= {"attacks": []}
    return made, {"roc": [], "rounds": []}


def hostile(data: dict[str, Any]) -> dict[str, Any]:
    """The same with markup, formulas and TeX in every text about poisoning."""
    made = poisoned(data)
    made["poisoning"]["adversary"] |= {"title": f"=_$\\x{HOSTILE}", "label": HOSTILE, "name": HOSTILE}
    made["poisoning"]["defended_use"] = {"label": f"[b]_$\\x{HOSTILE}", "accuracy": share(315, HELD)}
    made["poisoning"]["backdoor"] |= {"title": HOSTILE, "target_name": f"_$\\x{HOSTILE}%&", "trigger": HOSTILE}
    for one in made["components"]:
        if one["kind"] in ("server_defence", "poisoning"):
            one["label"] = HOSTILE
    return made
