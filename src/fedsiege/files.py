"""Files that are whole or absent: written aside, flushed to disk, renamed into place."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor


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
    """Write JSON with sorted keys dropped nowhere and NaN nowhere: a NaN is an error here, not in the reader."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write named tensors with a JSON description and a checksum over both (safetensors, never pickle)."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = json.dumps(about, sort_keys=True, allow_nan=False)
    metadata = {"about": described, "sha256": digest(ready, described)}
    write_bytes(path, save(ready, metadata))


def digest(tensors: Mapping[str, Tensor], described: str) -> str:
    """SHA-256 over description, names, types, shapes and bytes."""
    state = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        state.update(memoryview(tensor.reshape(-1).numpy()).cast("B") if tensor.numel() else b"")
    return state.hexdigest()
