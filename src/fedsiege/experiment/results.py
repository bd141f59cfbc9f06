"""From scores to figures: result.json and curves.json as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fedsiege.attacks.coalitions import detect
from fedsiege.data.candidates import MEMBERS, Candidates, anybodys
from fedsiege.defences.client.base import is_neutral
from fedsiege.defences.coalition.base import Coalition
from fedsiege.experiment.config import Experiment, Paper
from fedsiege.experiment.decisions import decisions
from fedsiege.experiment.integrity import in_use, poisoning
from fedsiege.experiment.prepare import Planned, Prepared, at_round, weights_of
from fedsiege.experiment.published import asked_rows, attack_row, changed_by, metric_of, verdict
from fedsiege.experiment.remarks import (
    absent_answers,
    cautions,
    doubts,
    forgotten,
    left_out,
    threat_model,
    told_updates,
    upper_bounds,
    warnings_of,
)
from fedsiege.experiment.scores import Pair, Scored
from fedsiege.experiment.siege import server_doubts
from fedsiege.experiment.train import Notes
from fedsiege.federation.adversary import ADVERSARY
from fedsiege.federation.state import State
from fedsiege.metrics import Audit, audit, null_test, over_targets
from fedsiege.metrics.null import SIDE
from fedsiege.records import Counters, Ids
from fedsiege.registry import name_of
from fedsiege.trace import Trace
from fedsiege.view import SINGLE_UPDATES, View

KINDS = ("all", "ifl", "ofl")
CURVE_FPR = 0.001


def attack_rows(planned: Planned, scored: list[Scored], owned: Sequence[Ids] = ()) -> list[dict[str, Any]]:
    """One attack's figures: against each kind of non-members, for each target, pooled, worst, and any client.

    Args:
        planned: the attack.
        scored: the scores of all attacks.
        owned: each client's training examples [K]; without them there are no figures of coalitions as one.

    """
    own = [one for one in scored if one.label == planned.label]
    most = max(one.rounds for one in own)
    about = {
        "name": name_of(planned.attack),
        "attack": planned.label,
        "title": planned.attack.heading,
        "adapted": planned.attack.adapted,
        "upper_bound": planned.attack.truth_wanted,
        "vantage": planned.vantage,
    }
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        judged = [(one, one.against(kind)) for one in own]
        pairs = [(one, pair) for one, pair in judged if all(map(len, pair))]
        if not pairs:
            continue
        found = over_targets([pair for _, pair in pairs], distinct=distinct([one for one, _ in pairs], kind))
        rows += [
            {**about, "rounds_used": one.rounds, "target": one.audit.target, "against": kind, **figures.as_dict()}
            for (one, _), figures in zip(pairs, found.targets, strict=True)
        ]
        rows.append({**about, "rounds_used": most, "target": "pooled", "against": kind, **found.as_dict()})
        worst = pairs[found.worst][0]
        rows.append(
            {
                **about,
                "rounds_used": worst.rounds,
                "target": "worst",
                "worst_target": worst.audit.target,
                "against": kind,
                **found.targets[found.worst].as_dict(),
            }
        )
    null = any(str(group).startswith("pseudo") for group in own[0].audit.groups)
    # A null test asks nothing that has a true answer. An attack that is told the truth, target by target, makes
    # scores that are of one target each, and cannot be ranked together.
    if not null and not planned.attack.truth_wanted:
        rows += [{**about, "rounds_used": most, **found} for found in of_several(planned, own, owned)]
    return rows


def of_several(planned: Planned, own: list[Scored], owned: Sequence[Ids]) -> list[dict[str, Any]]:
    """Figures of an adversary that cannot tell some clients apart: whether data is anybody's, or a coalition's."""
    rows: list[dict[str, Any]] = []
    if planned.vantage not in SINGLE_UPDATES:
        anyone = any_client(own)
        if all(map(len, anyone)):
            rows.append({"target": "any", "against": "ofl", **audit(*anyone).as_dict()})
    for kind in KINDS if owned else ():
        found = [in_coalition(own, members, owned, kind) for members in planned.coalitions]
        units = [(pair, ids) for pair, ids in found if all(map(len, pair))]
        if units:
            different = len(np.unique(np.concatenate([ids for _, ids in units])))
            figures = over_targets([pair for pair, _ in units], distinct=different)
            rows.append({"target": "coalition", "against": kind, **figures.as_dict()})
    return rows


def distinct(scored: list[Scored], kind: str) -> int:
    """How many different non-members several targets were judged on."""
    return len(np.unique(np.concatenate([one.nonmembers(kind) for one in scored])))


def any_client(scored: list[Scored]) -> Pair:
    """Scores of everybody's examples and of nobody's: what an adversary without single updates can tell apart."""
    owners = anybodys([one.audit for one in scored])
    found = {i: float(value) for one in scored for i, value in zip(one.audit.ids.tolist(), one.values, strict=True)}
    owned = np.array([owners[identity] for identity in found], dtype=bool)
    values = np.array(list(found.values()))
    return values[owned], values[~owned]


def in_coalition(
    scored: list[Scored], members: frozenset[int], owned: Sequence[Ids], kind: str
) -> tuple[Pair, Ids]:
    """Scores of a coalition's examples and of all others, each example once, and the ids of the latter.

    To a server that sees the coalition as one client, whose of its members an example is makes no difference: the
    examples that its audited members were asked about are its own if any member trains on them. Members that took
    part in unlike rounds may score an example differently; its score is then their mean.
    """
    found: dict[str, list[float]] = {}
    outside: set[str] = set()
    for one in scored:
        if one.audit.target in members:
            for identity, group, value in zip(one.audit.ids.tolist(), one.audit.groups, one.values, strict=True):
                found.setdefault(identity, []).append(float(value))
                outside |= {identity} if str(group).endswith("ofl") else set()
    ids: Ids = np.array(list(found), dtype=np.str_)
    values = np.array([np.mean(values) for values in found.values()], dtype=np.float64)
    inside = np.isin(ids, np.concatenate([owned[member] for member in sorted(members)]))
    nobodys = np.isin(ids, sorted(outside))
    others = {"all": ~inside, "ifl": ~inside & ~nobodys, "ofl": ~inside & nobodys}[kind]
    return (values[inside], values[others]), ids[others]


def null_rows(attacks: list[Planned], scored: list[Scored]) -> list[dict[str, Any]]:
    """The verdict of the null test for every attack, against each kind of non-members."""
    rows = []
    for planned in attacks:
        own = [one for one in scored if one.label == planned.label]
        for kind in KINDS:
            pairs = [one.against(kind) for one in own]
            # Against one kind alone there may be too few for a verdict; against all there always are enough.
            if kind == "all" or all(len(side) >= SIDE for pair in pairs for side in pair):
                rows.append({"attack": planned.label, "against": kind, **null_test(pairs).as_dict()})
    return rows


def curves(prepared: Prepared, scored: list[Scored], trace: Trace) -> dict[str, Any]:
    """ROC curves of the pooled scores, and TPR at 0.1 % FPR of each single-round attack at every recorded round."""
    roc, rounds = [], []
    for planned in prepared.attacks:
        about = {"attack": planned.label, "title": planned.attack.heading}
        own = [one.against("all") for one in scored if one.label == planned.label]
        pooled = over_targets(own).pooled
        fpr, tpr = pooled.roc.thin()
        roc.append({**about, "against": "all", "target": "pooled", "fpr": fpr.tolist(), "tpr": tpr.tolist()})
        if planned.attack.multi_round:
            ends = [trace.rounds[0], trace.rounds[-1]]
            rounds.append(_line(about, "multi", dict.fromkeys(ends, pooled)))
        elif follows_rounds(planned) and prepared.experiment.candidates.compat == "none":
            rounds.append(_line(about, "single", by_round(planned, prepared.candidates, trace)))
    return {"roc": roc, "rounds": rounds}


def follows_rounds(planned: Planned) -> bool:
    """Whether a single-round attack can be moved from round to round: what it wants besides is of one round."""
    attack = planned.attack
    wants = attack.shadows_wanted or attack.population_wanted or attack.truth_wanted
    return hasattr(attack, "round") and not wants


def by_round(planned: Planned, candidates: Candidates, trace: Trace) -> dict[int, Audit]:
    """A single-round attack at every recorded round that each target took part in, all targets pooled."""
    place = {identity: row for row, identity in enumerate(trace.ids.tolist())}
    found: dict[int, Audit] = {}
    for t, number in enumerate(trace.rounds):
        attack = at_round(planned.attack, number)
        view = View(trace, planned.vantage)
        pairs = []
        for one in candidates.audits:
            if view.sees_updates and not trace.present(t)[one.target]:
                continue
            values = attack.score(view, one.target)[[place[i] for i in one.ids.tolist()]]
            pairs.append(Scored(planned.label, one, values, 1).against("all"))
        if pairs:
            found[number] = over_targets(pairs).pooled
    return found


def _line(about: Mapping[str, Any], kind: str, audits: Mapping[int, Audit]) -> dict[str, Any]:
    tprs = [one.tpr_at_fpr[CURVE_FPR] for one in audits.values()]
    return {
        **about,
        "kind": kind,
        "round": list(audits),
        "tpr": [one.value for one in tprs],
        "low": [one.low for one in tprs],
        "high": [one.high for one in tprs],
        "fpr": CURVE_FPR,
    }


def components(prepared: Prepared, counted: Mapping[str, Counters]) -> list[dict[str, Any]]:
    """What every component did; one that never acted is flagged by the report."""

    def entry(name: str, kind: str, label: str, *proofs: str) -> dict[str, Any]:
        counters = dict(counted.get(label, {}))
        acted = any(counters.get(proof, 0) > 0 for proof in proofs)
        return {"name": name, "kind": kind, "label": label, "acted": acted, "counters": counters}

    defences = []
    for one in prepared.defences:
        kind = "coalition" if isinstance(one.defence, Coalition) else "client_defence"
        row = entry(name_of(one.defence), kind, one.label, one.defence.proof)
        defences.append({**row, "counters": one.defence.told(row["counters"])})
    for guarding in prepared.server_defences:
        defence = guarding.defence
        # What a defence did to the combined update and to the model is counted by the server.
        proofs = (defence.proof, "updates", "models")
        defences.append(entry(name_of(defence), "server_defence", guarding.label, *proofs))
    if prepared.campaign is not None:
        poisoner = prepared.campaign.poisoner
        row = entry(name_of(poisoner), "poisoning", ADVERSARY, poisoner.proof)
        # The package's own count what they did; a user's class that does not may have acted all the same.
        users = not type(poisoner).__module__.startswith("fedsiege.")
        if users and row["counters"].get("attackers", 0) > 0 and poisoner.proof not in row["counters"]:
            row["unproven"] = poisoner.proof
        row = {**row, "label": prepared.campaign.label, "counters": poisoner.told(row["counters"])}
        defences.append(row)
    return [
        *defences,
        entry(name_of(prepared.aggregator), "aggregator", "aggregator", "rows"),
        entry("screening", "server", "server", "answers"),
        *(entry(name_of(p.attack), "membership", p.label, "rounds_used") for p in prepared.attacks),
    ]


def countermeasures(prepared: Prepared, trace: Trace) -> list[dict[str, Any]]:
    """What each countermeasure did: of how many recorded uploads it changed how many, and what it took off these.

    The latter is the root mean square over the entries that it changed, and over the uploads.
    """
    found = []
    for name in told_updates(prepared.attacks):
        told = trace.variant(name)
        there = [told.taken_off(t)[told.present(t)] for t in range(len(told.rounds)) if told.present(t).any()]
        off = np.concatenate([np.zeros(0), *there])
        changed = off[off > 0]
        counters: Counters = {"uploads": float(len(off)), "changed": float(len(changed))}
        if len(changed):
            counters["taken_off_rms"] = float(np.sqrt(np.mean(changed**2)))
        about = {"name": name, "kind": "countermeasure", "label": f"updates: {name}"}
        found.append({**about, "acted": len(changed) > 0, "counters": counters})
    return found


def privacy(prepared: Prepared, counted: Mapping[str, Counters]) -> list[dict[str, Any]]:
    """The differential-privacy guarantees that the run's defences spent.

    Compromised clients add no noise in a round of attack, so that with any of them a guarantee that rests on
    everybody's noise does not hold.
    """
    attacked = prepared.campaign is not None
    return [
        {"label": one.label, **asdict(guarantee)}
        for one in prepared.defences
        for guarantee in one.defence.guarantees(counted.get(one.label, {}), prepared.ground(one))
        if not (attacked and guarantee.against == "aggregate")
    ]


def paper_rows(
    paper: Paper, rows: list[dict[str, Any]], experiment: Experiment, probed: bool = False
) -> dict[str, Any]:
    """The published figures beside ours, of the rows that `asked_rows` picks."""
    pooled = asked_rows(rows, probed)
    changed = changed_by(experiment.profile, experiment.changed)
    figures = []
    for figure in paper.figures:
        row = attack_row(pooled, figure.attack)
        estimate = None if row is None else metric_of(row, figure.metric)
        margin = 2 * (figure.spread or 0.0)
        figures.append(
            {
                "attack": figure.attack,
                "metric": figure.metric,
                "published": figure.value,
                "spread": figure.spread,
                "ours": estimate,
                "verdict": verdict(figure.value, margin, estimate, experiment.candidates.null, changed),
            }
        )
    return {**paper.model_dump(exclude={"figures"}), "figures": figures}


def coalitions(prepared: Prepared, trace: Trace) -> dict[str, Any] | None:
    """Who defended together, and whom a server takes for a coalition; None where it has no tails to look at."""
    if prepared.experiment.secure_aggregation or not trace.tail:
        return None
    found = detect(trace, weights_of(prepared.aggregator, prepared.shards, prepared.server_defences))
    return {
        "members": {
            one.label: sorted(one.clients)
            for one in prepared.defences
            if isinstance(one.defence, Coalition) and one.defence.shares and not is_neutral(one.defence)
        },
        "detected": [asdict(one) for one in found.coalitions],
        "unbalanced": list(found.unbalanced),
    }


def assemble(
    prepared: Prepared,
    state: State,
    notes: Notes,
    scored: list[Scored],
    counters: Mapping[str, Counters],
    trace: Trace | None,
) -> dict[str, Any]:
    """result.json, but for cost and provenance; without a membership attack there is no trace."""
    e = prepared.experiment
    frozen = e.candidates.compat == "none"  # else a non-member is another example in every round
    owned = [prepared.data.train.ids[shard] for shard in prepared.shards] if frozen else []
    rows = [row for planned in prepared.attacks for row in attack_rows(planned, scored, owned)]
    countered = [] if trace is None else countermeasures(prepared, trace)
    probed = prepared.campaign is not None and prepared.campaign.poisoner.probes
    siege = poisoning(prepared, notes.history, notes.submitted, notes.detection)
    return {
        "schema": 1,
        "experiment": {
            "name": e.name,
            "title": e.title or e.name or "run",
            "description": e.description,
            "profile": e.profile,
            "config": e.model_dump(mode="json"),
        },
        "task": task_part(prepared, state, notes),
        "threat_model": threat_model(e, prepared.attacks, prepared.campaign),
        "data": data_part(prepared),
        "attacks": rows,
        "null_test": null_rows(prepared.attacks, scored) if e.candidates.null else None,
        "components": [*components(prepared, {**notes.counters, **counters}), *countered],
        "privacy": privacy(prepared, notes.counters),
        "coalitions": None if trace is None else coalitions(prepared, trace),
        "poisoning": None
        if siege is None
        else {
            **siege,
            "defended_use": in_use(prepared, state.models[0]),
            "decisions": None if trace is None else decisions(prepared, trace),
        },
        "paper": paper_rows(e.paper, rows, e, probed) if e.paper else None,
        "warnings": [
            *cautions(prepared, notes.counters),
            *absent_answers(notes.counters, notes.absences),
            *forgotten(notes.counters),
            *server_doubts(prepared, notes.counters, state.number),
            *doubts(prepared, countered),
            *upper_bounds(prepared),
            *left_out(prepared, scored),
            *warnings_of(rows, e, probed),
        ],
    }


def task_part(prepared: Prepared, state: State, notes: Notes) -> dict[str, Any]:
    """How well the model works, and who had how much data."""
    task, data = prepared.task, prepared.data
    owned = data.train.take(np.concatenate(prepared.shards)).to(task.device)
    last = notes.history[-1]
    return {
        "accuracy": last["accuracy"],
        "loss": last["loss"],
        "train_accuracy": task.measure(state.models[0], owned)[0],
        "classes": len(data.classes),
        "class_names": list(data.classes),
        "parameters": task.layout.trained,
        "history": notes.history,
        "clients": [
            {
                "client": number,
                "examples": len(rows),
                "classes": len(data.train.y[rows].unique()),
                "defences": [one.label for one in prepared.defences if number in one.clients],
                "compromised": prepared.campaign is not None and number in prepared.campaign.compromised,
            }
            for number, rows in enumerate(prepared.shards)
        ],
    }


def data_part(prepared: Prepared) -> dict[str, Any]:
    """Which data, and which candidates were drawn from it."""
    data, spec, audits = prepared.data, prepared.experiment.candidates, prepared.candidates.audits
    groups = np.concatenate([np.zeros(0, dtype=np.str_), *(audit.groups for audit in audits)])
    nobodys = len(prepared.candidates.population)
    return {
        "origin": data.origin,
        "fingerprint": prepared.fingerprint,
        "train": len(data.train),
        "heldout": len(data.heldout),
        "duplicates": dict(data.duplicates),
        "candidates": {
            "members": int(np.isin(groups, MEMBERS).sum()),
            "ifl": int((groups == "ifl").sum()),
            "ofl": int((groups == "ofl").sum()),
            "union": len(prepared.candidates.examples) - nobodys,
            "targets": prepared.targets,
            "null": spec.null,
            "compat": spec.compat,
            **({"population": nobodys} if nobodys else {}),
        },
    }
