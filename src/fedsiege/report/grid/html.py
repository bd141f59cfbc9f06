"""report.html of a sweep: one page that works offline, prints well and runs no script but its own."""

from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup

from fedsiege import __version__
from fedsiege.files import write_bytes
from fedsiege.report import page as pages
from fedsiege.report.charts import embedded
from fedsiege.report.grid import findings, paper
from fedsiege.report.grid.charts import chart_data
from fedsiege.report.grid.finished import FPR, MEASURES, FinishedSweep
from fedsiege.report.grid.poisoning import findings as poisoning
from fedsiege.report.grid.poisoning import measures
from fedsiege.report.grid.poisoning.glossary import SIEGE
from fedsiege.report.grid.poisoning.measures import Measure, Siege
from fedsiege.report.grid.poisoning.places import ALL
from fedsiege.report.grid.tables import extremes, heading
from fedsiege.report.html import HIJACKED, VISIBLE
from fedsiege.report.measured import Measured
from fedsiege.report.poisoning.glossary import DECIDED
from fedsiege.report.poisoning.judged import UNKNOWN
from fedsiege.report.words import fpr_name

RATE = findings.RATE
MOST = 0.5
"""A loss of main accuracy from which on a cell has its full colour."""
GLOSSARY = {
    "Setting": "What cells share but for their defences: data, model, learning rate. Defences are compared within "
    "a setting, with its undefended cell as the baseline.",
    "Demonstrably": "By more than luck explains, with 95 % confidence for all cells within the budget together: "
    "over seeds, or in every seed’s own run, whose intervals count its members and the few non-members that fix "
    "the threshold. Another training run can differ by more than the interval of one run says.",
    RATE: "The share of members that an attack recognises when its threshold accuses at most "
    f"{fpr_name(FPR)} of the non-members falsely: what an adversary can be sure of.",
    "AUC": "How often a random member scores higher than a random non-member. 0.5 is guessing, 1 is perfect.",
    "Cost": "Test accuracy of the undefended cell minus that of the defended one, seed by seed, in points "
    "(hundredths). A negative cost is a gain.",
    "Pareto front": "The cells that no other beats: each other one has a larger test error or leaks more.",
    "Hypervolume": "The area between the points (test error, TPR) of one defence at all its strengths and the "
    "corner (1, 1), where nothing is learnt and everything leaks. It is at most the best accuracy. "
    + f"{findings.BELOW_UNDEFENDED} {findings.EQUALLY_MANY}",
    "Strongest attack": "The attack with the highest mean TPR on a cell. To know which it is takes the truth about "
    "the members, which an adversary does not have; of the attacks that were run, none found more.",
    "Upper bound": "No attack, for it is told the truth about half of the candidates and judged on the rest. It is "
    "never the strongest, and no verdict on a defence rests on it.",
    "Adapted": "The attack is told which defence is in place, and reads the updates accordingly.",
    "Interval": "Student’s 95 % interval of the mean over seeds: other training runs of the same federation. "
    "Few seeds can agree by chance, so it is never narrower than what the runs’ own intervals of TPR and AUC imply "
    "for their mean. A cell with one seed has its run’s own interval: other candidates, not another training run.",
}


def write_html(sweep: FinishedSweep) -> Path:
    """Write report.html into the sweep's folder; return its path."""
    path = sweep.folder / "report.html"
    write_bytes(path, page(sweep).encode())
    return path


def page(sweep: FinishedSweep) -> str:
    """The whole page."""
    library, script = pages.library(), _templates().get_template("grid.js").render()
    return (
        _templates()
        .get_template("grid.html.j2")
        .render(
            **_context(sweep),
            beside=paper.lines(sweep, sweep.report.paper) if sweep.report.paper else {},
            sections=_sections(sweep),
            policy=pages.policy(library, script),
            library=Markup(library),
            script=Markup(script),
            chart_data=embedded(chart_data(sweep)),
            glossary=_glossary(sweep),
            version=__version__,
        )
    )


def fragment(sweep: FinishedSweep) -> str:
    """Headline and hypervolumes, for a notebook."""
    return _templates().get_template("grid_notebook.html.j2").render(**_context(sweep))


def report_of(folder: str) -> str:
    """The address of a run's report, relative to the page; "" for a folder that does not lie below it."""
    path = PurePosixPath(folder)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return ""
    return "./" + quote(str(path / "report.html"))


def heat(measure: Measure, figure: Measured) -> float:
    """How strongly a cell of a table is coloured, from 0 to 1."""
    above = (figure.value or 0.0) - measure.floor
    strength = above / (1.0 - measure.floor if measure.unit == "share" else MOST)
    return min(max(strength, 0.0), 1.0)


def _besieged(sweep: FinishedSweep) -> str:
    """The title of the section on attackers: those who make membership visible want something else."""
    made = [point for point in sweep.points if measures.attacked(point)]
    return VISIBLE if made and all(measures.probes(point) for point in made) else HIJACKED


def _glossary(sweep: FinishedSweep) -> dict[str, str]:
    """The words that the page's sections use."""
    visible = any(measures.probes(point) for point in sweep.points)
    return {
        **(GLOSSARY if sweep.audited or not sweep.besieged else {}),
        **(DECIDED if visible else {}),
        **(SIEGE if sweep.besieged else {}),
    }


@cache
def _templates() -> Environment:
    environment = pages.environment(findings)
    environment.globals.update(
        report_of=report_of,
        column_heading=heading,
        verdicts=paper.verdicts,
        besieged=poisoning,
        attacked=measures.attacked,
        heat=heat,
        UNKNOWN=UNKNOWN,
        ALL=ALL,
    )
    return environment


def _context(sweep: FinishedSweep) -> dict[str, Any]:
    return {
        "sweep": sweep,
        "report": sweep.report,
        "headlines": findings.headlines(sweep),
        "siege": Siege.of(sweep),
        "extremes": {setting: extremes(sweep, setting) for setting in sweep.settings},
        "rate": RATE,
        "measures": dict(zip(MEASURES, (RATE, "AUC"), strict=True)),
    }


def _sections(sweep: FinishedSweep) -> dict[str, str]:
    """Anchor -> title of the sections that this sweep has something to say in, in the page's order."""
    measured = any(point.figures for point in sweep.points)
    several = any(one.verdicts for one in findings.headlines(sweep) if one.about == "poisoning")
    bare = not sweep.audited and any(point.done for point in sweep.points)
    present = {
        "settings": ("Setting by setting", sweep.audited and len(sweep.settings) > 1 and bool(sweep.styles)),
        "tpr": (f"Accuracy against {RATE}", measured),
        "auc": ("Accuracy against AUC", measured),
        "hypervolume": ("Hypervolumes", measured and bool(sweep.styles)),
        "strongest": ("The strongest attack on each cell", measured),
        "cells": ("All cells", measured),
        "sieges": ("Who is kept out, setting by setting", several),
        "hijack": (_besieged(sweep), sweep.besieged),
        "besieged": ("Every cell, attacked or not", sweep.besieged or bare),
        "paper": ("Beside the paper", sweep.report.paper is not None),
        "privacy": ("Differential privacy that was spent", any(findings.epsilons(p) for p in sweep.points)),
        "unfinished": ("What did not finish", bool(findings.unfinished(sweep))),
        "glossary": ("Glossary", True),
    }
    return {anchor: title for anchor, (title, here) in present.items() if here}
