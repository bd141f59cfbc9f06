"""The federation's rounds, carried out: trained, recorded, measured, and checkpointed."""

import math
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from fedsiege.attacks.membership.base import products, recordings
from fedsiege.countermeasures import countermeasures, tail_of
from fedsiege.defences.server.base import without
from fedsiege.errors import InputError, TrainingDivergedError
from fedsiege.experiment.engines import LOCAL
from fedsiege.experiment.folder import CHECKPOINT, TRACE
from fedsiege.experiment.integrity import Watch
from fedsiege.experiment.prepare import Prepared
from fedsiege.experiment.progress import Bars
from fedsiege.experiment.replay import Replay, record_logged
from fedsiege.experiment.start import first_model
from fedsiege.experiment.wreck import wreck
from fedsiege.federation import checkpoint
from fedsiege.federation.adversary import ADVERSARY
from fedsiege.federation.checkpoint import Checkpoint
from fedsiege.federation.rounds import Engine, Federation, store
from fedsiege.federation.state import ModelLostError, Models, State
from fedsiege.recorder import Recorder
from fedsiege.records import Counters, Round
from fedsiege.trace import path_of, recorded_in

NOTED = 100
"""So many absences are noted one by one; counted are all."""


@dataclass(slots=True)
class Notes:
    """What was noted on the way: accuracy by round, what components did, seconds, bytes. Kept in the checkpoint.

    `fingerprint` is that of the data, so that a run does not go on with other data than it began with. `submitted`
    is what attackers sent, by round, `detection` what the server made of their and of honest answers, in sums.
    `destroyed` is the round in which attackers destroyed the model, which ends the run, and `destruction` how.
    `absences` are the first invited clients whose answers were not there, by round, with the reason.
    """

    fingerprint: str
    history: list[dict[str, Any]] = field(default_factory=list)
    counters: dict[str, Counters] = field(default_factory=dict)
    train_seconds: float = 0.0
    evidence_seconds: float = 0.0
    trace_bytes: int = 0
    submitted: list[dict[str, Any]] = field(default_factory=list)
    detection: dict[str, Counters] = field(default_factory=dict)
    crafting_seconds: float = 0.0
    combining_seconds: float = 0.0
    destroyed: int | None = None
    destruction: str = ""
    absences: list[dict[str, Any]] = field(default_factory=list)

    def verdicts(self, done: Round) -> None:
        """Add what the server made of the answers of attackers and of honest clients."""
        for client, fate in done.fates.items():
            side = self.detection.setdefault("attackers" if client in done.attackers else "honest", {})
            for name, n in (
                ("answers", 1),
                ("unusable", not fate.usable),
                ("rejected", fate.usable and fate.kept == 0),
                ("kept", fate.kept),
                ("scale", fate.usable and fate.scale),
            ):
                side[name] = side.get(name, 0) + float(n)

    def entered(self, done: Round | None, number: int) -> bool:
        """Whether attackers' answers had a say in round `number` or the one before: older ones are not to blame."""
        now = [] if done is None else [done.fates[client].kept for client in done.attackers]
        before = [float(one["kept"]) for one in self.submitted if one["round"] >= number - 1]
        return any(kept > 0 for kept in (*now, *before))

    def count(self, done: Round) -> None:
        """Add a round's counters to the totals."""
        for label, counters in done.counters.items():
            total = self.counters.setdefault(label, {})
            for name, n in counters.items():
                total[name] = total.get(name, 0) + n


def rounds_of(prepared: Prepared, place: Path, engine: Engine) -> Federation | Replay:
    """Where the rounds come from: a log that is audited, or a federation that an engine trains."""
    e = prepared.experiment
    if prepared.replay is not None:
        return replace(prepared.replay, spill=place)
    return prepared.federation(
        engine=engine, keeps=lambda n: e.recorded(n) and not e.secure_aggregation, spill=place
    )


def train_and_record(prepared: Prepared, place: Path, bars: Bars, engine: Engine = LOCAL) -> tuple[State, Notes]:
    """Train, by an engine, or read a log's rounds: from the last checkpoint, or from the start, to the last round.

    When training diverges, the state after the last good round is kept as the checkpoint. Where attackers had a say
    before, that is what they achieved, and the run ends there.
    """
    state, notes = begin(prepared, place)
    if notes.destroyed is not None:
        return state, notes
    e = prepared.experiment
    recorder = recorder_of(prepared, place / TRACE)
    if e.attacks:
        recorder.begin()
    federation = rounds_of(prepared, place, engine)
    watch = Watch.over(prepared)
    if state.number == 0 and watch.begins:
        notes.history.append({"round": 0, **watch.model(state.models[0])})
    since = time.monotonic()
    with bars.counting("rounds", e.rounds, state.number) as step:
        try:
            for done in federation.run(state):
                trained = time.monotonic()
                measured = measure(prepared, watch, done)
                looked = time.monotonic()
                if e.recorded(done.number):
                    step(0, f"evidence of round {done.number}")
                    notes.trace_bytes += record(recorder, done, prepared.replay is not None)
                notes.evidence_seconds += time.monotonic() - looked
                notes.train_seconds += trained - since
                notes.history += measured
                note(notes, watch, done)
                before, state = state.number, state.then(done, e.oldest)
                if done.number % e.checkpoint_every == 0 or done.number == e.rounds:
                    checkpoint.save(place / CHECKPOINT, Checkpoint(state, asdict(notes)))
                step(done.number - before)
                since = time.monotonic()
        except ModelLostError as lost:
            if prepared.replay is not None:
                raise InputError(
                    f"updates: round {lost.number} of {e.updates}: {lost.why}; expected record_rounds without it"
                ) from None
            destroyed = notes.entered(lost.done, lost.number)
            if destroyed:
                note_end(notes, watch, lost)
            checkpoint.save(place / CHECKPOINT, Checkpoint(state, asdict(notes)))
            if not destroyed:
                raise
    return state, notes


def record(recorder: Recorder, done: Round, logged: bool = False) -> int:
    """Write a round's evidence; returns its bytes. `logged` says that the round was read from a log.

    What attackers sent may make models without a finite loss, and no attack on membership could read that: their
    answers are then left out of it, and counted. ModelLostError where the rest cannot be read either.
    """
    try:
        try:
            return record_logged(recorder, done) if logged else recorder.record(done)
        except TrainingDivergedError:
            if done.cohort is None or not delivered(done):
                raise
        honest = torch.tensor([client not in done.attackers for client in done.cohort.clients])
        size = recorder.record(replace(done, cohort=without(done.cohort, honest) if bool(honest.any()) else None))
        of = done.counters[ADVERSARY]
        of["left_out_of_evidence"] = of.get("left_out_of_evidence", 0) + int((~honest).sum())
    except TrainingDivergedError as error:
        why = "its loss on the candidates is not finite"
        raise ModelLostError(str(error), done.number, why, done.end, done) from None
    return size


def delivered(done: Round) -> bool:
    """Whether anything that attackers sent in a round could be used."""
    return done.cohort is not None and not set(done.attackers).isdisjoint(done.cohort.clients)


def note(notes: Notes, watch: Watch, done: Round) -> None:
    """Note what a round's components and attackers did, how long it took, and what became of their answers."""
    notes.crafting_seconds += done.seconds.get("crafting", 0.0)
    notes.combining_seconds += done.seconds.get("combining", 0.0)
    notes.count(done)
    more = NOTED - len(notes.absences)
    notes.absences += [
        {"round": done.number, "client": client, "why": why, "said": said}
        for client, (why, said) in list(done.absent.items())[: max(more, 0)]
    ]
    notes.submitted += watch.submitted(done) if delivered(done) else []
    notes.verdicts(done)


def note_end(notes: Notes, watch: Watch, lost: ModelLostError) -> None:
    """Note that attackers destroyed the model, and how well what is left of it does."""
    notes.destroyed, notes.destruction = lost.number, lost.why
    attackers = 0 if lost.done is None else len(lost.done.attackers)
    notes.history.append({"round": lost.number, **wreck(watch, lost.model), "attackers": attackers})
    if lost.done is not None:
        note(notes, watch, lost.done)


def measure(prepared: Prepared, watch: Watch, done: Round) -> list[dict[str, Any]]:
    """How the global model does after a round, where that is asked for, and around every round of attack.

    ModelLostError where its loss is not finite.
    """
    e = prepared.experiment
    if done.number % e.evaluate_every and done.number != e.rounds and not watch.around_attack(done.number):
        return []
    found = watch.model(done.end)
    if not math.isfinite(found["loss"]):
        why = "the global model's loss on held-out data is not finite"
        lower = f"lower training.lr ({e.training.lr:g}) or server_step ({e.server_step:g})"
        raise ModelLostError(f"round {done.number}: {why}; {lower}", done.number, why, done.end, done)
    about = {"attackers": len(done.attackers)} if watch.begins else {}
    return [{"round": done.number, **found, **about}]


def begin(prepared: Prepared, place: Path) -> tuple[State, Notes]:
    """Where the last checkpoint left off, or the initial model.

    InputError when the checkpoint, the trace behind it or the data is not what the run had.
    """
    path = place / CHECKPOINT
    if not path.is_file():
        return State(0, Models((first_model(prepared),))), Notes(prepared.fingerprint)
    found = checkpoint.read(path, str(prepared.task.device))
    size = len(found.state.models[0])
    if size != prepared.task.layout.size or set(found.notes) != {one.name for one in fields(Notes)}:
        raise InputError(
            f"{path}: holds a model of {size} values and the notes {', '.join(found.notes)}; expected a model of "
            f"{prepared.task.layout.size} values: the code has changed since"
        )
    if found.notes["fingerprint"] != prepared.fingerprint:
        raise InputError(f"{place}: cannot resume: the data is not what it was when the run began")
    wanted = [n for n in range(1, found.state.number + 1) if prepared.experiment.recorded(n)]
    missing = set(wanted) - set(recorded_in(place / TRACE))
    if missing:
        raise InputError(
            f"{place}: {path_of(place / TRACE, min(missing))} is missing, and the checkpoint is of round "
            f"{found.state.number}; delete {CHECKPOINT} to train again"
        )
    return found.state, Notes(**found.notes)


def recorder_of(prepared: Prepared, folder: Path) -> Recorder:
    """What writes this run's evidence."""
    e, layout = prepared.experiment, prepared.task.layout
    wanted = recordings([planned.attack for planned in prepared.attacks])
    tail = tail_of(e.trace.tail, prepared.defences, layout)
    return Recorder(
        task=prepared.task,
        candidates=prepared.candidates.examples.to(prepared.task.device),
        clients=e.clients,
        classes=len(prepared.data.classes),
        folder=folder,
        groups=e.trace.groups,
        aggregate_only=e.secure_aggregation,
        keep_logits=e.trace.logits,
        recordings=wanted,
        products=products_of(prepared),
        tail=tail,
        countermeasures=countermeasures(
            wanted,
            layout,
            tail,
            prepared.defences,
            invited=prepared.invited,
            room=lambda rows: store(len(rows), rows[0], folder.parent),
        ),
    )


def products_of(prepared: Prepared) -> frozenset[str]:
    """Of which updates products with gradients are recorded: in an attacked federation always of those sent."""
    read = products(planned.attack for planned in prepared.attacks)
    return read if prepared.shadow else read | {"sent"}
