"""The values behind the page's charts of main and backdoor accuracy and of decisions on membership."""

import html
from typing import Any

from fedsiege.report.finished import Finished
from fedsiege.report.poisoning.decided import final
from fedsiege.report.poisoning.series import DECISIONS, LINED, attacked_rounds, series
from fedsiege.report.style import dash, style


def chart_data(run: Finished) -> dict[str, Any] | None:
    """Lines, and rounds of attack with how many clients attacked; None where there is nothing about poisoning."""
    if run.poisoning is None:
        return None
    history = run.report.task.history
    return {
        "series": [
            {
                "key": one.key,
                "look": {
                    "name": html.escape(one.name, quote=False),  # plotly reads its texts as HTML
                    "light": style(one.style).light,
                    "dark": style(one.style).dark,
                    "dash": dash(one.style) or "solid",
                },
                "round": one.rounds,
                "value": one.values,
                "low": one.low,
                "high": one.high,
            }
            for one in series(history, run.poisoning)
        ],
        "attacks": list(attacked_rounds(history, run.poisoning).items()),
        "lined": LINED,
    }


def decided_data(run: Finished) -> dict[str, Any] | None:
    """Decisions on membership by round, their mean over the last rounds, the best round and guessing.

    None where there are none, or none by round.
    """
    found = run.poisoning.decisions if run.poisoning else None
    last = final(found) if found else None
    if found is None or last is None:
        return None
    look = style(DECISIONS)
    return {
        "light": look.light,
        "dark": look.dark,
        "round": found.rounds,
        "value": found.accuracy,
        "last": {"rounds": list(last), "value": found.last.value},
        "best": {"round": found.best.round, "value": found.best.value},
        "chance": found.chance,
    }
