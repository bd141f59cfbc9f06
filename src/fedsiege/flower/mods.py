"""What mods around somebody's client have in common: the update in its reply, and what a node is told.

The update is what the arrays of a train message became, as one flat vector; there is a way back into the reply.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import yaml
from flwr.app import Array, ArrayRecord, Context, Message
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsiege.errors import InputError
from fedsiege.flower.arrays import UnlikeError
from fedsiege.flower.arrays import read as read_array
from fedsiege.promises.base import is_trained
from fedsiege.records import Layout
from fedsiege.task import Task


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of floats that goes there and back: the records that it is in, its key, name, type and shape."""

    sent: str
    returned: str
    key: str
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(slots=True)
class Delta:
    """What a client's training made of a model, in float32.

    Args:
        layout: what lies where: trained tensors first, as their record has them, then running statistics; or as a
            given layout has it.
        start: the model [d] that the message brought.
        update: what the reply has in its place, less it [d].

    """

    layout: Layout
    start: Tensor
    update: Tensor
    places: tuple[Place, ...]
    starts: tuple[NDArray[Any], ...]
    reply: Message

    @classmethod
    def of(
        cls,
        message: Message,
        reply: Message,
        like: Layout | None = None,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> "Delta":
        """The update of a reply; InputError unless every array of it has its like in the message.

        Anything else would leave the client as it is. Integer arrays are left alone.

        Args:
            message: the train message.
            reply: its answer.
            like: the layout of a model, whose tensors the arrays have to be.
            names: what arrays are called there, where they have other names here.

        """
        places = in_order(paired(message, reply, names), like)
        starts, changes = [], []
        for place in places:
            before = read(message.content.array_records[place.sent], place.key, "the message")
            after = read(reply.content.array_records[place.returned], place.key, "the reply")
            wide = np.result_type(place.dtype, np.float32)
            starts.append(before)
            changes.append(np.subtract(after, before, dtype=wide).astype(np.float32).reshape(-1))
        return cls(
            layout=layout_of(places) if like is None else like,
            start=torch.from_numpy(np.concatenate([one.astype(np.float32).reshape(-1) for one in starts])),
            update=torch.from_numpy(np.concatenate(changes)),
            places=places,
            starts=tuple(starts),
            reply=reply,
        )

    def write(self, changed: Tensor) -> None:
        """Make the reply carry another update [d]; tensors whose part of it is the same keep their bytes."""
        for (_, part), place, before in zip(self.layout.slices(), self.places, self.starts, strict=True):
            if torch.equal(changed[part], self.update[part]):
                continue
            wide = np.result_type(place.dtype, np.float32)
            after = before.astype(wide) + changed[part].numpy().astype(wide).reshape(place.shape)
            self.reply.content.array_records[place.returned][place.key] = Array(after.astype(place.dtype))


def paired(message: Message, reply: Message, names: Mapping[str, str]) -> list[Place]:
    """The float tensors of a reply with their likes in the message; InputError where one has none."""
    sent, returned = message.content.array_records, reply.content.array_records
    if not returned:
        raise InputError("the reply has no arrays; expected the trained model")
    # Older apps answer under another name than they were asked under; then there is one of each.
    lone = len(sent) == 1 and len(returned) == 1
    found = list[Place]()
    for name, record in returned.items():
        partner = next(iter(sent)) if lone else name
        if partner not in sent:
            raise InputError(f"the reply's arrays {name!r} have no like in the message; expected {list(sent)}")
        for key in record:
            values = read(record, key, "the reply")
            if not np.issubdtype(values.dtype, np.floating):
                continue
            if key not in sent[partner] or tuple(sent[partner][key].shape) != values.shape:
                raise InputError(f"the reply's {name}/{key} of shape {values.shape} has no like in the message")
            label = key if len(returned) == 1 else f"{name}/{key}"
            found.append(Place(partner, name, key, names.get(label, label), values.dtype, values.shape))
    if not sum(math.prod(place.shape) for place in found):
        raise InputError("the reply has no arrays of floats; expected the trained model")
    return found


def in_order(places: Sequence[Place], like: Layout | None) -> tuple[Place, ...]:
    """The tensors as a flat vector has them; InputError where they are not those of a given layout."""
    if like is None:
        return tuple(sorted(places, key=lambda place: not is_trained(place.name)))
    known = {place.name: place for place in places}
    for name, shape in zip(like.names, like.shapes, strict=True):
        if name not in known or known[name].shape != shape:
            got = f"shape {known[name].shape}" if name in known else f"no such array among {list(known)[:5]}"
            raise InputError(f"fedsiege-model: {name} of shape {shape}: the app's model has {got}")
    if more := known.keys() - set(like.names):
        raise InputError(f"fedsiege-model: has no {min(more)}, which the app's model has")
    return tuple(known[name] for name in like.names)


def layout_of(places: Sequence[Place]) -> Layout:
    """The layout of tensors in this order."""
    return Layout(
        names=tuple(place.name for place in places),
        shapes=tuple(place.shape for place in places),
        kinds=tuple("trained" if is_trained(place.name) else "buffer" for place in places),
        groups=tuple(place.name.partition(".")[0] for place in places),
    )


def read(record: ArrayRecord, key: str, where: str) -> NDArray[Any]:
    """An array of a record, without unpickling; InputError where it cannot be read."""
    try:
        return read_array(key, record[key])
    except UnlikeError as error:
        raise InputError(f"{where}: {error}") from None


class Outline(Task):
    """A task that knows where each tensor of a model lies, and has no model: all that a finished update needs."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.device = torch.device("cpu")
        self.module = nn.Module()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError(f"{name} of the model is needed, and a mod sees finished updates alone")


def private(context: Context, name: str) -> str:
    """What a node-config, or the node's environment, says of `fedsiege-<name>`; empty where neither does."""
    key = f"fedsiege-{name}"
    return str(context.node_config.get(key, "")) or os.environ.get(key.replace("-", "_").upper(), "")


def own(context: Context, name: str) -> str:
    """A setting that only the node may make; InputError where the run-config, which the server knows, has it."""
    key = f"fedsiege-{name}"
    if context.run_config.get(key, "") != "":
        raise InputError(f"{key}: got it from the run-config, which the server knows; expected it of the node")
    return private(context, name)


def listed(said: object, where: str) -> list[dict[str, Any]]:
    """Components out of a setting's YAML; a lone one is a list of one."""
    found = plain(said, where)
    if found is None or found == "":
        return []
    found = found if isinstance(found, list) else [found]
    specs = [{"name": one} if isinstance(one, str) else one for one in found]
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in specs):
        raise InputError(f"{where}: got {said!r}; expected [{{name: ..., field: ...}}, ...]")
    return specs


def plain(said: object, where: str) -> Any:
    """The value that a setting's YAML, or JSON, holds."""
    if not isinstance(said, str):
        return said
    try:
        return yaml.safe_load(said)
    except yaml.YAMLError:
        raise InputError(f"{where}: got {said!r}; expected YAML or JSON") from None
