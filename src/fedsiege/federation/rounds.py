"""The protocol: invite, collect, screen, aggregate, move on.

Everything random is a pure function of the seed, the round and the client, so a federation gives the same rounds
on any engine, in any order of clients, and when it goes on from any round.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fedsiege.aggregation import acceptable
from fedsiege.aggregators.base import Aggregator, LinearAggregator, Server
from fedsiege.attacks.poisoning.base import Scene
from fedsiege.attacks.poisoning.campaign import Campaign
from fedsiege.defences.client.base import ClientDefence, Posted, Turn
from fedsiege.defences.coalition.base import Coalition
from fedsiege.errors import InputError
from fedsiege.federation.adversary import ADVERSARY, answers_of, scene_of
from fedsiege.federation.server import RULE, Combined, Command, Guarding, remember
from fedsiege.federation.state import Absence, Answer, ModelLostError, Models, Reply, State
from fedsiege.records import NOTHING, Cohort, Counters, Examples, Fate, Memory, Round
from fedsiege.streams import stream
from fedsiege.task import Task
from fedsiege.training import Training, train

SPILL = 2**30
"""Bytes of updates above which a cohort's rows live in a memory-mapped file."""


class Engine(Protocol):
    """Whatever gets the invited clients trained; replies come in order of client number."""

    def answers(
        self, federation: "Federation", number: int, invited: list[int], models: "Models", memory: Memory
    ) -> Iterator[Reply]:
        """The honest clients' replies to round `number`."""
        ...

    def poisoned(self, federation: "Federation", scene: Scene) -> Iterator[Reply]:
        """The attackers' replies to the round of `scene`, whose memory, counters and seconds are filled in."""
        ...


@dataclass(frozen=True, slots=True)
class Federation:
    """A federation as one value: who has which data, how they train, how the server combines.

    Args:
        classes: C, of the task.
        participation: the share of clients invited to a round, drawn without replacement, at least one.
        dropout: the share of answers that get lost on their way, at random, after their clients were invited.
        delay: a client's answer may be based on a model up to this many rounds old (age uniform in 0..delay).
        staleness: answers that really come late are taken up to this many rounds after they were asked for.
        server_step: what the aggregate is multiplied with before it is added to the global model.
        defences: the clients' defences, in order, coalitions last.
        server_defences: the server's, in order.
        campaign: what compromised clients do, and when.
        validation: held-out examples that are reserved for the choices of defences.
        root: examples of the server's own.
        done, to_come: rounds of the same training before these and after them; the learning rate's schedule runs
            over all of them.
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
    classes: int = 0
    server_defences: tuple[Guarding, ...] = ()
    campaign: Campaign | None = None
    validation: Examples | None = None
    root: Examples | None = None
    participation: float = 1.0
    dropout: float = 0.0
    delay: int = 0
    staleness: int = 0
    server_step: float = 1.0
    done: int = 0
    to_come: int = 0
    keeps: Callable[[int], bool] = field(default=lambda _: False)
    spill: Path | None = None

    def run(self, state: State) -> Iterator[Round]:
        """The rounds after `state`, one by one; ModelLostError ends them where the global model is not finite."""
        for number in range(state.number + 1, self.rounds + 1):
            done = self._round(number, state)
            if not finite(done.end):
                why = "the global model became non-finite after aggregation"
                lower = f"lower training.lr ({self.training.lr:g}) or server_step ({self.server_step:g})"
                raise ModelLostError(f"round {number}: {why}; {lower}", number, why, done.end, done)
            state = state.then(done, self.oldest)
            yield done

    @property
    def oldest(self) -> int:
        """The age of the oldest model that an answer may still be based on."""
        return self.delay + self.staleness

    def rate(self, number: int) -> float:
        """The learning rate of a round."""
        return self.training.rate(self.done + number, self.done + self.rounds + self.to_come)

    def age(self, number: int, client: int, available: int) -> int:
        """How old the model is that this client answers from, in rounds."""
        if self.delay == 0:
            return 0
        oldest = min(self.delay, available - 1)
        return int(stream(self.seed, "age", number, client).integers(0, oldest, endpoint=True))

    def turns(self, number: int, client: int, memory: Memory = NOTHING) -> dict[str, tuple[ClientDefence, Turn]]:
        """The defences that a client uses in a round, by label, each with a turn of its own."""
        using = [one for one in self.defences if client in one.clients]
        invited = self.invited(number)
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

    def invited(self, number: int) -> list[int]:
        """The clients of a round, sorted."""
        sure = self.campaign.sure(number) if self.campaign else ()
        return invited_to(number, len(self.shards), self.participation, self.seed, sure)

    def _round(self, number: int, state: State) -> Round:
        start, tally = state.models[0], {"answers": 0, "dropped_nonfinite": 0, "dropped_misshapen": 0}
        invited = self.invited(number)
        acted: dict[str, Counters] = {}
        memory, arrived, unusable = dict(state.memory), dict[int, float](), list[int]()
        seconds = {"crafting": 0.0, "combining": 0.0}
        scene = scene_of(self, number, invited, state) if self.campaign else None
        absences = list[Absence]()
        replies = present(answers_of(self, number, invited, state, scene), absences, tally)
        answers = self._arriving(number, noted(replies, acted, memory), tally)
        answers = screened(answers, len(start), tally, arrived, unusable)
        command, at = Command(self.aggregator, self.server_defences), self._server(number, start)
        cohort = None
        if command.streams and not self.keeps(number) and not (scene and scene.clients):
            combined = streamed(command, answers, at, self.seed, memory)
        else:
            most = len(self.shards) if self.staleness else len(invited)
            cohort = collected(answers, most, state.models, self.spill)
            since = time.monotonic()
            combined = None if cohort is None else command.combine(cohort, at, self.seed, memory)
            seconds["combining"] = time.monotonic() - since
        memory = memory if combined is None else combined.memory
        for label, counters in ({} if combined is None else combined.counters).items():
            add(acted.setdefault(label, {}), counters)
        end = self._moved(start, combined, command, at, acted)
        came = {*arrived, *unusable}
        attackers = () if scene is None else tuple(client for client in scene.clients if client in came)
        if scene is not None and self.campaign is not None:
            if finite(end):
                self.campaign.poisoner.observe(scene, end)
            remember(memory, ADVERSARY, scene.memory)
            add(acted.setdefault(ADVERSARY, {}), {**scene.counters, "attackers": len(scene.clients)})
        add(acted.setdefault("server", {}), {name: float(n) for name, n in tally.items()})
        honest = {client: weight for client, weight in arrived.items() if client not in attackers}
        self._settle(number, invited, honest, acted)
        return Round(
            number=number,
            start=start,
            end=end,
            cohort=cohort,
            counters={RULE: {}, **acted},
            memory=memory,
            fates={
                **({} if combined is None else combined.fates),
                **dict.fromkeys(unusable, Fate(0.0, 1.0, usable=False)),
            },
            attackers=attackers,
            seconds={**seconds, "crafting": 0.0 if scene is None else scene.seconds},
            absent={absence.client: (absence.why, absence.said) for absence in absences},
        )

    def _server(self, number: int, start: Tensor) -> Server:
        """What the server knows in a round."""

        def trained(examples: Examples) -> Tensor:
            rng = stream(self.seed, "server", "root", number)
            return train(self.task, start, examples, self.training, self.rate(number), rng, number=number)

        return Server(
            number=number,
            start=start,
            layout=self.task.layout,
            task=self.task,
            root=self.root,
            train=trained,
        )

    def _moved(
        self,
        start: Tensor,
        combined: Combined | None,
        command: Command,
        at: Server,
        acted: dict[str, Counters],
    ) -> Tensor:
        """The new global model; the old one where nothing was left to combine."""
        if combined is None or combined.update is None:
            add(acted.setdefault(RULE, {}), {"kept_old_model": 1.0})
            return start.clone()
        return command.finish(start + self.server_step * combined.update, at, self.seed, acted)

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
        rule, mean = self.aggregator, Command(self.aggregator, self.server_defences).streams
        weigh = rule.weigh if isinstance(rule, LinearAggregator) else float
        scale = self.server_step if mean else None
        weights = {client: weigh(weight) for client, weight in arrived.items()}
        for one in self.defences:
            if isinstance(one.defence, Coalition) and one.circle is not None:
                found = one.defence.settle(one.circle, number, one.present(invited), weights, scale)
                add(acted.setdefault(one.label, {}), found)


def finite(model: Tensor) -> bool:
    """Whether every entry of a model [d] is a number."""
    return bool(torch.isfinite(model).all())


def places_in(clients: int, participation: float) -> int:
    """How many of K clients are invited to a round."""
    return max(1, round(participation * clients))


def invited_to(number: int, clients: int, participation: float, seed: int, sure: Sequence[int] = ()) -> list[int]:
    """The clients of round `number`, sorted: known before the federation begins.

    Those who are sure to be invited take the places of others that were drawn; the rest stay as they were drawn.
    InputError for more of them than places.
    """
    count = places_in(clients, participation)
    if len(sure) > count:
        raise InputError(f"sure: got {len(sure)} clients for a round of {count}; expected {count} at most")
    if count == clients:
        return list(range(count))
    drawn = stream(seed, "invited", number).choice(clients, size=count, replace=False).tolist()
    rest = [client for client in drawn if client not in sure]
    return sorted([*sure, *rest[: count - len(sure)]])


def lost(number: int, client: int, dropout: float, seed: int) -> bool:
    """Whether a client's answer to round `number` gets lost on its way: known before the federation begins."""
    return dropout > 0 and stream(seed, "lost", number, client).random() < dropout


def arriving_in(
    number: int, clients: int, participation: float, dropout: float, seed: int, sure: Sequence[int] = ()
) -> list[int]:
    """The clients of round `number` whose answers do not get lost, sorted."""
    invited = invited_to(number, clients, participation, seed, sure)
    return [client for client in invited if not lost(number, client, dropout, seed)]


def present(replies: Iterator[Reply], absences: list[Absence], tally: dict[str, int]) -> Iterator[Answer]:
    """The answers that are there; the others are noted in `absences` and counted, by why they are not."""
    for reply in replies:
        if isinstance(reply, Answer):
            yield reply
        else:
            absences.append(reply)
            tally[reply.why] = tally.get(reply.why, 0) + 1


def noted(answers: Iterator[Answer], acted: dict[str, Counters], memory: dict[str, Tensor]) -> Iterator[Answer]:
    """The answers as they are; what the clients' defences did is added up in `acted`, what they keep replaced."""
    for answer in answers:
        for label, counters in answer.counters.items():
            add(acted.setdefault(label, {}), counters)
        for label, kept in answer.memory.items():
            remember(memory, f"{label}/{answer.client}", kept)
        yield answer


def add(total: Counters, counters: Counters) -> None:
    """Add counters to a total."""
    for name, n in counters.items():
        total[name] = total.get(name, 0) + n


def screened(
    answers: Iterator[Answer], size: int, tally: dict[str, int], arrived: dict[int, float], unusable: list[int]
) -> Iterator[Answer]:
    """The answers that a server can use, their weights noted in `arrived`.

    The others are dropped and counted, and their clients noted in `unusable`.
    """
    for answer in answers:
        tally["answers"] += 1
        fault = acceptable(answer.update, size)
        if fault is None:
            arrived[answer.client] = answer.weight
            yield answer
        else:
            tally[f"dropped_{fault}"] += 1
            unusable.append(answer.client)


def streamed(command: Command, answers: Iterator[Answer], at: Server, seed: int, memory: Memory) -> Combined | None:
    """A linear rule over answers that nobody keeps; None when there was none."""
    rule, total, clients = command.rule, None, list[int]()
    assert isinstance(rule, LinearAggregator)
    for answer in answers:
        if total is None:
            total = rule.begin(answer.update)
        rule.add(total, answer.update, answer.weight)
        clients.append(answer.client)
    return None if total is None else command.added(total, clients, at, seed, memory)


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
