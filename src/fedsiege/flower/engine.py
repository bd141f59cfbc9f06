"""The server's side of the experiment on Flower: orders go out to nodes, and replies come back as answers.

Replies come in the order in which nodes finish, from nodes whose ids are random. Here they are sorted by the
client's own number before anything is added up, so that a run gives the same bytes as on any other engine.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from fedsiege.attacks.poisoning.base import Scene
from fedsiege.errors import FedSiegeError, InputError
from fedsiege.experiment.config import EngineSpec
from fedsiege.federation.rounds import Federation, add
from fedsiege.federation.state import Absence, Answer, Models, Reply
from fedsiege.flower import wire
from fedsiege.flower.wire import Letter
from fedsiege.records import Counters, Memory

PULL = 0.02, 0.25
"""Seconds between two looks for replies: at first, and at most."""

NEWCOMERS = 10.0
"""Seconds that a round waits at most for nodes that came since the last one to say who they are."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a client was asked for: its round, the age of the model it was sent, and whether it is to attack."""

    client: int
    number: int
    age: int
    attack: bool = False


@dataclass(slots=True)
class FlowerEngine:
    """Clients are Flower's nodes; each says by its `partition-id` which client it is.

    Args:
        grid: the way to the nodes.
        spec: how long is waited for them, and what becomes of late answers.
        experiment: what `seat.digest` gives for the config; a node with another one is refused.
        copies: whether answers bring what the clients' defences keep, so that a run can go on after it was
            interrupted. That is for simulations: on real clients it stays where it is.
        check: called while nothing comes; raises what ended the nodes.

    """

    grid: Grid
    spec: EngineSpec
    experiment: str
    copies: bool = False
    check: Callable[[], None] = field(default=lambda: None)
    nodes: dict[int, int] = field(default_factory=dict, init=False)
    """Node ids by client."""
    met: set[int] = field(default_factory=set, init=False)
    """The nodes that were asked who they are."""
    pending: dict[str, Order] = field(default_factory=dict, init=False)
    """Orders without a reply, by the message's id."""
    given: dict[int, int] = field(default_factory=dict, init=False)
    """How many answers each client is known to have given; -1 for those of an earlier run, which went on here."""

    def answers(
        self, federation: Federation, number: int, invited: list[int], models: Models, memory: Memory
    ) -> Iterator[Reply]:
        """The honest clients' replies to round `number`, and late ones of earlier rounds that are still taken."""
        self._meet(len(federation.shards))
        deadline = self._deadline()
        if not self.given and number > 1:
            self.given = {client: -1 for before in range(1, number) for client in federation.invited(before)}
        everybody = set(federation.invited(number))
        late = self._late(number, len(models))
        clients = sorted({*invited, *(client for client in late if client not in everybody)})
        size = self.spec.in_flight or max(1, len(clients))
        for first in range(0, len(clients), size):
            some = clients[first : first + size]
            asked = [client for client in some if client in invited]
            orders = [self._order(federation, number, client, models, memory) for client in asked]
            replies = self._asked(asked, orders, deadline)
            late |= self._late(number, len(models))
            for client in some:
                reply = replies.get(client)
                if client in late and not isinstance(reply, Answer):
                    yield late[client]
                elif reply is not None:
                    yield reply

    def poisoned(self, federation: Federation, scene: Scene) -> Iterator[Reply]:
        """The attackers' replies. What they keep, and know of honest updates, travels with the run's messages."""
        about = {"round": scene.number, "age": 0, "invited": federation.invited(scene.number)}
        arrays = {"start": scene.start}
        if scene.honest_rows is not None:
            arrays["known"] = scene.honest_rows
        letter = Letter({**about, "experiment": self.experiment}, arrays, scene.memory)
        orders = [(Order(client, scene.number, 0, attack=True), letter) for client in scene.clients]
        replies = self._asked(scene.clients, orders, self._deadline())
        first = True
        for client in scene.clients:
            reply = replies[client]
            if isinstance(reply, Answer):
                told = reply.counters.get("adversary", {})
                if first:  # all attackers work out the same: one of them says what they keep and counted
                    scene.memory = reply.memory.get("adversary", {})
                    scene.seconds = told.pop("seconds", 0.0) if isinstance(told, dict) else 0.0
                    add(scene.counters, told)
                    first = False
                reply = Answer(client, reply.update, reply.weight, reply.age)
            yield reply

    def seat(self, nodes: Sequence[int]) -> None:
        """Take the nodes for clients 0, 1, ... unasked; what they answer says whether that is right."""
        self.nodes = dict(enumerate(nodes))
        self.met = set(nodes)

    def _order(
        self, federation: Federation, number: int, client: int, models: Models, memory: Memory
    ) -> tuple[Order, Letter]:
        """What an honest client is told: the model it trains, and, after an interruption, what it kept."""
        age = federation.age(number, client, min(len(models), federation.delay + 1))
        about = {"round": number, "age": age, "copy": self.copies, "experiment": self.experiment}
        kept = None
        if self.copies and self.given.get(client, -1) < 0:
            places = tuple(one.place(client) for one in federation.defences if client in one.clients)
            kept = {name: tensor for name, tensor in memory.items() if name.startswith(places)} if places else {}
        return Order(client, number, age), Letter(about, {"start": models[age]}, kept or None)

    def _asked(
        self, clients: Sequence[int], orders: Sequence[tuple[Order, Letter]], deadline: float
    ) -> dict[int, Reply]:
        """Send orders and wait for the replies; what is not there when the time is up is late."""
        replies: dict[int, Reply] = {}
        waiting: dict[str, int] = {}
        for order, letter in orders:
            node = self.nodes.get(order.client)
            sent = None if node is None else self._sent(node, order, letter)
            if sent is None:
                replies[order.client] = Absence(order.client, "missing", "its node is not there")
            else:
                self.pending[sent] = order
                waiting[sent] = order.client
        for message in self._replies(waiting, deadline):
            order = self.pending.pop(message.metadata.reply_to_message_id)
            replies[order.client] = self._answer(message, order, 0)
        said = f"no answer in {self.spec.timeout:g} s" if self.spec.timeout else ""
        return {client: replies.get(client, Absence(client, "late", said)) for client in clients}

    def _sent(self, node: int, order: Order, letter: Letter) -> str | None:
        """Send one order; the message's id, None where it could not be sent."""
        kind = wire.ATTACK if order.attack else wire.TRAIN
        message = Message(wire.content(letter), node, kind, group_id=str(order.number))
        ids = list(self.grid.push_messages([message]))
        return ids[0] if ids and ids[0] else None

    def _replies(self, waiting: Mapping[str, Any], deadline: float) -> Iterator[Message]:
        """The replies to these messages, as they come, until all are there or the time is up."""
        left, pause = set(waiting), PULL[0]
        while left:
            found = list(self.grid.pull_messages(sorted(left)))
            for message in found:
                left.discard(message.metadata.reply_to_message_id)
                yield message
            if not left or time.monotonic() > deadline:
                return
            self.check()
            pause = PULL[0] if found else min(2 * pause, PULL[1])
            time.sleep(pause)

    def _late(self, number: int, available: int) -> dict[int, Answer]:
        """Answers to orders of earlier rounds that have come by now and are still taken, the newest of a client."""
        old = {sent: order for sent, order in self.pending.items() if order.number < number}
        found: dict[int, Answer] = {}
        for message in self.grid.pull_messages(sorted(old)) if old else ():
            order = self.pending.pop(message.metadata.reply_to_message_id)
            rounds = number - order.number
            if order.attack or rounds > self.spec.staleness or order.age + rounds > available - 1:
                continue
            reply = self._answer(message, order, rounds)
            if isinstance(reply, Answer) and (order.client not in found or reply.age < found[order.client].age):
                found[order.client] = reply
        return found

    def _answer(self, message: Message, order: Order, rounds: int) -> Reply:
        """A reply, `rounds` after it was asked for, as an answer, or why it is none."""
        try:
            letter = wire.read(message)
        except wire.UnreadableError as error:
            return Absence(order.client, "failed", str(error))
        if "problem" in letter.about:
            return Absence(order.client, "failed", str(letter.about["problem"])[:200])
        if letter.about.get("client") != order.client:
            return Absence(order.client, "failed", f"the reply is client {letter.about.get('client')!r}'s")
        update, weight = letter.arrays.get("update"), letter.about.get("weight")
        if update is None or update.dtype != torch.float32:
            kind = "no update" if update is None else f"an update of {update.dtype}"
            return Absence(order.client, "failed", f"the reply has {kind}; expected float32")
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0:
            return Absence(order.client, "failed", f"the reply has weight {weight!r}; expected a number above 0")
        counters = counters_of(letter.about.get("counters"))
        if order.attack:
            own = counters.setdefault("adversary", {})
            own["seconds"] = float(letter.about.get("seconds", 0.0))
            kept: Mapping[str, Memory] = {"adversary": letter.memory or {}}
        else:
            kept = self._kept(letter, order.client)
            self._compare(letter.about, order.client, counters)
        if rounds:
            add(counters.setdefault("server", {}), {"taken_late": 1.0})
        return Answer(order.client, update, float(weight), order.age + rounds, counters, kept)

    def _kept(self, letter: Letter, client: int) -> dict[str, Memory]:
        """What a client's defences keep, by their labels."""
        found: dict[str, dict[str, Any]] = {}
        for name, tensor in (letter.memory or {}).items():
            label, mark, rest = name.partition(f"/{client}/")
            if mark:
                found.setdefault(label, {})[rest] = tensor
        return dict(found)

    def _compare(self, about: Mapping[str, Any], client: int, counters: dict[str, Counters]) -> None:
        """Count a node that has forgotten what its defences kept: it knows of fewer answers than came."""
        answered = about.get("answered")
        if not isinstance(answered, int):
            return
        if about.get("keeps") and not self.copies and answered <= abs(self.given.get(client, 0)):
            add(counters.setdefault("server", {}), {"forgotten": 1.0})
        self.given[client] = answered

    def _deadline(self) -> float:
        return time.monotonic() + (self.spec.timeout or math.inf)

    def _meet(self, clients: int) -> None:
        """Find out which node is which client: at first with patience, then those that came or came back."""
        first = not self.met
        deadline = time.monotonic() + (self.spec.patience if first else NEWCOMERS)
        while True:
            here = set(self.grid.get_node_ids())
            self.met &= here
            self.nodes = {client: node for client, node in self.nodes.items() if node in here}
            self._welcome(sorted(here - self.met), deadline, clients, first)
            if not first or len(self.nodes) == clients or time.monotonic() > deadline:
                break
            self.check()
            time.sleep(PULL[1])
        if not self.nodes:
            raise FedSiegeError(
                f"engine: no client's node came in {self.spec.patience:g} s; start them, or raise engine.patience"
            )

    def _welcome(self, nodes: Sequence[int], deadline: float, clients: int, first: bool) -> None:
        """Ask nodes who they are, and give them their places.

        Before the first round, InputError for one that has none. Later it is left out: it must not end the run; and
        of two that say they are the same client the newer is, which was started again.
        """
        asked: dict[str, int] = {}
        for node in nodes:
            message = Message(wire.content(Letter({}, {})), node, wire.JOIN)
            ids = list(self.grid.push_messages([message]))
            if ids and ids[0]:
                asked[ids[0]] = node
        for message in self._replies(asked, deadline):
            node = asked[message.metadata.reply_to_message_id]
            self.met.add(node)
            try:
                client = self._place(message, clients)
                if first and client in self.nodes:
                    raise InputError(f"says it is client {client}, as node {self.nodes[client]} does")
            except InputError as error:
                if first:
                    raise InputError(f"node {node}: {error}") from None
                continue
            self.nodes[client] = node

    def _place(self, message: Message, clients: int) -> int:
        """Which client a node says it is, of so many; InputError where it cannot be one of this experiment's."""
        try:
            about = wire.read(message).about
        except wire.UnreadableError as error:
            raise InputError(str(error)) from None
        if "problem" in about:
            raise InputError(str(about["problem"]))
        client = about.get("client")
        if about.get("experiment") != self.experiment:
            raise InputError("carries out another experiment, or has another version; expected the server's")
        if not isinstance(client, int) or not 0 <= client < clients:
            raise InputError(f"says it is client {client!r}; expected 0 to {clients - 1}")
        return client


def counters_of(value: Any) -> dict[str, Counters]:
    """Counters as a node tells them, without whatever is none."""
    found: dict[str, Counters] = {}
    for label, counters in value.items() if isinstance(value, dict) else ():
        own = counters.items() if isinstance(counters, dict) else ()
        found[str(label)] = {
            str(name): float(n) for name, n in own if isinstance(n, int | float) and math.isfinite(n)
        }
    return found
