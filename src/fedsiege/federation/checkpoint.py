"""Where a federation can go on from: the models a client may still ask for, the round, and what was noted so far."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fedsiege.errors import InputError
from fedsiege.federation.rounds import Models, State
from fedsiege.files import digest, write_tensors


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state of the federation and the runner's notes (accuracy so far, counters, seconds), which are JSON."""

    state: State
    notes: dict[str, Any]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, replacing the last one only when it is whole on disk."""
    tensors = {f"model_{age:03d}": checkpoint.state.models[age] for age in range(len(checkpoint.state.models))}
    write_tensors(path, tensors, {"round": checkpoint.state.number, "notes": checkpoint.notes})


def read(path: Path, device: str = "cpu") -> Checkpoint:
    """Read a checkpoint; InputError when the file is torn, altered or not one."""
    try:
        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        about = json.loads(metadata["about"])
        stored = metadata["sha256"]
        state = State(int(about["round"]), Models(tuple(tensors[name] for name in sorted(tensors, reverse=True))))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a checkpoint that can be read ({error})") from None
    if digest({name: t.cpu() for name, t in tensors.items()}, metadata["about"]) != stored:
        raise InputError(f"{path}: the checkpoint's checksum does not match its content; the file was altered")
    return Checkpoint(state, about["notes"])
