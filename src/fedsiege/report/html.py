"""report.html: one self-contained page that works offline, prints well and runs no script but its own.

The page's policy (CSP) names the SHA-256 of its two scripts, so a script that came in with the data could not run
even if it were not escaped, and nothing can be fetched.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment
from markupsafe import Markup

from fedsiege.files import write_bytes
from fedsiege.report import findings
from fedsiege.report import page as pages
from fedsiege.report.charts import chart_data, embedded
from fedsiege.report.finished import Finished
from fedsiege.report.poisoning import decided, rows
from fedsiege.report.poisoning import findings as poisoning
from fedsiege.report.poisoning.glossary import DECIDED, HIJACK
from fedsiege.report.poisoning.series import LINED, attacked_rounds, series
from fedsiege.report.schema import Cost
from fedsiege.report.tiles import tiles
from fedsiege.report.words import duration, size

HIJACKED, VISIBLE = "Can the model be hijacked?", "Does poisoning make membership visible?"
REJECTED = "Does the server reject honest clients?"
CANDIDATES = {
    "members": "Members",
    "ifl": "Other clients’ examples (IFL)",
    "ofl": "Nobody’s examples (OFL)",
    "union": "Distinct examples scored",
    "targets": "Audited clients",
    "null": "Null test",
    "compat": "Compatibility",
}
DUPLICATES = {
    "train_repeated": "repeated in the training data",
    "heldout_in_train": "held out but also in the training data",
    "heldout_repeated": "repeated in the held-out data",
}
GLOSSARY = {
    "Member": "An example that the audited client trained on. A non-member is one that it did not train on.",
    "IFL": "In the federation: a non-member that another client trained on. An attack has to tell whose it is.",
    "OFL": "Outside the federation: a non-member that nobody trained on.",
    "TPR at an FPR": "True-positive rate at a false-positive rate: the share of members that an attack recognises "
    "when its threshold accuses at most that share of the non-members falsely. At a low FPR it says what an "
    "adversary can be sure of.",
    "ROC": "The TPR at every FPR. On logarithmic axes the low rates, where accusations are sure, can be seen.",
    "AUC": "Area under the ROC: how often a random member scores higher than a random non-member. 0.5 is guessing, "
    "1 is perfect. It is an average and can hide that a few members are recognised with certainty.",
    "Interval": "The 95 % confidence interval: Clopper–Pearson’s for a TPR, DeLong’s for an AUC. It covers the "
    "choice of candidates (for the AUC of several clients also the choice of clients), not another training run.",
    "Pooled, mean, worst": "All audited clients’ scores taken as one set with one threshold; the plain mean of the "
    "clients’ own figures; the client that leaks most.",
    "Any, coalition": "Where an adversary cannot tell clients apart: was the example in anybody’s data, or in that "
    "of a coalition, which is taken for one client.",
    "Upper bound": "No attack, for it is told the truth about half of the candidates and judged on the rest. It "
    "bounds what attacks of its kind can find, and is never the best of them.",
}


def write_html(run: Finished) -> Path:
    """Write report.html into the run's folder; return its path."""
    path = run.folder / "report.html"
    write_bytes(path, page(run).encode())
    return path


def page(run: Finished) -> str:
    """The whole page."""
    library, script = pages.library(), _templates().get_template("report.js").render()
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            **_context(run),
            sections=_sections(run),
            series=series,
            marks=attacked_rounds(run.report.task.history, run.poisoning),
            lined=LINED,
            policy=pages.policy(library, script),
            library=Markup(library),
            script=Markup(script),
            chart_data=embedded(chart_data(run)),
            config=yaml.safe_dump(run.report.experiment.config, sort_keys=False, allow_unicode=True, width=100),
            frozen=findings.frozen(run),
            candidates=_candidates(run.report.data.candidates),
            duplicates={DUPLICATES.get(key, key): value for key, value in run.report.data.duplicates.items()},
            cost=_cost(run.report.cost),
            glossary=_glossary(run),
        )
    )


def fragment(run: Finished) -> str:
    """Headline and table, for a notebook."""
    return _templates().get_template("notebook.html.j2").render(**_context(run))


@cache
def _templates() -> Environment:
    made = pages.environment(findings)
    made.globals.update(siege=poisoning, rows_of=rows, decided=decided)
    return made


def _context(run: Finished) -> dict[str, Any]:
    rows = run.rows()
    return {
        "run": run,
        "report": run.report,
        "headlines": [(one, tiles(run, one.about)) for one in findings.headlines(run)],
        "rows": rows,
        "best": run.best(rows),
        "pooled": findings.all_pooled(run),
    }


def _sections(run: Finished) -> dict[str, str]:
    """Anchor -> title of the sections that this run has something to say in, in the page's order."""
    several = len(run.targets) > 1
    present = {
        "roc": ("How far the attacks see", run.audited and bool(run.curves.roc)),
        "figures": ("The figures", run.audited),
        "clients": ("Client by client", several),
        "rounds": ("Over the rounds", run.audited and bool(run.curves.rounds)),
        "hijack": (_besieged(run), run.poisoning is not None),
        "accuracy": ("What was learnt", True),
        "null": ("Null test", run.report.null_test is not None),
        "paper": ("Beside the paper", run.report.paper is not None),
        "threat": ("Who the adversary is", True),
        "components": ("What each component did", True),
        "data": ("Data", True),
        "cost": ("Cost", True),
        "provenance": ("Provenance", True),
        "config": ("Configuration", True),
        "glossary": ("Glossary", bool(_glossary(run))),
    }
    return {anchor: title for anchor, (title, here) in present.items() if here}


def _glossary(run: Finished) -> dict[str, str]:
    """The words that the page's sections use."""
    decisions = DECIDED if run.poisoning and run.poisoning.decisions else {}
    return {**(GLOSSARY if run.audited else {}), **decisions, **(HIJACK if run.poisoning else {})}


def _besieged(run: Finished) -> str:
    """The title of the section on poisoning."""
    if not run.besieged:
        return REJECTED
    return VISIBLE if run.poisoning and run.poisoning.probing else HIJACKED


def _cost(cost: Cost) -> dict[str, str]:
    """Where the time went and what was taken; parts of training that were not measured apart are left out."""
    parts = {"Attackers’ answers": cost.crafting_seconds, "Combining answers": cost.combining_seconds}
    return {
        "Wall time": duration(cost.wall_seconds),
        "Training": duration(cost.train_seconds),
        **{f"{name} (of training)": duration(value) for name, value in parts.items() if value is not None},
        "Evidence": duration(cost.evidence_seconds),
        "Attacks": duration(cost.attack_seconds),
        "Peak memory": size(cost.peak_memory_bytes),
        "Trace on disk": size(cost.trace_bytes),
    }


def _candidates(given: Mapping[str, Any]) -> dict[str, str]:
    """What the candidates are; the switches that are off say nothing."""
    said = {
        key: value
        for key, value in given.items()
        if not (key in ("null", "compat") and value in (False, None, "none"))
    }
    return {CANDIDATES.get(key, key): _said(value) for key, value in said.items()}


def _said(value: Any) -> str:
    if value is None:
        return "all"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
