"""An audit of somebody else's federation: a run whose rounds are read from a log of updates instead of trained."""

import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedsiege.attacks.membership.base import MembershipAttack, vantages
from fedsiege.data.partitions.owner import Owner
from fedsiege.data.shorthand import source_spec
from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment, Spec, Unique
from fedsiege.experiment.prepare import Prepared, check_attendance, plan_attacks
from fedsiege.experiment.replay import UNREADABLE, attended, listed
from fedsiege.experiment.train import Notes
from fedsiege.promises import check
from fedsiege.registry import build, name_of, names
from fedsiege.update_log import UpdateLog

NAMED = 5
"""So many absences, rounds or clients are named one by one."""

ADVICE = re.compile("; (?:use|set) |: (?:lower|record) ")
"""Where a refusal ends and advice begins that no auditor can follow any more."""

BEHIND: Mapping[str, str] = {"vantage": "server_aggregate_only"}
"""The fields with which an attack looks at the aggregate alone."""


def config_of(log: str | Path, data: str, model: str) -> dict[str, Any]:
    """The config of an audit, as the command line says it.

    `data` and `model` are a name, or a component as YAML or JSON writes it: `{name: ..., field: ...}`. Of an .npz
    file the array `client` says who owns a row. InputError for anything else.
    """
    source = _component(data, "--data")
    if isinstance(source, str):
        source = _with_owners(source_spec(source))
    return {"name": "audit", "updates": str(log), "data": source, "model": _component(model, "--model")}


def _component(text: str, option: str) -> str | dict[str, Any]:
    """A component as the command line says it: plain text is its name."""
    if not text.lstrip().startswith("{"):
        return text
    loader = Unique(text)
    try:
        found = loader.get_single_data()
    except yaml.YAMLError:
        raise InputError(f"{option} {text}: not a YAML mapping") from None
    finally:
        loader.dispose()
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise InputError(f"{option} {text}: expected a name or {{name: ..., field: ...}}")
    return found


def _with_owners(spec: str | dict[str, str]) -> str | dict[str, Any]:
    """The source, which of an .npz file with an array `client` is told to read that too."""
    column = Owner().column
    if isinstance(spec, str) or spec.get("name") != "npz":
        return spec
    path = Path(spec["path"]).expanduser()
    try:
        with zipfile.ZipFile(path) as arrays:
            there = f"{column}.npy" in arrays.namelist()
    except (OSError, zipfile.BadZipFile):
        return spec  # whoever reads it says what is wrong
    return {**spec, "natural": [column]} if there else spec


def completed(experiment: Experiment) -> Experiment:
    """An audit's config with all that its log says and the config does not; any other config as it is.

    From the log come the number of clients, the rounds, and whether only aggregates were observable. Unless the
    config says otherwise, a column of the data says who owns what, and every registered membership attack is scored
    that the log can serve and that trains no federations of its own.
    """
    e = experiment
    if e.updates is None:
        return e
    log, given = UpdateLog.read(e.updates, rows=False), e.model_fields_set
    last = e.rounds if "rounds" in given else max(log.rounds)
    chosen = log.rounds if e.record_rounds is None else e.record_rounds
    rounds = [number for number in chosen if number <= last]
    if not rounds:
        raise InputError(f"rounds: got {e.rounds}; the first round of the log {e.updates} is {min(chosen)}")
    told: dict[str, Any] = {
        "clients": log.clients,
        "secure_aggregation": log.observable == "aggregate",
        "partition": {"name": "owner"},
        "title": f"Audit of {log.folder.resolve().name}",
    }
    changes = {field: value for field, value in told.items() if field not in given}
    made = e.model_copy(update={**changes, "record_rounds": rounds, "rounds": rounds[-1]})
    if "attacks" in given:
        return made
    served = [spec for name in names("membership") if (spec := serving(name, made, log)[0]) is not None]
    return made.model_copy(update={"attacks": served})


def serving(name: str, experiment: Experiment, log: UpdateLog) -> tuple[Spec | None, str]:
    """A registered attack as an audit of this log scores it by itself; None and why where it does not."""
    attack: MembershipAttack = build("membership", name, "attacks")
    if attack.shadows_wanted:
        return None, "shadow federations would train as the config says, not as the clients of the log did"
    if attack.vantage == "malicious_clients":
        return None, "works from compromised clients, and a log names none"
    ways: list[Spec] = [name]
    if experiment.secure_aggregation and BEHIND["vantage"] in vantages(attack):
        ways.append({"name": name, **BEHIND})
    for way in ways:
        alone = experiment.model_copy(update={"attacks": [way]})
        try:
            targets = list(range(log.clients)) if alone.targets == "all" else alone.targets
            listed = targets if isinstance(targets, list) else [targets]
            check_attendance(alone, plan_attacks(alone), listed, attended(log, alone))
        except InputError as error:
            why = ADVICE.split(str(error).removeprefix(f"attack {name}: "))[0]
        else:
            return way, ""
    return None, why


def told(result: Mapping[str, Any], prepared: Prepared, notes: Notes) -> dict[str, Any]:
    """What result.json says of an audit: nobody here aggregated anything, and what is known of the log's limits."""
    if prepared.replay is None:
        return dict(result)
    shown = [one for one in result["components"] if one["kind"] != "aggregator"]
    return {**result, "components": shown, "warnings": [*remarks(prepared, notes), *result["warnings"]]}


def remarks(prepared: Prepared, notes: Notes) -> list[str]:
    """What a reader must know of the log, in sentences."""
    assert prepared.replay is not None
    log, e = prepared.replay.log, prepared.experiment
    by = f", recorded by {log.source}" if log.source else ""
    return [
        f"Nothing was trained: the rounds are those of the log {e.updates}{by}. Who is a member is the auditor's "
        "own word, and what the configuration says of training and aggregation says nothing about them.",
        *_rounds(prepared),
        *_absences(log),
        *_unreadable(notes),
        *_model(prepared),
        *_nobodys(prepared),
        *_unserved(e, log),
        *_promises(log),
    ]


def _rounds(prepared: Prepared) -> list[str]:
    assert prepared.replay is not None
    log, found = prepared.replay.log, list[str]()
    missing = [number for number in log.missing if number not in log.refused]
    if missing:
        found.append(f"The log lacks {_several('round', missing)}.")
    found += [
        f"Round {number} of the log was left out: its {why}." for number, why in list(log.refused.items())[:NAMED]
    ]
    if log.final == "assumed_mean" and prepared.replay.rounds[-1] == log.rounds[-1]:
        found.append(
            f"Nobody saw the model that round {log.rounds[-1]} ended with: it is taken for the weighted mean of "
            "what arrived."
        )
    return found


def _absences(log: UpdateLog) -> list[str]:
    """Whose answers are not in the log, and why: all of them counted, the first few named."""
    if not log.absences:
        return []
    counts = Counter(one.why for one in log.absences)
    named = "; ".join(
        f"round {one.round}, client {one.client}: {one.why}" + (f" ({one.said})" if one.said else "")
        for one in sorted(log.absences, key=lambda one: (one.round, one.client))[:NAMED]
    )
    more = len(log.absences) - NAMED
    counted = ", ".join(f"{n} {why}" for why, n in sorted(counts.items()))
    return [f"Answers that are not in the log: {counted}. {named}{f'; and {more} more' if more > 0 else ''}."]


def _unreadable(notes: Notes) -> list[str]:
    n = int(notes.counters.get("server", {}).get(UNREADABLE, 0))
    return [f"Answers that were left out, as their model's loss on the candidates is not finite: {n}."] if n else []


def _model(prepared: Prepared) -> list[str]:
    assert prepared.replay is not None
    absent = prepared.replay.fit.absent
    if not absent:
        return []
    return [
        f"The log holds no {_several('buffer', absent)} of the model: they stay as the model was built with them, "
        "and losses and accuracy are those of such a model."
    ]


def _nobodys(prepared: Prepared) -> list[str]:
    without = [client for client, rows in enumerate(prepared.shards) if not len(rows)]
    if not without:
        return []
    return [f"The data has no training examples of {_several('client', without)}: nobody asks about theirs."]


def _unserved(experiment: Experiment, log: UpdateLog) -> list[str]:
    """Which registered attacks this audit does not score, and why, where it is not by choice."""
    scored = {name_of(build("membership", spec, "attacks")) for spec in experiment.attacks}
    reasons = dict[str, list[str]]()
    for name in names("membership"):
        spec, why = serving(name, experiment, log)
        if spec is not None and name not in scored:
            return []  # somebody made a choice
        if name not in scored:
            reasons.setdefault(why, []).append(name)
    return [f"Not scored: {', '.join(left)}: {why}." for why, left in reasons.items()]


def _promises(log: UpdateLog) -> list[str]:
    """What the received updates say about the privacy mods that clients declared."""
    if not log.declared:
        return []
    try:
        return [f"{verdict.sentence}." for verdict in check(log)]
    except InputError as error:
        return [f"What clients declared cannot be checked: {error}."]


def _several(what: str, items: Sequence[object]) -> str:
    """The first few of them by name, and how many more there are."""
    return f"{what}{'s' * (len(items) > 1)} {listed(items, NAMED)}"
