"""A log of updates from a plain PyTorch loop, without FedSiege: the recipe of the documentation, word for word."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]


def flat(state: State) -> Tensor:
    return torch.cat([t.detach().cpu().float().flatten() for t in state.values() if t.is_floating_point()])


def begin(folder: Path, state: State, clients: int) -> None:
    folder.mkdir(parents=True)
    tensors = [{"name": name, "shape": list(t.shape)} for name, t in state.items() if t.is_floating_point()]
    log = {"format": "fedsiege-updates", "version": 1, "source": "my loop", "clients": clients, "tensors": tensors}
    (folder / "log.json").write_text(json.dumps(log))


def record(folder: Path, number: int, start: State, end: State, replies: dict[int, tuple[State, int]]) -> None:
    """Round `number`, from 1: the global model before and after, and by client its model and number of examples."""
    tensors = {"start": flat(start), "end": flat(end), "clients": torch.tensor(list(replies))}
    tensors["updates"] = torch.stack([flat(state) - tensors["start"] for state, _ in replies.values()])
    tensors["weights"] = torch.tensor([n for _, n in replies.values()], dtype=torch.float64)
    save_file(tensors, folder / f"round_{number:06d}.safetensors")
