"""Evidence on disk: one file a recorded round, written once, read lazily, never pickled.

A trace holds what the server could compute from what it received, for a fixed list of candidates, and no word
on who is a member. Per round: losses [K, m], products of gradients and updates per parameter group [G, K, m],
squared norms, and the last layer's updates. Rows of clients that were absent are NaN.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedsiege.errors import InputError
from fedsiege.files import described, write_json, write_tensors
from fedsiege.records import Floats, Ids, Layout
from fedsiege.registry import nearest

Groups = Literal["total", "blocks", "tensors"]
SCHEMA = 1
HEADER = "trace.json"

CACHE = 2**29
"""Bytes of signals that stay in memory while attacks read a trace."""


@dataclass(frozen=True, slots=True)
class Header:
    """What all rounds of a trace share: K clients, C classes, the groups' names, the candidates' ids and labels."""

    clients: int
    classes: int
    groups: tuple[str, ...]
    head: tuple[int, ...]
    """Sizes of the last layer's tensors, in order (weight, then bias where there is one)."""
    ids: Ids
    labels: NDArray[np.int64]

    def write(self, folder: Path) -> None:
        """Begin a trace in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": SCHEMA,
            "clients": self.clients,
            "classes": self.classes,
            "groups": list(self.groups),
            "head": list(self.head),
            "ids": self.ids.tolist(),
            "labels": self.labels.tolist(),
        }
        write_json(folder / HEADER, {**content, "sha256": _checksum(content)})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The header of the trace in `folder`; InputError when there is none, or it was altered."""
        path = folder / HEADER
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder}: no {HEADER} here; expected the folder of a trace") from None
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error})") from None
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise InputError(f"{path}: not a trace of schema {SCHEMA}")
        if content.pop("sha256", None) != _checksum(content):
            raise InputError(f"{path}: the checksum does not match the content; the file was altered")
        return cls(
            clients=content["clients"],
            classes=content["classes"],
            groups=tuple(content["groups"]),
            head=tuple(content["head"]),
            ids=np.array(content["ids"], dtype=np.str_),
            labels=np.array(content["labels"], dtype=np.int64),
        )


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def grouping(layout: Layout, level: Groups) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The groups' names, and each trained tensor's group: all in one, by block of the model, or by tensor."""
    count = layout.kinds.count("trained")
    keys = {"total": ("total",) * count, "blocks": layout.groups[:count], "tensors": layout.names[:count]}[level]
    names = tuple(dict.fromkeys(keys))
    return names, tuple(names.index(key) for key in keys)


def path_of(folder: Path, number: int) -> Path:
    """The file of recorded round `number`."""
    return folder / f"round_{number:06d}.safetensors"


def recorded_in(folder: Path) -> tuple[int, ...]:
    """The numbers of the rounds whose files are in `folder`, increasing."""
    found = (path.stem.removeprefix("round_") for path in folder.glob("round_*.safetensors"))
    return tuple(sorted(int(number) for number in found if number.isdigit()))


def write_round(folder: Path, number: int, tensors: dict[str, Tensor]) -> int:
    """Write one recorded round; returns its size in bytes."""
    write_tensors(path_of(folder, number), tensors, {"round": number, "schema": SCHEMA})
    return path_of(folder, number).stat().st_size


class Trace:
    """A recorded federation, read round by round. It is the `Evidence` that attacks see through a `View`.

    `t` counts recorded rounds from 0; `rounds[t]` is the round's number in the federation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        header = Header.read(folder)
        self.clients, self.classes = header.clients, header.classes
        self.groups, self.head_sizes = header.groups, header.head
        self.ids, self.labels = header.ids, header.labels
        self.rounds = recorded_in(folder)
        # Attacks walk through all rounds, target by target: as many rounds stay in memory as fit into CACHE.
        size = 4 * self.clients * max(1, len(self.ids))
        self._signal = functools.lru_cache(maxsize=max(4, CACHE // size))(self._compute)
        self.present = functools.cache(self._present)
        self._sound = functools.cache(self._verified)

    def loss(self, t: int) -> NDArray[np.float32]:
        """The loss of each client's uploaded model on each candidate [K, m]."""
        return self._signal(t, "loss")

    def global_loss(self, t: int) -> NDArray[np.float32]:
        """The loss of the model that the round ended with [m]."""
        return self._signal(t, "global_loss")

    def cosine(self, t: int, groups: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Cosine of candidates' gradients with clients' negative updates [K, m]; over some groups, if named."""
        return self._signal(t, "cosine", None if groups is None else tuple(groups))

    def diff(self, t: int) -> NDArray[np.float32]:
        """|u|² - |u - g|² = 2<g, u> - |g|² [K, m]."""
        return self._signal(t, "diff")

    def norm2(self, t: int) -> NDArray[np.float32]:
        """The squared norm of each candidate's gradient at the round's start model [m]."""
        return self._signal(t, "norm2")

    def aggregate_cosine(self, t: int) -> NDArray[np.float32]:
        """As `cosine`, with the change of the global model for the update [m]."""
        return self._signal(t, "aggregate_cosine")

    def aggregate_diff(self, t: int) -> NDArray[np.float32]:
        """As `diff`, with the change of the global model for the update [m]."""
        return self._signal(t, "aggregate_diff")

    def head(self, t: int) -> NDArray[np.float32]:
        """How each client's update moved each class's output [K, C]: the last bias, else its weight's row sums."""
        rows: NDArray[np.float32] = self._read(t, "head")
        if len(self.head_sizes) == 2 and self.head_sizes[1] == self.classes:
            return rows[:, self.head_sizes[0] :]
        if len(self.head_sizes) > 1 or self.head_sizes[0] % self.classes:
            raise InputError(
                f"{self.folder}: the model's last layer has tensors of {self.head_sizes} values; "
                f"expected a weight and a bias with an output for each of the {self.classes} classes"
            )
        sums: NDArray[np.float32] = rows.reshape(len(rows), self.classes, -1).sum(2)
        return sums

    def logits(self, t: int) -> NDArray[np.float32]:
        """The logits of each client's uploaded model [K, m, C], where the run was asked to keep them."""
        logits: NDArray[np.float32] = self._read(t, "logits")
        return logits

    def _group(self, name: str) -> int:
        if name not in self.groups:
            raise InputError(
                f"{self.folder}: no group {name!r}{nearest(name, list(self.groups))}; expected some of "
                f"{', '.join(self.groups)}"
            )
        return self.groups.index(name)

    def _present(self, t: int) -> NDArray[np.bool_]:
        """Who answered in this round [K]."""
        return self._read(t, "present").astype(bool)

    def _read(self, t: int, name: str) -> NDArray[Any]:
        path = self._sound(t)
        try:
            with safe_open(path, framework="pt") as file:
                if name not in file.keys():  # noqa: SIM118 - a safetensors handle is not iterable
                    raise InputError(f"{path}: the trace has no {name}; it was recorded without")
                values: NDArray[Any] = file.get_tensor(name).numpy()
                return values
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read as a recorded round ({error})") from None

    def _verified(self, t: int) -> Path:
        """The file of a recorded round, after it was found whole and to be of this round."""
        path = path_of(self.folder, self.rounds[t])
        about = described(path)
        if about.get("schema") != SCHEMA or about.get("round") != self.rounds[t]:
            raise InputError(f"{path}: holds {about}; expected round {self.rounds[t]} of schema {SCHEMA}")
        return path

    def _compute(self, t: int, signal: str, groups: tuple[str, ...] | None = None) -> NDArray[np.float32]:
        values: NDArray[np.float32]
        if signal in ("loss", "global_loss"):
            losses: NDArray[np.float32] = self._read(t, signal)
            return losses
        chosen = slice(None) if groups is None else [self._group(name) for name in groups]
        # A row's gradients are those of its own start model: `start_of` names it (0 unless answers came late).
        norm2 = self._read(t, "gradient_norm2").astype(np.float64)[:, chosen].sum(1)
        if signal == "norm2":
            values = norm2[0].astype(np.float32)
            return values
        if signal.startswith("aggregate"):
            update2 = self._read(t, "aggregate_norm2")[chosen].sum(0, dtype=np.float64)
            return _compared(signal, self._read(t, "aggregate_dot")[chosen], update2, norm2[0])
        dot, start_of = self._read(t, "dot"), self._read(t, "start_of")
        update2 = self._read(t, "update_norm2")[chosen].sum(0, dtype=np.float64)
        values = np.empty(dot.shape[1:], dtype=np.float32)
        # A client at a time: its float64 rows stay in a core's cache.
        for client, row in enumerate(values):
            row[:] = _compared(signal, dot[chosen, client], update2[client], norm2[start_of[client]])
        return values


def _compared(signal: str, dot: Floats, update2: np.float64, norm2: NDArray[np.float64]) -> NDArray[np.float32]:
    """A cosine or difference [m] from products by group [g, m] and squared norms of update and gradients [m]."""
    total = dot.sum(0, dtype=np.float64)
    if signal.endswith("cosine"):
        size = np.sqrt(norm2 * update2)
        total = np.divide(total, size, out=np.zeros_like(total), where=size != 0)
    else:
        total = 2 * total - norm2
    values: NDArray[np.float32] = total.astype(np.float32)
    return values


def absent(values: Tensor, rows: Sequence[int], clients: int, axis: int) -> Tensor:
    """Spread rows of the clients that answered over all clients along `axis`; NaN where one was absent."""
    shape = list(values.shape)
    shape[axis] = clients
    full = torch.full(shape, torch.nan)
    full.index_copy_(axis, torch.as_tensor(list(rows)), values.cpu().float())
    return full
