"""The server's side of the experiment on Flower: orders go out to nodes, and replies come back as answers.

Replies come in the order in which nodes finish, from nodes whose ids are random. Here they are sorted by the
client's own number before anything is added up, so that a run gives the same bytes as on any other engine.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedsiege.attacks.poisoning.base import Scene
from fedsiege.errors import FedSiegeError, InputError
from fedsiege.experiment.config import EngineSpec
from fedsiege.federation.adversary import ADVERSARY
from fedsiege.federation.rounds import Federation, add
from fedsiege.federation.state import Absence, Answer, Models, Reply
from fedsiege.flower import replies, wire
from fedsiege.flower.replies import Order
from fedsiege.flower.seat import dealt
from fedsiege.flower.wire import Letter
from fedsiege.records import Counters, Examples, Memory
from fedsiege.update_log import shown

PULL = 0.02, 0.25
"""Seconds between two looks for replies: at first, and at most."""

NEWCOMERS = 10.0
"""Seconds that a round waits at most for nodes that came since the last one to say who they are."""


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
    refused: set[int] = field(default_factory=set, init=False)
    """The nodes that have no place in this experiment."""
    joining: dict[str, int] = field(default_factory=dict, init=False)
    """The nodes that were asked who they are and did not say yet, by the message's id."""
    pending: dict[str, Order] = field(default_factory=dict, init=False)
    """Orders without a reply, by the message's id."""
    came: dict[int, tuple[Order, Answer]] = field(default_factory=dict, init=False)
    """Late answers that no round has taken yet, the newest of each client."""
    given: dict[int, int] = field(default_factory=dict, init=False)
    """How many answers each client is known to have given; -1 for those of an earlier run, which went on here."""

    def answers(
        self, federation: Federation, number: int, invited: list[int], models: Models, memory: Memory
    ) -> Iterator[Reply]:
        """The honest clients' replies to round `number`, and late ones of earlier rounds that are still taken."""
        self._meet(federation.shards)
        deadline = self._deadline()
        if not self.given and number > 1:
            self.given = {client: -1 for before in range(1, number) for client in federation.invited(before)}
        everybody, honest = set(federation.invited(number)), set(invited)
        late = self._late(number)
        clients = sorted({*invited, *(client for client in late if client not in everybody)})
        size = self.spec.in_flight or max(1, len(clients))
        for first in range(0, len(clients), size):
            some = clients[first : first + size]
            asked = [client for client in some if client in honest]
            orders = [self._order(federation, number, client, models, memory) for client in asked]
            found = self._asked(asked, orders, deadline)
            late |= self._late(number)
            for client in some:
                reply = found.get(client)
                if client in late and not isinstance(reply, Answer):
                    reply = late[client]
                if isinstance(reply, Answer):
                    self.came.pop(client, None)
                if reply is not None:
                    yield reply

    def poisoned(self, federation: Federation, scene: Scene) -> Iterator[Reply]:
        """The attackers' replies. What they keep, and know of honest updates, travels with the run's messages."""
        about = {"round": scene.number, "age": 0, "invited": federation.invited(scene.number)}
        arrays = {"start": scene.start}
        if scene.honest_rows is not None:
            arrays["known"] = scene.honest_rows
        letter = Letter({**about, "experiment": self.experiment}, arrays, scene.memory)
        own = frozenset({ADVERSARY})
        orders = [
            (Order(client, scene.number, 0, float(len(federation.shards[client])), own, attack=True), letter)
            for client in scene.clients
        ]
        found = self._asked(scene.clients, orders, self._deadline())
        first = True
        for client in scene.clients:
            reply = found[client]
            if isinstance(reply, Answer):
                if first:  # all attackers work out the same: one of them says what they keep and counted
                    told = dict(reply.counters.get(ADVERSARY, {}))
                    scene.memory, scene.seconds = reply.memory.get(ADVERSARY, {}), told.pop("seconds", 0.0)
                    add(scene.counters, told)
                    first = False
                reply = Answer(client, reply.update, reply.weight, reply.age)
            yield reply

    def seat(self, nodes: Sequence[int]) -> None:
        """Take the nodes for clients 0, 1, ... unasked; what they answer says whether that is right."""
        self.nodes = dict(enumerate(nodes))

    def _order(
        self, federation: Federation, number: int, client: int, models: Models, memory: Memory
    ) -> tuple[Order, Letter]:
        """What an honest client is told: the model it trains, and, after an interruption, what it kept."""
        age = federation.age(number, client, min(len(models), federation.delay + 1))
        about = {"round": number, "age": age, "copy": self.copies, "experiment": self.experiment}
        using = [one for one in federation.defences if client in one.clients]
        weight, labels = float(len(federation.shards[client])), frozenset(one.label for one in using)
        kept = None
        if self.copies and self.given.get(client, -1) < 0:
            places = tuple(one.place(client) for one in using)
            kept = {name: tensor for name, tensor in memory.items() if name.startswith(places)} if places else {}
        return Order(client, number, age, weight, labels, self.copies), Letter(
            about, {"start": models[age]}, kept or None
        )

    def _asked(
        self, clients: Sequence[int], orders: Sequence[tuple[Order, Letter]], deadline: float
    ) -> dict[int, Reply]:
        """Send orders and wait for the replies; what is not there when the time is up is late."""
        found: dict[int, Reply] = {}
        waiting: dict[str, int] = {}
        for order, letter in orders:
            node = self.nodes.get(order.client)
            sent = None if node is None else self._sent(node, order, letter)
            if sent is None:
                found[order.client] = Absence(order.client, "missing", "its node is not there")
            else:
                self.pending[sent] = order
                waiting[sent] = order.client
        for message in self._replies(waiting, deadline):
            order = self.pending.pop(message.metadata.reply_to_message_id)
            found[order.client] = self._answer(message, order)
        said = f"no answer in {self.spec.timeout:g} s" if self.spec.timeout else ""
        return {client: found.get(client, Absence(client, "late", said)) for client in clients}

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

    def _late(self, number: int) -> dict[int, Answer]:
        """Answers to orders of earlier rounds that can be taken in round `number`."""
        old = {sent: order for sent, order in self.pending.items() if order.number < number}
        for message in self.grid.pull_messages(sorted(old)) if old else ():
            order = self.pending.pop(message.metadata.reply_to_message_id)
            reply = self._answer(message, order)
            before = self.came.get(order.client)
            newest = before is None or before[0].number < order.number
            if isinstance(reply, Answer) and not order.attack and newest:
                self.came[order.client] = order, reply
        oldest = number - self.spec.staleness
        self.came = {client: one for client, one in self.came.items() if one[0].number >= oldest}
        return {client: aged(answer, number - order.number) for client, (order, answer) in self.came.items()}

    def _answer(self, message: Message, order: Order) -> Reply:
        """What became of an order."""
        reply, about = replies.read(message, order)
        if isinstance(reply, Absence):
            return reply
        counters = dict(reply.counters)
        if order.attack:
            counters[ADVERSARY] = {
                **counters.get(ADVERSARY, {}),
                "seconds": replies.number(about.get("seconds")) or 0.0,
            }
        else:
            self._compare(about, order.client, counters)
        return replace(reply, counters=counters)

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

    def _meet(self, shards: Sequence[Examples]) -> None:
        """Find out which node is which client: at first with patience, then those that came or came back."""
        first = not self.nodes
        deadline = time.monotonic() + (self.spec.patience if first else NEWCOMERS)
        fresh = set[str]()
        while True:
            here = set(self.grid.get_node_ids())
            self.nodes = {client: node for client, node in self.nodes.items() if node in here}
            self.joining = {sent: node for sent, node in self.joining.items() if node in here}
            self.refused &= here
            fresh |= self._ask(sorted(here - {*self.nodes.values(), *self.joining.values(), *self.refused}))
            self._welcome(shards, first)
            waited = len(self.nodes) < len(shards) and (first or not fresh.isdisjoint(self.joining))
            if not waited or time.monotonic() > deadline:
                break
            self.check()
            time.sleep(PULL[1])
        if not self.nodes:
            raise FedSiegeError(
                f"engine: no client's node came in {self.spec.patience:g} s; start them, or raise engine.patience"
            )

    def _ask(self, nodes: Sequence[int]) -> set[str]:
        """Ask nodes who they are; the messages' ids."""
        asked: dict[str, int] = {}
        for node in nodes:
            message = Message(wire.content(Letter({}, {})), node, wire.JOIN)
            ids = list(self.grid.push_messages([message]))
            if ids and ids[0]:
                asked[ids[0]] = node
        self.joining |= asked
        return set(asked)

    def _welcome(self, shards: Sequence[Examples], first: bool) -> None:
        """Give the nodes that said who they are their places.

        Before the first round, InputError for one that has none. Later it is left out: it must not end the run. A
        client's node keeps its place while it is there; another that says it is the same client is asked again.
        """
        for message in self.grid.pull_messages(sorted(self.joining)) if self.joining else ():
            node = self.joining.pop(message.metadata.reply_to_message_id)
            try:
                client = self._place(message, shards)
                if first and client in self.nodes:
                    raise InputError(f"says it is client {client}, as node {self.nodes[client]} does")
            except InputError as error:
                if first:
                    raise InputError(f"node {node}: {error}") from None
                self.refused.add(node)
            else:
                self.nodes.setdefault(client, node)

    def _place(self, message: Message, shards: Sequence[Examples]) -> int:
        """Which client a node says it is; InputError where it cannot be that one in this experiment."""
        try:
            about = wire.read(message).about
        except wire.UnreadableError as error:
            raise InputError(shown(error, 200)) from None
        if "problem" in about:
            raise InputError(shown(about["problem"], 200))
        client = about.get("client")
        if about.get("experiment") != self.experiment:
            raise InputError("carries out another experiment, or has another version; expected the server's")
        if not isinstance(client, int) or not 0 <= client < len(shards):
            raise InputError(f"says it is client {shown(client, 40)}; expected 0 to {len(shards) - 1}")
        if about.get("data") != dealt(shards[client]):
            raise InputError(
                f"has other data than the experiment deals to client {client}; write the sites' files again where "
                "data, seed, partition or clients changed"
            )
        return client


def aged(answer: Answer, rounds: int) -> Answer:
    """An answer that is taken so many rounds after it was asked for."""
    counters = {**answer.counters, "server": dict(answer.counters.get("server", {}))}
    add(counters["server"], {"taken_late": 1.0})
    return replace(answer, age=answer.age + rounds, counters=counters)
