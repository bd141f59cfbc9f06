"""The arrays of a Flower message as one flat vector, and what may be wrong with them: they come from outside."""

import io
import math
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedsiege.errors import InputError
from fedsiege.update_log import Row, TensorSpec, shown


class UnlikeError(ValueError):
    """Arrays that are not those of the model."""


def described(record: ArrayRecord) -> tuple[tuple[TensorSpec, ...], list[str]]:
    """The float tensors of a model, in order, and the names of the others."""
    tensors, skipped = list[TensorSpec](), list[str]()
    for name, array in record.items():
        try:
            values = read(name, array)
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


def read(name: str, array: Array) -> NDArray[Any]:
    """An array out of a message; UnlikeError for whatever is none, without unpickling."""
    try:
        _check_header(array.data)
        values: NDArray[Any] = array.numpy()
    except Exception as error:  # bytes from outside: NumPy's reader fails in many ways, for want of memory too
        raise UnlikeError(f"{name}: cannot be read ({shown(error) or type(error).__name__})") from None
    return values


def _check_header(data: bytes) -> None:
    """ValueError for bytes that are not the one array that they say they are.

    NumPy's reader takes archives of arrays as well, and makes room for what a header says before it reads on.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = header(file)
    left = len(data) - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != left:
        raise ValueError(f"{left} bytes for an array of {kind} and shape {shape}")


def flat(record: ArrayRecord, tensors: Sequence[TensorSpec], skipped: Container[str] = ()) -> Row:
    """The float tensors of a record in one vector [d] of float32; UnlikeError unless they are these.

    The `skipped` may be there too, as anything: averaging makes floats of counts.
    """
    row = np.empty(sum(math.prod(tensor.shape) for tensor in tensors), dtype=np.float32)
    place = 0
    for name, shape in tensors:
        if name not in record:
            raise UnlikeError(f"no array {name}; there are {len(record)}, the first {next(iter(record), 'none')}")
        values = read(name, record[name])
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
