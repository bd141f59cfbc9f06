"""The arrays of a Flower message as one flat vector, and what may be wrong with them: they come from outside."""

import math
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedsiege.errors import InputError
from fedsiege.update_log import Row, TensorSpec


class UnlikeError(ValueError):
    """Arrays that are not those of the model."""


def described(record: ArrayRecord) -> tuple[tuple[TensorSpec, ...], list[str]]:
    """The float tensors of a model, in order, and the names of the others."""
    tensors, skipped = list[TensorSpec](), list[str]()
    for name, array in record.items():
        try:
            values = _read(name, array)
        except UnlikeError as error:
            raise InputError(f"the model that was sent out: {error}") from None
        if np.issubdtype(values.dtype, np.floating):
            tensors.append(TensorSpec(name, values.shape))
        else:
            skipped.append(name)
    if not any(math.prod(tensor.shape) for tensor in tensors):
        raise InputError(
            f"the model that was sent out: got {skipped[:5] or 'no arrays'}; expected tensors of floats"
        )
    return tuple(tensors), skipped


def _read(name: str, array: Array) -> NDArray[Any]:
    """An array out of a message; UnlikeError for whatever cannot be read, without unpickling."""
    try:
        values: NDArray[Any] = array.numpy()
    except Exception as error:  # bytes from outside: NumPy's reader fails in many ways
        raise UnlikeError(f"{name}: cannot be read ({error})") from None
    return values


def flat(record: ArrayRecord, tensors: Sequence[TensorSpec], skipped: Container[str] = ()) -> Row:
    """The float tensors of a record in one vector [d] of float32; UnlikeError unless they are these.

    The `skipped` may be there too, as anything: averaging makes floats of counts.
    """
    row = np.empty(sum(math.prod(tensor.shape) for tensor in tensors), dtype=np.float32)
    place = 0
    for name, shape in tensors:
        if name not in record:
            raise UnlikeError(f"no array {name}; there are {len(record)}, the first {next(iter(record), 'none')}")
        values = _read(name, record[name])
        if values.shape != shape or not np.issubdtype(values.dtype, np.floating):
            raise UnlikeError(
                f"{name}: got {values.dtype} of shape {values.shape}; expected floats of shape {shape}"
            )
        end = place + values.size
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found there
            row[place:end] = values.reshape(-1)
        place = end
    known = {tensor.name for tensor in tensors}
    more = [name for name in record if name not in known and name not in skipped]
    if more:
        raise UnlikeError(f"{len(more)} arrays that the model has not, the first {more[0]}")
    return row


def same(one: Row, other: Row) -> bool:
    """Whether two models are the same to the bit; not-a-numbers are equal here."""
    return one is other or np.array_equal(one.view(np.int32), other.view(np.int32))
