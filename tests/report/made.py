"""Run folders made by hand: Gaussian scores of eight attacks on a few clients, judged by formulas of their own."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
ATTACKS = {
    "blackbox_loss": ("Blackbox-Loss", 0.3, 1),
    "grad_cosine": ("Grad-Cosine", 1.3, 1),
    "grad_diff": ("Grad-Diff", 0.9, 1),
    "grad_norm": ("Grad-Norm", 0.05, 1),
    "loss_series": ("Loss-Series", 1.5, 12),
    "avg_cosine": ("Avg-Cosine", 2.2, 12),
    "fedmia_i": ("FedMIA-I", 2.4, 12),
    "fedmia_ii": ("FedMIA-II", 3.0, 12),
}
FPRS = (0.1, 0.01, 0.001, 0.0001)
ROUNDS = list(range(5, 65, 5))


def binomial(found: int, total: int) -> dict[str, Any]:
    low = stats.beta.ppf(0.025, found, total - found + 1) if found else 0.0
    high = stats.beta.ppf(0.975, found + 1, total - found) if found < total else 1.0
    return {"value": found / total, "low": float(low), "high": float(high), "n": total}


def curve(members: Floats, others: Floats) -> tuple[Floats, Floats]:
    thresholds = np.unique(np.concatenate((members, others)))[::-1]
    tpr = 1 - np.searchsorted(np.sort(members), thresholds) / len(members)
    fpr = 1 - np.searchsorted(np.sort(others), thresholds) / len(others)
    return np.concatenate(([0.0], fpr)), np.concatenate(([0.0], tpr))


def rates(members: Floats, others: Floats) -> dict[str, Any]:
    falling = np.sort(others)[::-1]
    found = {}
    for fpr in FPRS:
        allowed = int(fpr * len(others) + 1e-9)
        hits = int((members > falling[allowed]).sum())
        few = f"with {len(others):,} non-members {100 * fpr:g} % FPR rests on at most {allowed} false positives"
        found[str(fpr)] = {
            **binomial(hits, len(members)),
            "false_positives": allowed,
            "warning": few if allowed < 10 else None,
        }
    return found


def entry(name: str, target: int | str, against: str, members: Floats, others: Floats) -> dict[str, Any]:
    title, _, used = ATTACKS[name]
    auc = float(stats.mannwhitneyu(members, others).statistic / len(members) / len(others))
    wide = 0.6 / np.sqrt(len(members))
    total = len(members) + len(others)
    return {
        "name": name, "attack": name, "title": title, "vantage": "server", "rounds_used": used,
        "target": target, "against": against, "n_members": len(members), "n_nonmembers": len(others),
        "auc": {"value": auc, "low": max(auc - wide, 0), "high": min(auc + wide, 1), "n": total},
        "tpr_at_fpr": rates(members, others),
        "balanced_accuracy": {"value": 0.71, "low": 0.69, "high": 0.73, "n": total},
        "log_auc": -0.4,
    }  # fmt: skip


def scores(name: str, target: int, members: int, others: int) -> dict[str, Floats]:
    rng = np.random.default_rng([target, *name.encode()])
    strength = ATTACKS[name][1] * (1 + 0.07 * target)
    return {
        "member": np.round(rng.normal(strength, 1.0, members), 4),
        "ifl": np.round(rng.normal(0.05, 1.0, others), 4),
        "ofl": np.round(rng.normal(-0.05, 1.0, others), 4),
    }


def attack_entries(name: str, targets: list[int], members: int, others: int) -> tuple[list[dict[str, Any]], Any]:
    made = {target: scores(name, target, members, others) for target in targets}
    entries = []
    roc = None
    for against, kinds in (("all", ("ifl", "ofl")), ("ifl", ("ifl",)), ("ofl", ("ofl",))):
        pairs = {t: (s["member"], np.concatenate([s[kind] for kind in kinds])) for t, s in made.items()}
        own = [entry(name, target, against, *pair) for target, pair in pairs.items()]
        pooled_pair = [np.concatenate(side) for side in zip(*pairs.values(), strict=True)]
        pooled = entry(name, "pooled", against, pooled_pair[0], pooled_pair[1])
        pooled["mean_over_targets"] = {
            "auc": float(np.mean([one["auc"]["value"] for one in own])),
            "tpr_at_fpr": {
                str(fpr): float(np.mean([one["tpr_at_fpr"][str(fpr)]["value"] for one in own])) for fpr in FPRS
            },
        }
        worst = max(own, key=lambda one: float(one["tpr_at_fpr"]["0.01"]["value"]))
        entries += [*own, pooled, {**worst, "target": "worst", "worst_target": worst["target"]}]
        if against == "all":
            fpr, tpr = curve(*pooled_pair)
            rows = np.unique(np.geomspace(1, len(fpr), 300).astype(int)) - 1
            rows = np.unique(np.concatenate((rows, [len(fpr) - 1])))
            roc = {
                "attack": name, "title": ATTACKS[name][0], "against": "all", "target": "pooled",
                "fpr": fpr[rows].round(6).tolist(), "tpr": tpr[rows].round(6).tolist(),
            }  # fmt: skip
    return entries, roc


def round_curve(name: str, pooled: dict[str, Any]) -> dict[str, Any]:
    title, _, used = ATTACKS[name]
    final = pooled["tpr_at_fpr"]["0.001"]
    share = [1.0, 1.0] if used > 1 else [1 - np.exp(-r / 20) * np.cos(r / 9) for r in ROUNDS]
    return {
        "attack": name, "title": title, "kind": "multi" if used > 1 else "single", "fpr": 0.001,
        "round": [ROUNDS[0], ROUNDS[-1]] if used > 1 else ROUNDS,
        "tpr": [final["value"] * float(s) for s in share],
        "low": [final["low"] * float(s) for s in share],
        "high": [final["high"] * float(s) for s in share],
    }  # fmt: skip


@functools.cache
def _computed(targets: int, members: int, others: int) -> str:
    attacks: list[dict[str, Any]] = []
    curves: dict[str, Any] = {"roc": [], "rounds": []}
    for name in ATTACKS:
        entries, roc = attack_entries(name, list(range(targets)), members, others)
        attacks += entries
        curves["roc"].append(roc)
        pooled = next(one for one in entries if (one["target"], one["against"]) == ("pooled", "all"))
        curves["rounds"].append(round_curve(name, pooled))
    return json.dumps([{**about(targets, members, others), "attacks": attacks}, curves])


def result(targets: int = 4, members: int = 400, others: int = 500) -> tuple[dict[str, Any], dict[str, Any]]:
    """result.json and curves.json of a plausible run, as Python values of the caller's own."""
    data, curves = json.loads(_computed(targets, members, others))
    return data, curves


def about(targets: int, members: int, others: int) -> dict[str, Any]:
    return {
        "schema": 1,
        "experiment": {
            "name": "quickstart", "title": "Handwritten digits, ten clients", "profile": None,
            "description": "A small federation on scikit-learn’s digits that overfits on purpose.",
            "config": {
                "data": {"name": "sklearn", "set": "digits"}, "partition": {"name": "iid"},
                "model": {"name": "mlp", "hidden": [512, 128]}, "clients": 10, "rounds": 60, "seed": 1,
                "targets": list(range(targets)), "candidates": {"members": members, "ifl": others, "ofl": others},
                "attacks": list(ATTACKS), "aggregator": {"name": "fedavg"}, "record_every": 5,
            },
        },
        "task": {
            "accuracy": 0.9131, "loss": 0.4127, "train_accuracy": 1.0, "classes": 10, "parameters": 100234,
            "class_names": [str(digit) for digit in range(10)],
            "history": [
                {"round": r, "accuracy": round(0.93 - 0.8 * 0.9**r, 4), "loss": round(0.4 + 2 * 0.9**r, 4)}
                for r in range(1, 61)
            ],
            "clients": [
                {"client": k, "examples": 140 + k % 3, "classes": 10, "defences": ["perturb(sigma=0.1)"]}
                for k in range(10)
            ],
        },
        "threat_model": {
            "adversary": "A curious server that follows the protocol and keeps every update that it receives.",
            "sees": ["each client’s update in each recorded round", "the global model of each recorded round"],
            "does_not_see": ["any client’s data", "the truth about any candidate"],
            "secure_aggregation": False,
        },
        "data": {
            "origin": "scikit-learn digits", "fingerprint": "sha256:" + "9f3c" * 16, "train": 1437, "heldout": 360,
            "duplicates": {"train_repeated": 3, "heldout_in_train": 1, "heldout_repeated": 0},
            "candidates": {
                "members": None, "ifl": others, "ofl": others, "union": 1797, "targets": list(range(targets)),
                "null": False, "compat": "none",
            },
        },
        "null_test": None,
        "components": [
            {"name": "fedavg", "kind": "aggregator", "label": "fedavg", "acted": True,
             "counters": {"rounds": 60, "updates": 600}},
            {"name": "perturb", "kind": "client_defence", "label": "perturb(sigma=0.1)", "acted": True,
             "counters": {"updates": 600, "mean_noise_norm": 31.622}},
            *({"name": name, "kind": "membership", "label": name, "acted": True,
               "counters": {"candidates": targets * (members + 2 * others), "filtered": 0}} for name in ATTACKS),
        ],
        "cost": {
            "wall_seconds": 134.2, "train_seconds": 81.0, "evidence_seconds": 40.5, "attack_seconds": 3.1,
            "peak_memory_bytes": 912_000_000, "trace_bytes": 15_400_000,
        },
        "provenance": {
            "fedsiege": "0.1.0", "python": "3.11.7", "packages": {"torch": "2.13.0", "numpy": "2.3.1"},
            "device": "cpu", "threads": 2, "platform": "Linux x86_64", "seed": 1, "config_hash": "0a1b" * 16,
            "started": "2026-03-01T09:30:00+00:00", "code": "1c9d106",
        },
        "paper": None,
        "warnings": ["label_only reaches an AUC of 0.62: part of the membership can be read from the label alone"],
    }  # fmt: skip


def with_null_test(data: dict[str, Any]) -> dict[str, Any]:
    """The same run as a null test that one attack does not pass."""
    tests = [
        {
            "attack": name, "against": against, "nulls": 20, "coverage": 0.95,
            "mean_auc": {"value": 0.501, "low": 0.493, "high": 0.509, "n": 20},
            "tpr_at_1pct": {"value": 0.0103, "low": 0.0085, "high": 0.0123, "n": 10000},
            "passed": name != "grad_norm",
            "reason": "over 20 nulls" if name != "grad_norm" else "mean AUC 0.5410 is not within 0.5 +- 0.01",
        }
        for name in ATTACKS for against in ("ifl", "ofl")
    ]  # fmt: skip
    return {**data, "null_test": tests}


def with_paper(data: dict[str, Any]) -> dict[str, Any]:
    """The same run as a reproduction."""
    pooled = {one["attack"]: one for one in data["attacks"] if (one["target"], one["against"]) == ("pooled", "all")}
    figures = [
        {"attack": "avg_cosine", "metric": "tpr@0.001", "published": 0.5466, "spread": 0.0122,
         "ours": pooled["avg_cosine"]["tpr_at_fpr"]["0.001"], "verdict": "lower than published"},
        {"attack": "fedmia_ii", "metric": "tpr@0.001", "published": 0.6698, "spread": 0.0174,
         "ours": pooled["fedmia_ii"]["tpr_at_fpr"]["0.001"], "verdict": "agrees"},
        {"attack": "fedmia_ii", "metric": "auc", "published": 0.89, "spread": None, "ours": None,
         "verdict": "not measured"},
    ]  # fmt: skip
    return {
        **data,
        "paper": {
            "claim": "FedMIA-II recognises two members in three at 0.1 % FPR on CIFAR-100 with AlexNet.",
            "source": "Zhu et al., FedMIA, CVPR 2025", "link": "https://arxiv.org/abs/2402.06289",
            "table": "Table 1", "figures": figures,
        },
    }  # fmt: skip


def hostile(data: dict[str, Any]) -> dict[str, Any]:
    """The same run with markup in every text that comes from configs and data."""
    made: dict[str, Any] = json.loads(json.dumps(with_null_test(with_paper(data))))
    made["experiment"] |= {"title": HOSTILE, "description": HOSTILE, "name": HOSTILE}
    made["experiment"]["config"]["note"] = HOSTILE + "\u2028 {{7*7}}"
    made["task"]["class_names"][0] = HOSTILE
    made["data"] |= {"origin": HOSTILE, "fingerprint": HOSTILE}
    made["components"][0] |= {"label": HOSTILE, "acted": False, "counters": {HOSTILE: 1}}
    made["threat_model"] |= {"adversary": HOSTILE, "sees": [HOSTILE]}
    made["paper"] |= {"claim": HOSTILE, "link": "javascript:document.title='owned'"}
    made["warnings"] = [HOSTILE]
    made["provenance"] |= {"started": HOSTILE, "fedsiege": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    for one in (*made["attacks"], *made["null_test"], *made["paper"]["figures"]):
        if one["attack"] == "fedmia_ii":
            one |= {"attack": f"fedmia_ii({HOSTILE})", "title": f"=_$\\x_1{HOSTILE}"}
    return made


def hostile_curves(curves: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(curves))
    for one in (*made["roc"], *made["rounds"]):
        if one["attack"] == "fedmia_ii":
            one |= {"attack": f"fedmia_ii({HOSTILE})", "title": f"=_$\\x_1{HOSTILE}"}
    return made


def folder(place: Path, data: dict[str, Any], curves: dict[str, Any]) -> Path:
    """Write the two files that a report reads."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "result.json").write_text(json.dumps(data), encoding="utf-8")
    (place / "curves.json").write_text(json.dumps(curves), encoding="utf-8")
    return place
