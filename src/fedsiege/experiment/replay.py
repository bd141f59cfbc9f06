"""The rounds of a log of updates, in place of a federation's: nothing is trained, all else is as in any run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsiege.data.dataset import Dataset, Partition
from fedsiege.data.partitioning import Rows
from fedsiege.data.partitions.owner import Owner
from fedsiege.defences.server.base import without
from fedsiege.errors import InputError, TrainingDivergedError
from fedsiege.experiment.config import Experiment
from fedsiege.federation.rounds import store
from fedsiege.federation.server import RULE
from fedsiege.federation.state import State
from fedsiege.recorder import Recorder
from fedsiege.records import Cohort, Round
from fedsiege.signals import losses_of, uploaded
from fedsiege.task import Task
from fedsiege.update_log import LoggedRound, TensorSpec, UpdateLog
from fedsiege.view import Flags

OVER = (
    *("aggregator", "defences", "server_defences", "coalition", "adversary", "compromised", "backdoor"),
    *("participation", "dropout", "delay", "server_step", "start", "pretrain_rounds", "engine"),
)
"""Fields about what a federation does: that of a log is over, and what they say would not be so."""

UNREADABLE = "left_out_of_evidence"
"""The server's counter of answers whose model has no finite loss."""

DIGEST = "updates/log"
"""What is kept from round to round: by which log the run began."""

FEW = 3
"""So many names stand in a message."""


def log_of(experiment: Experiment) -> UpdateLog | None:
    """The log that a run audits; None where it trains. InputError where the config says other than the log."""
    e = experiment
    if e.updates is None:
        return None
    for field in OVER:
        if getattr(e, field) != Experiment.model_fields[field].get_default(call_default_factory=True):
            raise InputError(
                f"{field}: got {getattr(e, field)!r}; with updates the rounds are read from a log, whose "
                "federation is over: expected the default"
            )
    log = UpdateLog.read(e.updates)
    if e.clients != log.clients:
        raise InputError(f"clients: got {e.clients}; the log {e.updates} is of {log.clients}")
    wrong = sorted(set(e.record_rounds or ()) - set(log.rounds))
    if wrong or not e.record_rounds or e.rounds != max(e.record_rounds):
        raise InputError(
            f"record_rounds: got {listed(wrong or e.record_rounds or ())} with rounds: {e.rounds}; expected "
            f"rounds of the log {e.updates} ({listed(log.rounds)}), the last of them as rounds"
        )
    if log.observable == "aggregate" and not e.secure_aggregation:
        raise InputError(f"secure_aggregation: got false; the log {e.updates} is of the aggregate alone")
    return log


def attended(log: UpdateLog, experiment: Experiment) -> dict[int, Flags]:
    """Whose updates there are [K], by recorded round."""
    everybody = np.arange(experiment.clients)
    return {
        number: np.isin(everybody, log.kept[number].clients) for number in log.rounds if experiment.recorded(number)
    }


def owned(log: UpdateLog, data: Dataset, divide: Partition, experiment: Experiment) -> list[Rows] | None:
    """Rows per client by the log's numbers and names, some of them empty; None for another way of dealing them."""
    if not isinstance(divide, Owner):
        return None
    if experiment.examples_per_client is not None:
        raise InputError(
            f"examples_per_client: got {experiment.examples_per_client}; which of its examples a client of the log "
            "trained on is not drawn here: expected null"
        )
    return divide.owned(data, log.clients, log.names)


def with_data(targets: Sequence[int], shards: Sequence[Rows], asked: str | int | list[int]) -> list[int]:
    """The targets of which the data has any examples; InputError where one was asked for by number, or none has."""
    found = [target for target in targets if len(shards[target])]
    if not found or (asked != "all" and len(found) < len(targets)):
        nobody = next(target for target in targets if not len(shards[target]))
        raise InputError(
            f"targets: client {nobody} has no training examples in this data; expected clients that do"
        )
    return found


class Place(NamedTuple):
    """A tensor of the model: where it lies in the model's flat vector, and where in the log's (None: nowhere)."""

    own: slice
    logged: slice | None


@dataclass(frozen=True, slots=True)
class Fit:
    """How a log's flat vectors become the model's: by name, whatever their order.

    `initial` [d] is the model as it was built. What a log does not hold of it (`absent`) stays as it is there.
    """

    places: tuple[Place, ...]
    initial: Tensor
    absent: tuple[str, ...] = ()

    def model(self, vector: NDArray[np.float32]) -> Tensor:
        """A logged model in the model's own order [d]."""
        return self._laid(vector, self.initial.clone())

    def update(self, row: NDArray[np.float32]) -> Tensor:
        """A logged update in the model's own order [d]."""
        return self._laid(row, torch.zeros_like(self.initial))

    def _laid(self, vector: NDArray[np.float32], made: Tensor) -> Tensor:
        for place in self.places:
            if place.logged is not None:
                made[place.own] = torch.from_numpy(vector[place.logged]).to(made.device)
        return made


def fitted(log: UpdateLog, task: Task, said: str) -> Fit:
    """How the log's vectors become those of the task's model, which the config calls `said`.

    Every trained tensor must be in the log. Buffers may be missing. Tensors that do not travel here may be there:
    counters, and what the model has frozen, if its values are the log's. InputError names what does not fit.
    """
    layout, whole = task.layout, task.module.state_dict()
    logged, at = dict[str, tuple[TensorSpec, slice]](), 0
    for tensor in _named(log.tensors, list(whole)):
        logged[tensor.name] = tensor, slice(at, at + tensor.size)
        at += tensor.size
    kinds = dict(zip(layout.names, layout.kinds, strict=True))
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    missing = [name for name in layout.names if name not in logged and kinds[name] == "trained"]
    extra = [name for name in logged if name not in whole]
    unlike = [
        f"{name} ({list(logged[name][0].shape)} in the log, {list(shape)} in the model)"
        for name, shape in shapes.items()
        if name in logged and logged[name][0].shape != shape
    ]
    faults = {"not in the log": missing, "not in the model": extra, "of another shape": unlike}
    if any(faults.values()):
        what = "; ".join(f"{what}: {listed(names)}" for what, names in faults.items() if names)
        raise InputError(
            f"model: the tensors of {said} are not those of the log {log.folder}: {what}; expected the model whose "
            "updates were recorded (one that was frozen in part, frozen alike)"
        )
    _check_frozen(log, {name: logged[name][1] for name in logged if name not in kinds}, task, said)
    places = [Place(own, logged[name][1] if name in logged else None) for name, own in layout.slices()]
    absent = tuple(name for name in layout.names if name not in logged)
    return Fit(tuple(places), task.state.clone(), absent)


def _named(tensors: Sequence[TensorSpec], names: Sequence[str]) -> list[TensorSpec]:
    """The log's tensors by the model's names: a list of arrays has numbers, in the state dict's order."""
    if not all(one.name.isdecimal() and one.name.isascii() for one in tensors):
        return list(tensors)
    numbered = {str(place): name for place, name in enumerate(names)}
    return [TensorSpec(numbered.get(name, name), shape) for name, shape in tensors]


def _check_frozen(log: UpdateLog, others: Mapping[str, slice], task: Task, said: str) -> None:
    """Refuse a log whose values of a frozen tensor are not the model's: its evidence would be another model's."""
    whole = task.module.state_dict()
    travels = {tensor.data_ptr() for name, tensor in whole.items() if name in task.layout.names}
    start = log.round(log.rounds[0]).start
    for name, place in others.items():
        own = whole[name]
        if not own.is_floating_point() or own.data_ptr() in travels:  # a counter, or a tensor with two names
            continue
        if not np.array_equal(own.cpu().numpy().ravel(), start[place]):
            raise InputError(
                f"model: {name} of {said} is frozen, and its values are not those of the log {log.folder}; "
                "expected a model that is built with the weights that its federation began with"
            )


@dataclass(frozen=True, slots=True)
class Replay:
    """The rounds of a log that are audited, in order; large cohorts lie in a file in `spill` while they last."""

    log: UpdateLog
    fit: Fit
    rounds: tuple[int, ...]
    spill: Path | None = None

    @property
    def first_model(self) -> Tensor:
        """The model [d] that the first of them began with."""
        return self.fit.model(self.log.round(self.rounds[0]).start)

    def run(self, state: State) -> Iterator[Round]:
        """The rounds after `state`, one by one; InputError where that is of another log than this one."""
        digest = torch.frombuffer(bytearray(self.log.digest(self.rounds)), dtype=torch.uint8)
        before = state.memory.get(DIGEST, digest)
        if not torch.equal(before.cpu(), digest):
            raise InputError(
                f"updates: {self.log.folder}: cannot resume: the log is not what it was when the audit began"
            )
        memory = {**state.memory, DIGEST: digest}
        return (
            replace(self._round(self.log.round(number)), memory=memory)
            for number in self.rounds
            if number > state.number
        )

    def _round(self, logged: LoggedRound) -> Round:
        start, end = self.fit.model(logged.start), self.fit.model(logged.end)
        counters = {RULE: {}, "server": {"answers": float(len(logged.clients))}}
        return Round(logged.number, start, end, self._cohort(logged, start), counters)

    def _cohort(self, logged: LoggedRound, start: Tensor) -> Cohort | None:
        """What the server received; None where nothing of single clients was observable, or nothing usable came."""
        if logged.stored is None or not logged.clients:
            return None
        updates = store(len(logged.clients), start, self.spill)
        for position, row in enumerate(logged.rows()):
            updates[position] = self.fit.update(row)
        ages = tuple(logged.ages.tolist())
        return Cohort(
            clients=logged.clients,
            updates=updates,
            weights=torch.from_numpy(np.array(logged.weights, dtype=np.float64)),
            ages=ages,
            starts={
                age: self.fit.model(self.log.start_of(logged.number - age)) if age else start
                for age in sorted(set(ages))
            },
        )


def record_logged(recorder: Recorder, done: Round) -> int:
    """Write a logged round's evidence; returns its bytes.

    Rows whose model has no finite loss are left out and counted: no attack could read such evidence.
    TrainingDivergedError where the global model's is not finite.
    """
    try:
        return recorder.record(done)
    except TrainingDivergedError:
        if done.cohort is None or recorder.aggregate_only:
            raise
    found = losses_of(recorder.task, uploaded(done.cohort), recorder.candidates, False, False)
    sound = torch.isfinite(found.loss).all(1).cpu()
    server = done.counters["server"]
    server[UNREADABLE] = server.get(UNREADABLE, 0) + float((~sound).sum())
    return recorder.record(replace(done, cohort=without(done.cohort, sound) if bool(sound.any()) else None))


def listed(items: Sequence[object], most: int = FEW) -> str:
    """The first few of them, and how many more there are."""
    more = len(items) - most
    return ", ".join(map(str, items[:most])) + (f" and {more} more" if more > 0 else "")
