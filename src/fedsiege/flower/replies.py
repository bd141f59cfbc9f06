"""What a node answered to an order: an answer that the federation can use, or why it is none.

A reply comes from a machine that somebody else runs. Nothing of it is believed unseen: its arrays may be no arrays,
its numbers beyond all numbers, its words a terminal's commands; and it may only speak of what is its client's own.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Message
from torch import Tensor

from fedsiege.federation.adversary import ADVERSARY
from fedsiege.federation.state import Absence, Answer, Reply
from fedsiege.flower import wire
from fedsiege.flower.wire import Letter
from fedsiege.records import Counters, Memory
from fedsiege.update_log import shown

MOST = 1e12
"""The largest counter that is believed: sums of them must stay numbers."""

KINDS = frozenset({torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool})
"""The types of what a component may keep."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a client was asked for.

    Args:
        client: its number.
        number: the round.
        age: of the model that it was sent.
        weight: its number of examples, which it has to answer with.
        labels: of what it may speak of: its defences, or the adversary.
        copies: whether what those keep is wanted.
        attack: whether it is to attack.

    """

    client: int
    number: int
    age: int
    weight: float
    labels: frozenset[str]
    copies: bool = False
    attack: bool = False


def read(message: Message, order: Order) -> tuple[Reply, Mapping[str, Any]]:
    """The answer in a reply, and what it says of itself; an Absence where there is none."""
    try:
        letter = wire.read(message)
    except wire.UnreadableError as error:
        return Absence(order.client, "failed", shown(error, 200)), {}
    fault = faulty(letter, order)
    if fault:
        return Absence(order.client, "failed", fault), {}
    kept = kept_of(letter.memory or {}, order) if order.copies or order.attack else {}
    counters = counters_of(letter.about.get("counters"), order.labels)
    answer = Answer(order.client, letter.arrays["update"], order.weight, order.age, counters, kept)
    return answer, letter.about


def faulty(letter: Letter, order: Order) -> str:
    """Why a letter is no answer to an order; empty where it is one."""
    about, update = letter.about, letter.arrays.get("update")
    if "problem" in about:
        return shown(about["problem"], 200)
    if about.get("client") != order.client:
        return f"the reply is client {shown(about.get('client'), 40)}'s"
    if update is None:
        return "the reply has no update"
    if update.dtype != torch.float32:
        return f"the reply has an update of {update.dtype}; expected float32"
    if about.get("weight") != order.weight:
        return f"the reply has weight {shown(about.get('weight'), 40)}; the client has {order.weight:g} examples"
    return ""


def counters_of(told: Any, labels: Collection[str]) -> dict[str, Counters]:
    """Counters as a node tells them, of the components that it may speak of, without whatever is none."""
    found: dict[str, Counters] = {}
    for label, counters in told.items() if isinstance(told, dict) else ():
        if label in labels and isinstance(counters, dict):
            pairs = ((shown(name, 40), number(n)) for name, n in counters.items())
            found[label] = {name: n for name, n in pairs if n is not None and abs(n) <= MOST}
    return found


def number(value: Any) -> float | None:
    """A finite number; None for anything else, integers beyond all floats among them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def kept_of(memory: Mapping[str, Tensor], order: Order) -> dict[str, Memory]:
    """What a client's components keep, by their labels: of its own alone, in types that a checkpoint takes."""
    if order.attack:
        return {ADVERSARY: {name: one for name, one in memory.items() if one.dtype in KINDS}}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in memory.items():
        label, mark, rest = name.partition(f"/{order.client}/")
        if mark and label in order.labels and tensor.dtype in KINDS:
            found.setdefault(label, {})[rest] = tensor
    return dict(found)
