"""The federation's rounds, carried out: trained, recorded, measured, and checkpointed."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedsiege.errors import InputError
from fedsiege.experiment.folder import CHECKPOINT, TRACE
from fedsiege.experiment.prepare import Prepared
from fedsiege.experiment.progress import Bars
from fedsiege.federation import checkpoint
from fedsiege.federation.checkpoint import Checkpoint
from fedsiege.federation.rounds import Models, State
from fedsiege.recorder import Recorder
from fedsiege.records import Counters, Round


@dataclass(slots=True)
class Notes:
    """What was noted on the way: accuracy by round, what components did, seconds, bytes. Kept in the checkpoint."""

    history: list[dict[str, Any]] = field(default_factory=list)
    counters: dict[str, Counters] = field(default_factory=dict)
    train_seconds: float = 0.0
    evidence_seconds: float = 0.0
    trace_bytes: int = 0

    def count(self, done: Round) -> None:
        """Add a round's counters to the totals."""
        for label, counters in done.counters.items():
            total = self.counters.setdefault(label, {})
            for name, n in counters.items():
                total[name] = total.get(name, 0) + n


def train_and_record(prepared: Prepared, place: Path, bars: Bars) -> tuple[State, Notes]:
    """Train from the last checkpoint, or from the start, to the last round."""
    state, notes = begin(prepared, place)
    e = prepared.experiment
    recorder = recorder_of(prepared, place / TRACE)
    if state.number == 0:
        recorder.begin()
    federation = prepared.federation(keeps=e.recorded, spill=place)
    heldout = prepared.data.heldout.to(prepared.task.device)
    since = time.monotonic()
    with bars.counting("rounds", e.rounds, state.number) as step:
        for done in federation.run(state):
            notes.train_seconds += time.monotonic() - since
            notes.count(done)
            if e.recorded(done.number):
                step(0, f"evidence of round {done.number}")
                since = time.monotonic()
                notes.trace_bytes += recorder.record(done)
                notes.evidence_seconds += time.monotonic() - since
            if done.number % e.evaluate_every == 0 or done.number == e.rounds:
                accuracy, loss = prepared.task.measure(done.end, heldout)
                notes.history.append({"round": done.number, "accuracy": accuracy, "loss": loss})
            state = State(done.number, state.models.then(done.end, e.delay))
            if done.number % e.checkpoint_every == 0 or done.number == e.rounds:
                checkpoint.save(place / CHECKPOINT, Checkpoint(state, asdict(notes)))
            step()
            since = time.monotonic()
    return state, notes


def begin(prepared: Prepared, place: Path) -> tuple[State, Notes]:
    """Where the last checkpoint left off, or the initial model."""
    path = place / CHECKPOINT
    if not path.is_file():
        return State(0, Models((prepared.task.state.clone(),))), Notes()
    found = checkpoint.read(path, str(prepared.task.device))
    if len(found.state.models[0]) != prepared.task.layout.size:
        raise InputError(
            f"{path}: holds a model of {len(found.state.models[0])} values; "
            f"expected {prepared.task.layout.size}: the code of the model has changed"
        )
    return found.state, Notes(**found.notes)


def recorder_of(prepared: Prepared, folder: Path) -> Recorder:
    """What writes this run's evidence."""
    e = prepared.experiment
    return Recorder(
        task=prepared.task,
        candidates=prepared.candidates.examples.to(prepared.task.device),
        clients=e.clients,
        classes=len(prepared.data.classes),
        folder=folder,
        groups=e.trace.groups,
        aggregate_only=e.secure_aggregation,
        keep_logits=e.trace.logits,
    )
