"""Named random streams: every draw says what it is for, and nothing else moves it.

`stream(seed, "client", round, client)` gives the same numbers on any engine and in any client order, because
the stream is a pure function of its name. No generator is shared, none needs to be checkpointed.
"""

import hashlib

import numpy as np
import torch


def entropy(seed: int, *name: str | int) -> int:
    """A 128-bit integer that depends on every part of the name (SHA-256, so close names are unrelated)."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in name)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """The NumPy generator of this name."""
    return np.random.Generator(np.random.PCG64(entropy(seed, *name)))


def torch_stream(seed: int, *name: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """The torch generator of this name, on `device`."""
    generator = torch.Generator(device=device)
    generator.manual_seed(entropy(seed, *name) % 2**63)
    return generator
