"""What travels between the server and its clients, as Flower's records: arrays as they are, all else as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedsiege.flower import arrays
from fedsiege.update_log import shown

ABOUT, ARRAYS, MEMORY = "about", "arrays", "memory"
"""The records of a message: the JSON, the arrays by name, and what components keep."""

JOIN, TRAIN, ATTACK = "query", "train", "train.attack"
"""The types of messages: who are you, train honestly, do what the adversary does."""


class UnreadableError(Exception):
    """A message that is not what it should be; its text says how."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as both sides see it: JSON, arrays by name, and memory by name; None where it brings none."""

    about: Mapping[str, Any]
    arrays: Mapping[str, Tensor]
    memory: Mapping[str, Tensor] | None = None


def content(letter: Letter) -> RecordDict:
    """A letter as Flower's records."""
    records = RecordDict({ABOUT: ConfigRecord({"json": json.dumps(letter.about, allow_nan=False)})})
    records[ARRAYS] = packed(letter.arrays)
    if letter.memory is not None:
        records[MEMORY] = packed(letter.memory)
    return records


def read(message: Message) -> Letter:
    """The letter in a message; UnreadableError where there is none."""
    if message.has_error():
        raise UnreadableError(f"error {message.error.code}: {reason(message)}")
    records = message.content
    about = json_of(records)
    memory = records.array_records.get(MEMORY)
    sent = records.array_records.get(ARRAYS)
    if sent is None:
        raise UnreadableError("the reply has no arrays")
    return Letter(about, unpacked(sent), None if memory is None else unpacked(memory))


def json_of(records: RecordDict) -> dict[str, Any]:
    """What a letter says beside its arrays."""
    try:
        found = json.loads(str(records.config_records[ABOUT]["json"]))
    except (KeyError, ValueError, RecursionError):
        raise UnreadableError("the reply is empty, or not one of this experiment's") from None
    if not isinstance(found, dict):
        raise UnreadableError("the reply says nothing of itself")
    return found


def reason(message: Message) -> str:
    """Why a node could not answer, in one line."""
    return shown(message.error.reason or "no reason given", 200)


def packed(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as an ArrayRecord: their own types and bytes."""
    ready = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}
    return ArrayRecord({name: Array(array.reshape(tensors[name].shape)) for name, array in ready.items()})


def unpacked(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors of an ArrayRecord; UnreadableError for what is none."""
    try:
        return {name: torch.from_numpy(arrays.read(name, array)) for name, array in record.items()}
    except (arrays.UnlikeError, TypeError) as error:  # torch has not all of NumPy's types
        raise UnreadableError(f"its arrays cannot be read: {shown(error)}") from None
