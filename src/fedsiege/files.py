"""Files that are whole or absent: written aside, flushed to disk, renamed into place."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedsiege.errors import InputError


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, or leave it as it was if anything goes wrong on the way."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, keys in the order given. A NaN is an error here, not in the reader."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write named tensors with a JSON description and a checksum over both (safetensors, never pickle).

    Equal tensors and descriptions give equal bytes. Therefore all metadata lies under one key: safetensors writes
    several in an order that changes from process to process.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sealed = {"about": about, "sha256": _digest(sorted(ready.items()), about)}
    write_bytes(path, save(ready, {"fedsiege": json.dumps(sealed, allow_nan=False)}))


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a file of `write_tensors`, by name; the checksum is `described`'s business."""
    with safe_open(path, framework="pt", device=device) as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}


def described(path: Path) -> dict[str, Any]:
    """The description in a file of `write_tensors`, after its checksum was found right.

    One tensor is in memory at a time. InputError when the file is missing, torn, altered or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            sealed = json.loads((file.metadata() or {})["fedsiege"])
            about: dict[str, Any] = sealed["about"]
            right = sealed["sha256"] == _digest(((n, file.get_tensor(n)) for n in sorted(file.keys())), about)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a file of this run ({error})") from None
    if not right:
        raise InputError(f"{path}: the checksum does not match the content; the file was altered")
    return about


def _digest(tensors: Iterable[tuple[str, Tensor]], about: Mapping[str, Any]) -> str:
    """SHA-256 over the description and the tensors' names, types, shapes and bytes."""
    state = hashlib.sha256(json.dumps(about, sort_keys=True, allow_nan=False).encode())
    for name, tensor in tensors:
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            state.update(tensor.reshape(-1).numpy().data.cast("B"))
    return state.hexdigest()
