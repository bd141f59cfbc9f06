"""What a client-side defence is, and how several of them act in one client's local training.

A defence overrides the moments at which it acts. All of them lie before the upload, so that what is recorded, and
attacked, is what the server received. What is random in a defence comes from its own stream of the round and the
client: training without the defence draws the same numbers as training with it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import BeforeValidator
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fedsiege.errors import InputError
from fedsiege.records import NOTHING, Counters, Examples, Memory
from fedsiege.registry import label_of, name_of
from fedsiege.streams import stream
from fedsiege.task import Task


def _numbers(value: Any) -> Any:
    numbers = value if isinstance(value, list | tuple) else [value]
    known = (isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in numbers)
    if value == "all" or (numbers and all(known)):
        return value
    raise ValueError("expected all, a client's number or a list of numbers")


Clients = Annotated[Literal["all"] | int | tuple[int, ...], BeforeValidator(_numbers)]
"""Which clients use a defence: `all`, a client's number, or a list of numbers."""

NAMED = 10
"""Up to so many clients are named one by one."""

Part = slice | Tensor
"""The examples of one step, as positions in the epoch's order."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains on: inputs x [b, ...] as the model takes them, and classes with weights.

    `labels` holds pairs of classes [b] and weights [b] that sum to one for each example; an example that is not
    mixed has one class of weight 1. `places` [b] are the examples' positions in what `on_data` returned (of a
    mixture, those of the first class), or None where they are not known.
    """

    x: Tensor
    labels: tuple[tuple[Tensor, Tensor], ...]
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(cls, x: Tensor, y: Tensor, places: Tensor | None = None) -> "Batch":
        """Inputs with one class each [b]."""
        return cls(x, ((y, torch.ones_like(y, dtype=torch.float32)),), places)

    def rows(self, some: slice) -> "Batch":
        """A part of the batch."""
        places = None if self.places is None else self.places[some]
        return Batch(self.x[some], tuple((y[some], weight[some]) for y, weight in self.labels), places)

    def weighted(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """`of(classes)` [b], summed over the classes of each example with their weights."""
        (first, _), *more = self.labels
        if not more:
            return of(first)
        return torch.stack([weight * of(y) for y, weight in self.labels]).sum(0)


@dataclass(frozen=True, slots=True)
class Circle:
    """What all members of a coalition know, and the server does not.

    Args:
        secret: whoever has it can work out all that any member does.
        volumes: each member's weight in the aggregation, by its number, in order: of all its data, not of what it
            trains on in a round.
        classes: N, the classes of the task.
        rounds: T, the rounds of the federation.

    """

    secret: int = field(repr=False)
    volumes: Mapping[int, float]
    classes: int
    rounds: int


@dataclass(slots=True)
class Turn:
    """One defence in one client's local training: what it may know, draw from, and note.

    Args:
        task: the resident model and its loss.
        number: the round, from 1.
        client: the client's number.
        examples: how many examples the client trains on in this round.
        batch: the examples of a step; null when a step takes all.
        rng: the defence's own stream of this round and client.
        cohort: how many clients take part in the round.
        epoch: the client's epochs so far had it taken part in every round, from 0.
        tool: what `during` made for the length of this turn.
        memory: what the defence kept of this client's earlier rounds, by name; assign another mapping to change it.
        validation: held-out examples that are reserved for the choices of defences, where there are any.
        circle: in a coalition's turn, what its members know.
        present: in a coalition's turn, the members that were invited to the round, sorted.

    """

    task: Task
    number: int
    client: int
    examples: int
    batch: int | None
    rng: np.random.Generator
    cohort: int = 1
    epoch: int = 0
    tool: Any = None
    counters: Counters = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    validation: Examples | None = None
    circle: Circle | None = None
    present: tuple[int, ...] = ()

    def count(self, name: str, n: float = 1) -> None:
        """Add n to a counter of what the defence did; counters add up over clients and rounds."""
        self.counters[name] = self.counters.get(name, 0) + n

    def generator(self) -> torch.Generator:
        """A torch generator of this turn, on the model's device; another one at every call."""
        generator = torch.Generator(device=self.task.device)
        generator.manual_seed(int(self.rng.integers(2**63)))
        return generator

    def normal(self, size: int) -> Tensor:
        """Standard normal numbers [size]."""
        return torch.randn(size, generator=self.generator(), device=self.task.device)


@dataclass(frozen=True, slots=True)
class Ground:
    """What is known of a run before the first round, for a defence to check itself against.

    Args:
        task: the model and its loss.
        examples: a few of the training data.
        sizes: how many examples each client owns [K].
        using: the clients that use the defence.
        batch: the examples of a step; null when a step takes all that a client has.
        precision: the arithmetic of local training.
        weights: each client's weight in the aggregation [K]; null when the rule is no weighted mean.
        cohort: how many clients take part in a round.
        later: the defences behind it in the run's list.
        measured: whether the inputs' means and deviations were computed from the training data.
        rounds: T, the rounds of the federation.
        classes: N, the classes of the task.
        validation: how many held-out examples are reserved for the choices of defences.
        circle: what the members of a coalition know.
        dropout: the share of answers that get lost on their way.

    """

    task: Task
    examples: Examples
    sizes: Sequence[int]
    using: Sequence[int]
    batch: int | None
    precision: str = "fp32"
    weights: Sequence[float] | None = None
    cohort: int = 1
    later: Sequence["ClientDefence"] = ()
    measured: bool = False
    rounds: int = 1
    classes: int = 0
    validation: int = 0
    circle: Circle | None = None
    dropout: float = 0.0

    def steps(self, client: int) -> int:
        """Steps of an epoch of a client, before any defence changes them."""
        return 1 if self.batch is None else math.ceil(self.sizes[client] / self.batch)

    def whose(self) -> str:
        """The clients that use the defence, in words: `of every client`, `of clients 0 and 2`."""
        using = list(self.using)
        if len(using) == len(self.sizes):
            return "of every client"
        if len(using) > NAMED:
            return f"of {len(using)} of the {len(self.sizes)} clients"
        *first, last = map(str, using)
        return f"of clients {', '.join(first)} and {last}" if first else f"of client {last}"

    def taken_as_public(self) -> str:
        """What a guarantee cannot cover, as words to end a note with; empty where there is nothing."""
        return "; normalisation constants, computed from all training data, are taken as public" * self.measured


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A differential-privacy guarantee that a run spent.

    `unit` is what is protected (an `example` or a whole `client`), `against` who is bounded: the `server`, who sees
    single updates, or anyone who sees only the `aggregate`: one other client too, which knows what it sent itself.
    Without any bound epsilon is None. `clients` says whose units are protected (`of every client`).
    """

    unit: Literal["example", "client"]
    against: Literal["server", "aggregate"]
    epsilon: float | None
    delta: float
    accountant: str
    note: str
    clients: str


class ClientDefence:
    """A way for a client to make its own upload less revealing."""

    title: ClassVar[str]
    """Its name in tables and figures."""
    neutral: ClassVar[Mapping[str, Any] | None]
    """The fields at which the run is bit-identical to one without the defence; None if there is no such setting."""
    proof: ClassVar[str]
    """The counter that is above zero when it changed something."""
    couples: ClassVar[bool] = False
    """True: one example changes what another contributes to a step, or whether it does at all, so that clipping per
    example bounds nothing."""
    replaces: ClassVar[Literal["loss", "gradient"] | None] = None
    """What it makes instead of the plain one; a run has room for one of each."""
    private: ClassVar[bool] = False
    """True: it gives a guarantee of differential privacy, which is counted for one such defence alone."""

    clients: Clients
    """Each defence has this field."""

    def users(self, clients: int, where: str) -> frozenset[int]:
        """The clients that use it, of K; InputError, about the config field `where`, for one that there is not."""
        if self.clients == "all":
            return frozenset(range(clients))
        numbers = (self.clients,) if isinstance(self.clients, int) else self.clients
        beyond = [number for number in numbers if number >= clients]
        if beyond:
            raise InputError(f"{where}.clients: got client {beyond[0]}; expected clients from 0 to {clients - 1}")
        return frozenset(numbers)

    def check(self, ground: Ground) -> None:
        """Refuse, before the first round, what this run cannot do; InputError says why."""

    def during(self, turn: Turn) -> AbstractContextManager[Any]:  # noqa: ARG002 - for those who need it
        """What the defence needs for the length of the local training; it is then `turn.tool`."""
        return nullcontext()

    def on_data(self, examples: Examples, turn: Turn) -> Examples:  # noqa: ARG002
        """The examples that this round trains on."""
        return examples

    def on_epoch(self, parts: list[Part], turn: Turn) -> list[Part]:  # noqa: ARG002
        """The steps of an epoch, each by its positions in the epoch's order."""
        return parts

    def on_images(self, x: Tensor, turn: Turn) -> Tensor:  # noqa: ARG002
        """Raw inputs [b, ...] of a step, before they are normalised."""
        return x

    def on_batch(self, batch: Batch, turn: Turn) -> Batch:  # noqa: ARG002
        """Inputs and labels of a step, as the model takes them."""
        return batch

    def on_loss(self, losses: Tensor, logits: Tensor, batch: Batch, turn: Turn) -> Tensor:  # noqa: ARG002
        """The losses [b] whose mean is trained, from the cross-entropies [b] and the logits [b, C]."""
        return losses

    def on_gradient(self, losses: Callable[[Batch], Tensor], batch: Batch, turn: Turn) -> None:
        """Fill `turn.task.gradient` for a step, from the batch and the function to its losses [b]."""
        raise NotImplementedError

    def on_update(self, update: Tensor, turn: Turn) -> Tensor:  # noqa: ARG002
        """The update [d] that leaves the client; `turn.task.layout` tells where each tensor lies."""
        return update

    def told(self, counters: Counters) -> Counters:
        """What the report says it did, from the counters of all clients and rounds."""
        return counters

    def guarantees(self, counters: Counters, ground: Ground) -> list[Guarantee]:  # noqa: ARG002
        """The privacy that was spent, where there is any guarantee."""
        return []


MOMENTS: Mapping[str, str] = {
    "on_data": "the data",
    "on_epoch": "the order of examples",
    "on_images": "the inputs",
    "on_batch": "the batches",
    "on_loss": "the loss",
    "on_gradient": "the gradients",
}
"""The moments that lie before there is an update, in words."""


def acting(cls: type, moments: Mapping[str, str] = MOMENTS) -> list[str]:
    """Those of some moments at which a class of defences acts, in words."""
    own = (words for moment, words in moments.items() if getattr(cls, moment) is not getattr(ClientDefence, moment))
    return list(own)


def means(counters: Counters, *names: str, over: str = "updates") -> Counters:
    """The counters, with those of these names divided by another: sums over clients and rounds as means."""
    n = counters.get(over, 0)
    return {
        (f"mean_{name}" if name in names else name): (total / n if name in names and n else total)
        for name, total in counters.items()
    }


def leaves_one_over(m: int, turn: Turn) -> bool:
    """Whether a model with BatchNorm would end an epoch over m examples with a step of one, which it cannot."""
    layers = turn.task.module.modules()
    return m % (turn.batch or m + 1) == 1 and any(isinstance(one, _BatchNorm) for one in layers)


class Settable(Protocol):
    """Anything with a setting that changes nothing, or none."""

    @property
    def neutral(self) -> Mapping[str, Any] | None:
        """The fields of that setting."""


def is_neutral(defence: Settable) -> bool:
    """Whether a defence is set to change nothing."""
    neutral = defence.neutral
    return neutral is not None and all(getattr(defence, name) == value for name, value in neutral.items())


@dataclass(frozen=True, slots=True)
class Posted:
    """A defence in a run: its label, the clients that use it, and its place among those of its name that act.

    `circle` is what those clients know in common, where they are a coalition.
    """

    defence: ClientDefence
    label: str
    clients: frozenset[int]
    nth: int = 0
    circle: Circle | None = None

    def turn(self, seed: int, at: Turn, invited: Iterable[int] = (), memory: Memory = NOTHING) -> Turn:
        """Its turn in a client's training `at`, with a stream, counters and memory of its own.

        Args:
            seed: the run's.
            at: what all defences of the client know.
            invited: the clients of the round.
            memory: what all defences of all clients kept.

        """
        rng = stream(seed, "defence", name_of(self.defence), self.nth, at.number, at.client)
        kept, place = {}, self.place(at.client)
        for name, tensor in memory.items():
            if name.startswith(place):
                kept[name.removeprefix(place)] = tensor
        present = () if self.circle is None else self.present(invited)
        return replace(at, rng=rng, counters={}, memory=kept, circle=self.circle, present=present)

    def place(self, client: int) -> str:
        """How the names of what it keeps of a client begin, in the memory of a run."""
        return f"{self.label}/{client}/"

    def present(self, invited: Iterable[int]) -> tuple[int, ...]:
        """Those that use it among the clients of a round, sorted."""
        return tuple(sorted(self.clients & set(invited)))


def refuse_sequences(defence: ClientDefence, ground: Ground, otherwise: str = "") -> None:
    """InputError, by name, for a defence that acts and cannot where examples have a label at every position.

    `otherwise` is what to do instead, in words.
    """
    if ground.examples.y.dim() > 1 and not is_neutral(defence):
        raise InputError(
            f"{name_of(defence)}: works on one label an example; this data has one at every position{otherwise}"
        )


def posted(defences: Sequence[ClientDefence], clients: int) -> tuple[Posted, ...]:
    """The defences of a run; InputError for a client that there is not, and for what cannot combine.

    Args:
        defences: in the order in which they act.
        clients: K, all clients of the federation.

    """
    made: list[Posted] = []
    for place, defence in enumerate(defences):
        using = defence.users(clients, f"defences.{place}")
        label = label_of(defence)
        if any(label == other.label for other in made):
            raise InputError(f"defences.{place}: {label} is listed twice; expected different defences or fields")
        # One that changes nothing must not move the streams of those behind it either.
        nth = sum(name_of(one.defence) == name_of(defence) and not is_neutral(one.defence) for one in made)
        one = Posted(defence, label, using, nth)
        for other in made:
            if other.clients & using and not (is_neutral(defence) or is_neutral(other.defence)):
                refuse_together(one, other, f"defences.{place}")
        made.append(one)
    return tuple(made)


def refuse_together(one: Posted, other: Posted, where: str) -> None:
    """InputError, about the config field `where`, for two acting defences of one client that cannot combine."""
    both = f"{one.label} and {other.label}"
    here, there = one.defence, other.defence
    if here.replaces is not None and here.replaces == there.replaces:
        raise InputError(f"{where}: {both} both make the {here.replaces} of a step; expected one of them a client")
    if here.private and there.private:
        raise InputError(
            f"{where}: {both} each give a client differential privacy, and their guarantees are not counted "
            "together; expected one of them a client"
        )
    for private, mixing in ((here, there), (there, here)):
        if private.replaces == "gradient" and mixing.couples:
            raise InputError(
                f"{where}: {both}: {name_of(mixing)} lets an example change what others contribute, so that "
                f"clipping each gradient no longer bounds its influence; expected {name_of(private)} without it"
            )


class Guard:
    """The defences of one client in one round, in order: each moment of the training, threaded through them."""

    def __init__(self, turns: Sequence[tuple[ClientDefence, Turn]] = ()) -> None:
        self._turns = tuple(turns)
        made = ((d, turn) for d, turn in turns if d.replaces == "gradient" and not is_neutral(d))
        self._gradient = next(made, None)

    @contextmanager
    def training(self, epoch: int) -> Iterator[None]:
        """The local training, which begins with this epoch of the client's."""
        with ExitStack() as stack:
            for defence, turn in self._turns:
                turn.epoch = epoch
                turn.tool = stack.enter_context(defence.during(turn))
            yield

    def rate(self, lr: float) -> float:
        """The learning rate of the epoch that begins, where the round's is `lr`."""
        return lr

    def on_examples(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Raw inputs [b, ...] and labels of a step, before any defence sees them."""
        return x, y

    def on_step(self, state: Tensor) -> None:
        """A step is done; `state` [d] is the model and may be changed in place."""

    def next_epoch(self) -> None:
        """An epoch is over."""
        for _, turn in self._turns:
            turn.epoch += 1

    def on_data(self, examples: Examples) -> Examples:
        """The examples that this round trains on."""
        for defence, turn in self._turns:
            examples = defence.on_data(examples, turn)
        for _, turn in self._turns:
            turn.examples = len(examples)
        return examples

    def on_epoch(self, parts: list[Part]) -> list[Part]:
        """The steps of an epoch."""
        for defence, turn in self._turns:
            parts = defence.on_epoch(parts, turn)
        return parts

    def on_images(self, x: Tensor) -> Tensor:
        """Raw inputs of a step."""
        for defence, turn in self._turns:
            x = defence.on_images(x, turn)
        return x

    def on_batch(self, batch: Batch) -> Batch:
        """Inputs and labels of a step."""
        for defence, turn in self._turns:
            batch = defence.on_batch(batch, turn)
        return batch

    def on_loss(self, losses: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        """The losses of a step."""
        for defence, turn in self._turns:
            losses = defence.on_loss(losses, logits, batch, turn)
        return losses

    def backward(self, losses: Callable[[Batch], Tensor], batch: Batch) -> None:
        """The gradient of the mean loss, or what a defence makes of it, into the task's gradient."""
        if self._gradient is None:
            losses(batch).mean().backward()
        else:
            defence, turn = self._gradient
            defence.on_gradient(losses, batch, turn)

    def on_update(self, update: Tensor) -> Tensor:
        """The update that leaves the client."""
        for defence, turn in self._turns:
            update = defence.on_update(update, turn)
        return update


UNGUARDED = Guard()
"""No defence at all."""
