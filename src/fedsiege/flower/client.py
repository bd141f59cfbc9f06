"""A client of the experiment as a Flower ClientApp: it trains and defends, or does what the adversary does."""

import functools
import time
from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from fedsiege.errors import FedSiegeError, InputError
from fedsiege.experiment.run import torch_threads
from fedsiege.federation.adversary import ADVERSARY, scene_of
from fedsiege.federation.local import answer_of, crafted
from fedsiege.federation.server import remember
from fedsiege.federation.state import Models, State
from fedsiege.flower import wire
from fedsiege.flower.seat import Seat, dealt, digest, number_of, seat_of
from fedsiege.flower.wire import Letter

KEPT, DONE = "fedsiege.memory", "fedsiege.done"
"""Where a client's context keeps what its defences keep, and how many answers it has given."""

Handler = Callable[[Message, Context, Seat], Letter]


def client_app(config: Callable[[Context], str]) -> ClientApp:
    """The ClientApp of the experiment whose config, as JSON with its defaults, `config` finds."""
    app = ClientApp()
    for register, handler in ((app.query(), join), (app.train(), train), (app.train("attack"), attack)):
        register(functools.partial(handle, handler=handler, config=config))
    return app


def handle(message: Message, context: Context, handler: Handler, config: Callable[[Context], str]) -> Message:
    """A reply to any message: what `handler` makes of it, or the one line that says why it cannot be done."""
    try:
        seat = seat_of(config(context), context)
        with torch_threads(seat.experiment.threads):
            letter = handler(message, context, seat)
    except FedSiegeError as error:
        letter = Letter({"problem": str(error)}, {})
    return Message(wire.content(letter), reply_to=message)


def join(message: Message, context: Context, seat: Seat) -> Letter:  # noqa: ARG001 - as all handlers
    """Who this node is, and which experiment it carries out."""
    client = number_of(context)
    own = dealt(seat.federation.shards[client])
    return Letter({"client": client, "experiment": digest(seat.experiment), "data": own}, {})


def train(message: Message, context: Context, seat: Seat) -> Letter:
    """An honest client's answer; its defences' memory stays in the context, and is sent only where asked for."""
    order, client = _order(message, seat), number_of(context)
    number, age = int(order.about["round"]), int(order.about["age"])
    device = seat.federation.task.device
    simulated = (
        seat.client is None
    )  # a site of its own neither hands out what its defences keep nor takes another's
    memory = dict(order.memory) if simulated and order.memory is not None else _recalled(context)
    answer = answer_of(seat.federation, number, client, age, order.arrays["start"].to(device), memory)
    for label, kept in answer.memory.items():
        remember(memory, f"{label}/{client}", kept)
    answered = _keep(context, memory)
    about = {
        "client": client,
        "weight": answer.weight,
        "counters": {label: dict(counters) for label, counters in answer.counters.items()},
        "answered": answered,
        "keeps": bool(memory),
    }
    return Letter(about, {"update": answer.update}, memory if simulated and order.about["copy"] else None)


def attack(message: Message, context: Context, seat: Seat) -> Letter:
    """A compromised client's answer: its row of what the adversary that plays all of them sends.

    Each attacker works out the same rows for itself, so that none of them has to tell the others anything.
    """
    order, client = _order(message, seat), number_of(context)
    federation = seat.federation
    if seat.client is not None:
        raise InputError(
            f"node-config: data: client {client} is compromised, and the adversary knows more than its data; "
            "expected no data: it reads the experiment's own"
        )
    since = time.monotonic()
    memory = {f"{ADVERSARY}/{name}": kept for name, kept in (order.memory or {}).items()}
    start = order.arrays["start"].to(federation.task.device)
    number = int(order.about["round"])
    scene = scene_of(federation, number, list(order.about["invited"]), State(number - 1, Models((start,)), memory))
    known = order.arrays.get("known")
    scene.honest_rows = None if known is None else known.to(start.device)
    rows = crafted(federation, scene)
    about = {
        "client": client,
        "weight": float(len(federation.shards[client])),
        "counters": {ADVERSARY: dict(scene.counters)},
        "seconds": time.monotonic() - since,
    }
    return Letter(about, {"update": rows[scene.clients.index(client)]}, scene.memory)


def _order(message: Message, seat: Seat) -> Letter:
    """What the server asks for; InputError where it is of another experiment."""
    try:
        order = wire.read(message)
    except wire.UnreadableError as error:
        raise InputError(f"the server's message: {error}") from None
    if order.about.get("experiment") != digest(seat.experiment):
        raise InputError(f"the server carries out another experiment ({', '.join(map(str, order.about))})")
    return order


def _recalled(context: Context) -> dict[str, Tensor]:
    """What the client's defences keep of its earlier rounds."""
    record = context.state.array_records.get(KEPT)
    return {} if record is None else wire.unpacked(record)


def _keep(context: Context, memory: Mapping[str, Tensor]) -> int:
    """Keep the defences' memory; returns how many answers this node has given in this run, this one included."""
    if memory:
        context.state[KEPT] = wire.packed(memory)
    before = context.state.config_records.get(DONE)
    answered = 1 + (0 if before is None else int(str(before["answers"])))
    context.state[DONE] = ConfigRecord({"answers": answered})
    return answered
