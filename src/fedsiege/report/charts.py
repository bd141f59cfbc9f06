"""The values behind the page's charts, as JSON that is safe inside a script element."""

import html
import json
from typing import Any

from markupsafe import Markup

from fedsiege.report.figures import floor, shown
from fedsiege.report.findings import all_pooled
from fedsiege.report.finished import Finished
from fedsiege.report.poisoning import charts as poisoning
from fedsiege.report.schema import Curve, Rate
from fedsiege.report.style import dash, style
from fedsiege.report.words import fpr_name

UNSAFE = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def embedded(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).translate(UNSAFE))


def chart_data(run: Finished) -> dict[str, Any]:
    """Everything that the page's script draws; attacks are numbers, as in `styles`."""
    low = floor(run.curves.roc)
    return {
        "attacks": [_attack(run, label) for label in run.styles],
        "floor": low,
        "roc": [_roc(run, one, low) for one in run.curves.roc],
        "clients": _clients(run),
        "rounds": [
            {"attack": run.styles[c.attack], **c.model_dump(include={"kind", "round", "tpr", "low", "high", "fpr"})}
            for c in run.curves.rounds
        ],
        "history": _history(run),
        "hijack": poisoning.chart_data(run),
        "decided": poisoning.decided_data(run),
    }


def _attack(run: Finished, label: str) -> dict[str, Any]:
    number = run.styles[label]
    look = style(number)
    return {
        "name": html.escape(run.names[label], quote=False),  # plotly reads its texts as HTML
        "light": look.light,
        "dark": look.dark,
        "dash": dash(number) or "solid",
        "symbol": look.symbol,
    }


def _roc(run: Finished, curve: Curve, low: float) -> dict[str, Any]:
    fpr, tpr = shown(curve, low)
    return {"attack": run.styles[curve.attack], "fpr": fpr, "tpr": tpr}


def _clients(run: Finished) -> dict[str, Any]:
    """[attack][fpr] -> per audited client [value, low, high, false positives]; pooled and guessing beside it."""
    values: dict[str, dict[str, list[list[float | None]]]] = {}
    pooled: dict[str, dict[str, float | None]] = {}
    for target in run.targets:
        for row in run.rows(target):
            for fpr in run.fprs:
                per_fpr = values.setdefault(str(row.style), {})
                per_fpr.setdefault(fpr, []).append(_bar(row.rate(fpr)))
    for row in all_pooled(run):
        pooled[str(row.style)] = {fpr: row.rate(fpr).value for fpr in run.fprs}
    return {
        "targets": run.targets,
        "names": {fpr: fpr_name(fpr) for fpr in run.fprs},
        "values": values,
        "pooled": pooled,
    }


def _bar(rate: Rate) -> list[float | None]:
    return [rate.value, rate.low, rate.high, rate.false_positives]


def _history(run: Finished) -> dict[str, Any]:
    task = run.report.task
    return {
        "round": [one.round for one in task.history],
        "accuracy": [one.accuracy for one in task.history],
        "loss": [one.loss for one in task.history],
        "train": task.train_accuracy,
    }
