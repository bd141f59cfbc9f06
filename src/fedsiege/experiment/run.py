"""One run, stage by stage: prepare, train and record, score, judge, report. Each stage leaves files."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedsiege import report
from fedsiege.errors import InputError
from fedsiege.experiment import audit as auditing
from fedsiege.experiment import folder as run_folder
from fedsiege.experiment.config import Experiment, load
from fedsiege.experiment.engines import engine_of
from fedsiege.experiment.prepare import Loaded, Planned, Prepared, loaded, prepare
from fedsiege.experiment.progress import Bars
from fedsiege.experiment.provenance import peak_memory, provenance
from fedsiege.experiment.remarks import destroyed
from fedsiege.experiment.results import assemble, curves
from fedsiege.experiment.scores import score_all, served, write_candidates, write_scores
from fedsiege.experiment.shadows import plan_shadows
from fedsiege.experiment.start import given, started
from fedsiege.experiment.train import train_and_record
from fedsiege.federation.rounds import Engine
from fedsiege.files import write_json
from fedsiege.report.result import Result
from fedsiege.shipped import find
from fedsiege.trace import Trace
from fedsiege.view import SINGLE_UPDATES


def run(
    config: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
    load_data: Callable[[Experiment], Loaded] = loaded,
    engine: Engine | None = None,
) -> Result:
    """Train the federation that a config describes, record the evidence, attack it, and write the report.

    Args:
        config: a path, the name of a shipped experiment, or a mapping.
        out: the run folder; the config's `out`, else `runs/<name>`, when left out.
        overrides: changes like `training.lr=0.05`.
        resume: go on in a folder that already holds this run; a finished one is left as it is.
        progress: show bars.
        load_data: what gives the data; a sweep's worker keeps what it has read.
        engine: what gets the clients trained, where it is running already; None: the config's, from here.

    """
    experiment = auditing.completed(load(config, overrides))
    where = "" if isinstance(config, Mapping) else f"{find(config)}{' (or --set)' if overrides else ''}: "
    place = Path(out or experiment.out or Path("runs") / (experiment.name or "run"))
    with run_folder.opened(place, experiment, resume), torch_threads(experiment.threads), Bars(progress) as bars:
        if not run_folder.finished(place):
            if not (place / run_folder.RESULT).is_file():
                carry_out(experiment, place, bars, load_data, where, engine)
            report.write(place)
    return Result.read(place)


def audit(
    log: str | Path,
    data: str,
    model: str,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
) -> Result:
    """Attack a federation that was recorded elsewhere, and write the report: nothing is trained.

    Args:
        log: the folder of a log of updates.
        data: whose examples are whose: a source's name, a path, or `{name: ..., field: ...}` as YAML.
        model: the recorded model: a registered name, `package.module:function`, or `{name: ..., field: ...}`.
        out, overrides, resume, progress: as for `run`; overrides change any other field.

    """
    return run(auditing.config_of(log, data, model), out, overrides=overrides, resume=resume, progress=progress)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Give torch so many threads for a while; null leaves the choice to it."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def carry_out(
    experiment: Experiment,
    place: Path,
    bars: Bars,
    load_data: Callable[[Experiment], Loaded],
    where: str,
    engine: Engine | None = None,
) -> None:
    """All stages but the report; what cannot run is refused with `where` before it, the file it was asked in."""
    began = time.monotonic()
    with bars.waiting("data"):
        try:
            prepared = given(prepare(experiment, load_data))
            shadows = plan_shadows(prepared)
        except InputError as error:
            raise type(error)(f"{where}{error}") from None
        made_with = provenance(experiment, prepared.task.device)
        run_folder.begin(place, experiment)
        if prepared.attacks:
            write_candidates(place / run_folder.CANDIDATES, prepared)
    if shadows.runs:
        bars.say(shadows.announced)
    prepared = started(prepared, bars)
    with engine_of(experiment, bars) if engine is None else nullcontext(engine) as clients:
        state, notes = train_and_record(prepared, place, bars, clients)
    trace = Trace(place / run_folder.TRACE) if prepared.attacks else None
    ended = list[str]()
    if notes.destroyed is not None:
        left = surviving(prepared, trace)
        ended = destroyed(prepared, left, notes.destroyed, notes.destruction)
        prepared, shadows, trace = left, plan_shadows(left), trace if left.attacks else None
    since = time.monotonic()
    trained = shadows.train(bars)
    shadow_seconds = time.monotonic() - since
    since = time.monotonic()
    with bars.counting("attacks", len(prepared.attacks) * len(prepared.candidates.audits)) as step:
        scored, counters = ([], {}) if trace is None else score_all(prepared, trace, step, shadows.runs)
        if scored:
            write_scores(place / run_folder.SCORES, scored)
    attack_seconds = time.monotonic() - since
    with bars.waiting("figures"):
        found = {"roc": [], "rounds": []} if trace is None else curves(prepared, scored, trace)
        write_json(place / run_folder.CURVES, found)
        result = assemble(prepared, state, notes, scored, counters, trace)
        result["data"] |= {"shadows": shadows.described(trained, shadow_seconds)}
        result["warnings"] = [*ended, *result["warnings"], *shadows.cautions]
        result = auditing.told(result, prepared, notes)
    cost = {
        "wall_seconds": time.monotonic() - began,
        "train_seconds": notes.train_seconds,
        "crafting_seconds": notes.crafting_seconds,
        "combining_seconds": notes.combining_seconds,
        "evidence_seconds": notes.evidence_seconds,
        "attack_seconds": attack_seconds,
        "peak_memory_bytes": peak_memory(),
        "trace_bytes": notes.trace_bytes,
    }
    write_json(place / run_folder.RESULT, {**result, "cost": cost, "provenance": made_with})


def surviving(prepared: Prepared, trace: Trace | None) -> Prepared:
    """The run with those membership attacks alone that the rounds before the end have enough evidence for.

    Shadow federations last as long as the run was to: attacks that want some are none of them.
    """
    left = [] if trace is None else [one for one in prepared.attacks if served_by_rest(one, prepared, trace)]
    return replace(prepared, attacks=left, auxiliary=None)


def served_by_rest(planned: Planned, prepared: Prepared, trace: Trace) -> bool:
    """Whether the rounds that were recorded are enough for an attack on any target."""
    attack = planned.attack
    chosen = getattr(attack, "round", "last")
    if attack.shadows_wanted or len(trace.rounds) < attack.min_rounds:
        return False
    if planned.vantage in SINGLE_UPDATES:
        return any(served(planned, target, trace) for target in prepared.targets)
    return bool(trace.rounds) and (chosen == "last" or chosen in trace.rounds)
