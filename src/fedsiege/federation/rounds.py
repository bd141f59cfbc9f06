"""The protocol: invite, collect, screen, aggregate, move on.

Everything random is a pure function of the seed, the round and the client, so a federation gives the same rounds
on any engine, in any order of clients, and when it goes on from any round.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fedsiege.aggregation import acceptable
from fedsiege.aggregators.base import Aggregator, LinearAggregator, Sum
from fedsiege.defences.client.base import ClientDefence, Posted, Turn
from fedsiege.defences.coalition.base import Coalition
from fedsiege.errors import TrainingDivergedError
from fedsiege.records import NOTHING, Cohort, Counters, Examples, Memory, Round
from fedsiege.streams import stream
from fedsiege.task import Task
from fedsiege.training import Training

SPILL = 2**30
"""Bytes of updates above which a cohort's rows live in a memory-mapped file."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One client's reply: its update [d], its number of examples, and the age of the model it started from.

    `counters` is what the client's defences did, by their labels: notes for the report, not seen by any adversary.
    `memory` is what they keep for its next round, by their labels: it stays with the client.
    """

    client: int
    update: Tensor
    weight: float
    age: int
    counters: Mapping[str, Counters] = field(default_factory=dict)
    memory: Mapping[str, Memory] = field(default_factory=dict)


class Engine(Protocol):
    """Whatever gets the invited clients trained; answers come in order of client number."""

    def answers(
        self, federation: "Federation", number: int, invited: list[int], models: "Models", memory: Memory
    ) -> Iterator[Answer]:
        """The replies to round `number`."""
        ...


@dataclass(frozen=True, slots=True)
class Models:
    """The global models that clients may start from: `models[age]` is the model `age` rounds ago."""

    window: tuple[Tensor, ...]

    def __getitem__(self, age: int) -> Tensor:
        return self.window[-1 - age]

    def __len__(self) -> int:
        return len(self.window)

    def then(self, model: Tensor, delay: int) -> "Models":
        """The window after one more round; no more models than a late client can ask for."""
        return Models((*self.window, model)[-1 - delay :])


@dataclass(frozen=True, slots=True)
class State:
    """Where a federation stands: `number` rounds are done and `models[0]` is the global model.

    `memory` is what components keep from round to round.
    """

    number: int
    models: Models
    memory: Memory = field(default_factory=dict)

    def then(self, done: Round, delay: int) -> "State":
        """The state after one more round."""
        return State(done.number, self.models.then(done.end, delay), done.memory)


@dataclass(frozen=True, slots=True)
class Federation:
    """A federation as one value: who has which data, how they train, how the server combines.

    Args:
        participation: the share of clients invited to a round, drawn without replacement, at least one.
        dropout: the share of answers that get lost on their way, at random, after their clients were invited.
        delay: a client's answer may be based on a model up to this many rounds old (age uniform in 0..delay).
        server_step: what the aggregate is multiplied with before it is added to the global model.
        defences: the clients' defences, in order, coalitions last.
        validation: held-out examples that are reserved for the choices of defences.
        keeps: whether the rows of round `number` are wanted after aggregation (for the evidence).
        spill: folder for memory-mapped rows when a cohort is larger than memory should hold.

    """

    task: Task
    shards: tuple[Examples, ...]
    training: Training
    aggregator: Aggregator
    engine: Engine
    rounds: int
    seed: int
    defences: tuple[Posted, ...] = ()
    validation: Examples | None = None
    participation: float = 1.0
    dropout: float = 0.0
    delay: int = 0
    server_step: float = 1.0
    keeps: Callable[[int], bool] = field(default=lambda _: False)
    spill: Path | None = None

    def run(self, state: State) -> Iterator[Round]:
        """The rounds after `state`, one by one."""
        for number in range(state.number + 1, self.rounds + 1):
            done = self._round(number, state)
            state = state.then(done, self.delay)
            yield done

    def age(self, number: int, client: int, available: int) -> int:
        """How old the model is that this client answers from, in rounds."""
        if self.delay == 0:
            return 0
        oldest = min(self.delay, available - 1)
        return int(stream(self.seed, "age", number, client).integers(0, oldest, endpoint=True))

    def turns(self, number: int, client: int, memory: Memory = NOTHING) -> dict[str, tuple[ClientDefence, Turn]]:
        """The defences that a client uses in a round, by label, each with a turn of its own."""
        using = [one for one in self.defences if client in one.clients]
        invited = invited_to(number, len(self.shards), self.participation, self.seed)
        at = Turn(
            task=self.task,
            number=number,
            client=client,
            examples=len(self.shards[client]),
            batch=self.training.step_size,
            rng=stream(self.seed, "turn", number, client),
            cohort=len(invited),
            validation=self.validation,
        )
        return {one.label: (one.defence, one.turn(self.seed, at, invited, memory)) for one in using}

    def _round(self, number: int, state: State) -> Round:
        models = state.models
        start, tally = models[0], {"answers": 0, "dropped_nonfinite": 0, "dropped_misshapen": 0}
        invited = invited_to(number, len(self.shards), self.participation, self.seed)
        acted: dict[str, Counters] = {}
        memory, arrived = dict(state.memory), dict[int, float]()
        replies = noted(self.engine.answers(self, number, invited, models, state.memory), acted, memory)
        answers = screened(self._arriving(number, replies, tally), len(start), tally, arrived)
        cohort = None
        if isinstance(self.aggregator, LinearAggregator) and not self.keeps(number):
            combined = streamed(self.aggregator, answers)
        else:
            cohort = collected(answers, len(invited), models, self.spill)
            combined = self.aggregator(cohort) if cohort is not None else None
        if combined is None:
            end, info = start.clone(), {"kept_old_model": 1.0}
        else:
            end, info = start + self.server_step * combined[0], combined[1]
            if not bool(torch.isfinite(end).all()):
                raise TrainingDivergedError(
                    f"round {number}: the global model became non-finite after aggregation; lower training.lr "
                    f"({self.training.lr:g}) or server_step ({self.server_step:g})"
                )
        self._settle(number, invited, arrived, acted)
        counters = {"aggregator": info, "server": {name: float(n) for name, n in tally.items()}, **acted}
        return Round(number=number, start=start, end=end, cohort=cohort, counters=counters, memory=memory)

    def _arriving(self, number: int, answers: Iterator[Answer], tally: dict[str, int]) -> Iterator[Answer]:
        """The answers that do not get lost; the others are counted."""
        for answer in answers:
            if lost(number, answer.client, self.dropout, self.seed):
                tally["lost"] = tally.get("lost", 0) + 1
            else:
                yield answer

    def _settle(
        self, number: int, invited: list[int], arrived: Mapping[int, float], acted: dict[str, Counters]
    ) -> None:
        """Let the coalitions count what became of their plan, once it is known whose answers were aggregated."""
        rule = self.aggregator
        weigh = rule.weigh if isinstance(rule, LinearAggregator) else float
        scale = self.server_step if isinstance(rule, LinearAggregator) else None
        weights = {client: weigh(weight) for client, weight in arrived.items()}
        for one in self.defences:
            if isinstance(one.defence, Coalition) and one.circle is not None:
                found = one.defence.settle(one.circle, number, one.present(invited), weights, scale)
                add(acted.setdefault(one.label, {}), found)


def invited_to(number: int, clients: int, participation: float, seed: int) -> list[int]:
    """The clients of round `number`, sorted: known before the federation begins."""
    count = max(1, round(participation * clients))
    if count == clients:
        return list(range(count))
    return sorted(stream(seed, "invited", number).choice(clients, size=count, replace=False).tolist())


def lost(number: int, client: int, dropout: float, seed: int) -> bool:
    """Whether a client's answer to round `number` gets lost on its way: known before the federation begins."""
    return dropout > 0 and stream(seed, "lost", number, client).random() < dropout


def arriving_in(number: int, clients: int, participation: float, dropout: float, seed: int) -> list[int]:
    """The clients of round `number` whose answers do not get lost, sorted."""
    invited = invited_to(number, clients, participation, seed)
    return [client for client in invited if not lost(number, client, dropout, seed)]


def noted(answers: Iterator[Answer], acted: dict[str, Counters], memory: dict[str, Tensor]) -> Iterator[Answer]:
    """The answers as they are; what the clients' defences did is added up in `acted`, what they keep replaced."""
    for answer in answers:
        for label, counters in answer.counters.items():
            add(acted.setdefault(label, {}), counters)
        for label, kept in answer.memory.items():
            place = f"{label}/{answer.client}/"
            for name in [name for name in memory if name.startswith(place)]:
                del memory[name]
            memory.update({place + name: tensor for name, tensor in kept.items()})
        yield answer


def add(total: Counters, counters: Counters) -> None:
    """Add counters to a total."""
    for name, n in counters.items():
        total[name] = total.get(name, 0) + n


def screened(
    answers: Iterator[Answer], size: int, tally: dict[str, int], arrived: dict[int, float]
) -> Iterator[Answer]:
    """The answers that a server can use, their weights noted in `arrived`; the others are dropped and counted."""
    for answer in answers:
        tally["answers"] += 1
        fault = acceptable(answer.update, size)
        if fault is None:
            arrived[answer.client] = answer.weight
            yield answer
        else:
            tally[f"dropped_{fault}"] += 1


def streamed(rule: LinearAggregator, answers: Iterator[Answer]) -> tuple[Tensor, Counters] | None:
    """A linear rule over answers that nobody keeps; None when there was none."""
    state: Sum | None = None
    for answer in answers:
        if state is None:
            state = rule.begin(answer.update)
        rule.add(state, answer.update, answer.weight)
    return None if state is None else rule.finish(state)


def collected(answers: Iterator[Answer], most: int, models: Models, spill: Path | None) -> Cohort | None:
    """The answers as one cohort, in memory or, when large, in a file that goes with it; None if empty."""
    rows: Tensor | None = None
    kept: list[tuple[int, float, int]] = []
    for answer in answers:
        if rows is None:
            rows = store(most, answer.update, spill)
        rows[len(kept)] = answer.update
        kept.append((answer.client, answer.weight, answer.age))
    if rows is None:
        return None
    clients, weights, ages = zip(*kept, strict=True)
    return Cohort(
        clients=clients,
        updates=rows[: len(kept)],
        weights=torch.tensor(weights, dtype=torch.float64),
        ages=ages,
        starts={age: models[age] for age in sorted(set(ages))},
    )


def store(rows: int, like: Tensor, spill: Path | None) -> Tensor:
    """Room for `rows` updates: memory-mapped in `spill` when they would take more than `SPILL` bytes."""
    size = rows * like.numel()
    if spill is None or like.device.type != "cpu" or size * like.element_size() <= SPILL:
        return torch.empty(rows, like.numel(), dtype=like.dtype, device=like.device)
    with tempfile.NamedTemporaryFile(dir=spill, prefix=".rows-") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here; in the mapping it would kill the process
            os.posix_fallocate(file.fileno(), 0, size * like.element_size())
        # The name goes when this block ends; the mapping keeps the file until the tensor is gone.
        flat = torch.from_file(file.name, shared=True, size=size, dtype=like.dtype)
    return flat.view(rows, like.numel())
