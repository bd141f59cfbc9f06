"""Evidence on disk: one file a recorded round, written once, read lazily, never pickled.

A trace holds what the server could compute from what it received, for a fixed list of candidates, and no word
on who is a member. Per round: losses [K, m], products of gradients and updates per parameter group [G, K, m],
squared norms and sums of both, and the last layer's updates; on request (`Recorder.recordings`) more. Rows of
clients that were absent are NaN.
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

CANCELLED = 1e-5
"""An update that is left with a smaller share of its squared norm once its shift is removed was all shift."""


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
    sizes: tuple[int, ...] = ()
    """Entries of each group; none where a trace is older than they are."""
    tail: int = 0
    """The last trained entries, in which coalitions' noise is looked for; 0 where none were named."""

    def write(self, folder: Path) -> None:
        """Begin a trace in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": SCHEMA,
            "clients": self.clients,
            "classes": self.classes,
            "groups": list(self.groups),
            "sizes": list(self.sizes),
            "head": list(self.head),
            "ids": self.ids.tolist(),
            "labels": self.labels.tolist(),
            **({"tail": self.tail} if self.tail else {}),
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
            sizes=tuple(content.get("sizes", ())),
            tail=content.get("tail", 0),
        )


OUTPUTS = ("top", "spread", "entropy", "modified_entropy")
"""What probabilities tell beside the loss."""

AS_RECORDED = frozenset(f"{model}{name}" for model in ("", "global_") for name in ("loss", *OUTPUTS))
"""Signals that are on disk as they are."""

MISSING = {
    **dict.fromkeys(
        AS_RECORDED - {"loss", "global_loss"},
        ": list an attack that reads it (or record with recordings={'outputs'}) and train",
    ),
    "support_norm2": ": list an attack with coordinates: nonzero (or record with recordings={'support'}) and train",
    "gradient_sum": ", by an older version: train again",
    "front_dot": ": list an attack with coordinates: front (or record with recordings={'front'}) and train",
    **dict.fromkeys(("tail_sum", "tail_gram"), ": set trace.tail and train"),
}
"""What to do about evidence that a recorded round may lack."""


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def grouping(layout: Layout, level: Groups) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The groups' names, and each trained tensor's group: all in one, by block of the model, or by tensor."""
    count = layout.kinds.count("trained")
    keys = {"total": ("total",) * count, "blocks": layout.groups[:count], "tensors": layout.names[:count]}[level]
    names = tuple(dict.fromkeys(keys))
    return names, tuple(names.index(key) for key in keys)


def entries(layout: Layout, level: Groups) -> tuple[int, ...]:
    """The trained entries of each group of `grouping`."""
    names, numbers = grouping(layout, level)
    return tuple(
        sum(size for size, own in zip(layout.sizes, numbers, strict=False) if own == group)
        for group in range(len(names))
    )


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
        self.groups, self.sizes, self.head_sizes = header.groups, header.sizes, header.head
        self.tail = header.tail
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

    def top(self, t: int) -> NDArray[np.float32]:
        """The largest probability, of each client's uploaded model [K, m]; where recorded."""
        return self._signal(t, "top")

    def global_top(self, t: int) -> NDArray[np.float32]:
        """The largest probability, of the model that the round ended with [m]; where recorded."""
        return self._signal(t, "global_top")

    def spread(self, t: int) -> NDArray[np.float32]:
        """Standard deviation over classes of the probabilities of each client's model [K, m]; where recorded."""
        return self._signal(t, "spread")

    def global_spread(self, t: int) -> NDArray[np.float32]:
        """Standard deviation over classes of the probabilities of the round's last model [m]; where recorded."""
        return self._signal(t, "global_spread")

    def entropy(self, t: int) -> NDArray[np.float32]:
        """The entropy of the probabilities, of each client's uploaded model [K, m]; where recorded."""
        return self._signal(t, "entropy")

    def global_entropy(self, t: int) -> NDArray[np.float32]:
        """The entropy of the probabilities, of the model that the round ended with [m]; where recorded."""
        return self._signal(t, "global_entropy")

    def modified_entropy(self, t: int) -> NDArray[np.float32]:
        """The modified entropy of the probabilities, of each client's uploaded model [K, m]; where recorded."""
        return self._signal(t, "modified_entropy")

    def global_modified_entropy(self, t: int) -> NDArray[np.float32]:
        """The modified entropy of the probabilities, of the model that the round ended with [m]; where recorded."""
        return self._signal(t, "global_modified_entropy")

    def cosine(self, t: int, groups: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Cosine of candidates' gradients with clients' negative updates [K, m]; over some groups, if named."""
        return self._signal(t, "cosine", None if groups is None else tuple(groups))

    def cosine_nonzero(self, t: int) -> NDArray[np.float32]:
        """As `cosine`, over the entries that the client's update did not leave at zero [K, m]; where recorded."""
        return self._signal(t, "cosine_nonzero")

    def cosine_front(self, t: int) -> NDArray[np.float32]:
        """As `cosine`, over the trained entries before the tail [K, m]; where recorded."""
        return self._signal(t, "cosine_front")

    def cosine_unshifted(self, t: int) -> NDArray[np.float32]:
        """As `cosine`, after what an update's mean over a group exceeds the other clients' is taken off [K, m]."""
        return self._signal(t, "cosine_unshifted")

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
        if len(self.head_sizes) == 2 and self.head_sizes[1] == self.classes:
            rows: NDArray[np.float32] = self._read(t, "head")
            return rows[:, self.head_sizes[0] :]
        sums: NDArray[np.float32] = self._head_weight(t).sum(2)
        return sums

    def rise(self, t: int) -> NDArray[np.float32]:
        """How far each client's update of the last layer's weights raised each class [K, C]: up, as a share of all.

        A client's examples of a class raise the class's output where its features are active; every other example
        lowers it. So features that are not negative (after a ReLU, say) leave the row of a class that was not
        trained with a share near 0. Rows are measured from their mean over classes, which cross-entropy leaves
        where it is: a constant added to the layer is not seen. A row that did not move has .5.
        """
        weight = self._head_weight(t)
        moved = weight - weight.mean(axis=1, keepdims=True, dtype=np.float64)
        up, total = np.maximum(moved, 0).sum(axis=2), np.abs(moved).sum(axis=2)
        share = np.divide(up, total, out=np.full_like(up, 0.5), where=total != 0)
        rise: NDArray[np.float32] = share.astype(np.float32)
        return rise

    def _head_weight(self, t: int) -> NDArray[np.float32]:
        """Each client's update of the last layer's weight [K, C, features]."""
        weight, *bias = self.head_sizes
        if weight % self.classes or bias not in ([], [self.classes]):
            raise InputError(
                f"{self.folder}: the model's last layer has tensors of {self.head_sizes} values; "
                f"expected a weight and a bias with an output for each of the {self.classes} classes"
            )
        rows: NDArray[np.float32] = self._read(t, "head")
        return rows[:, :weight].reshape(len(rows), self.classes, -1)

    def logits(self, t: int) -> NDArray[np.float32]:
        """The logits of each client's uploaded model [K, m, C], where the run was asked to keep them."""
        logits: NDArray[np.float32] = self._read(t, "logits")
        return logits

    def tail_sum(self, t: int) -> NDArray[np.float64]:
        """The sum of each client's update over the tail [K]; where the run named one."""
        return self._read(t, "tail_sum").astype(np.float64)

    def tail_gram(self, t: int) -> NDArray[np.float64]:
        """The products of clients' updates over the tail, each with each [K, K]; where the run named one."""
        return self._read(t, "tail_gram").astype(np.float64)

    def taken_off(self, t: int) -> NDArray[np.float64]:
        """What a countermeasure took off each client's update, root mean square over what it changed [K]."""
        return self._read(t, "taken_off").astype(np.float64)

    def weight(self, t: int) -> NDArray[np.float64]:
        """The weight that each client's answer came with, its number of examples [K]."""
        return self._read(t, "weight").astype(np.float64)

    def variant(self, updates: str) -> "Trace":
        """The evidence after a countermeasure (`denoised`, ...), or this one for `sent`.

        Raises InputError where it was not recorded, or not in the same rounds.
        """
        if updates == "sent":
            return self
        folder = self.folder / updates
        if not (folder / HEADER).is_file():
            raise InputError(
                f"{folder}: no evidence of updates: {updates}; list an attack that is told so, and train"
            )
        found = Trace(folder)
        if found.rounds != self.rounds:
            raise InputError(f"{folder}: holds rounds {found.rounds}; expected {self.rounds}: train again")
        return found

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
                    raise InputError(
                        f"{path}: the trace has no {name}; it was recorded without{MISSING.get(name, '')}"
                    )
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
        if signal in AS_RECORDED:
            values = self._read(t, signal)
            return values
        if signal == "cosine_nonzero":
            return self._nonzero(t)
        if signal == "cosine_front":
            return self._front(t)
        if signal == "cosine_unshifted":
            return self._unshifted(t)
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

    def _nonzero(self, t: int) -> NDArray[np.float32]:
        dot, norm2 = self._read(t, "dot"), self._read(t, "support_norm2")
        update2 = self._read(t, "update_norm2").sum(0, dtype=np.float64)
        values = np.empty(dot.shape[1:], dtype=np.float32)
        for client, row in enumerate(values):
            row[:] = _compared("cosine", dot[:, client], update2[client], norm2[:, client].sum(0, dtype=np.float64))
        return values

    def _front(self, t: int) -> NDArray[np.float32]:
        dot, update2, start_of = (self._read(t, name) for name in ("front_dot", "front_update_norm2", "start_of"))
        norm2 = self._read(t, "front_gradient_norm2").astype(np.float64)
        rows = [
            _compared("cosine", dot[client, None], update2[client].astype(np.float64), norm2[start_of[client]])
            for client in range(self.clients)
        ]
        return np.stack(rows)

    def _unshifted(self, t: int) -> NDArray[np.float32]:
        """In a group of n entries <g, u - c> = <g, u> - c sum(g), and |u - c|² = |u|² - 2 c sum(u) + n c²."""
        dot, sums, start_of = (self._read(t, name) for name in ("dot", "gradient_sum", "start_of"))
        norm2 = self._read(t, "gradient_norm2").sum(1, dtype=np.float64)
        update_sum, size = self._read(t, "update_sum").astype(np.float64), np.array(self.sizes)[:, None]
        shift = _shifts(update_sum / size, self.present(t))
        before = self._read(t, "update_norm2").sum(0, dtype=np.float64)
        after = before + (shift * (size * shift - 2 * update_sum)).sum(0)
        after[after < CANCELLED * before] = 0.0
        values = np.empty(dot.shape[1:], dtype=np.float32)
        for client, row in enumerate(values):
            # dot is with `start - local`: what the update loses, its negative gains.
            products = dot[:, client] + shift[:, client, None] * sums[start_of[client]]
            row[:] = _compared("cosine", products, after[client], norm2[start_of[client]])
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


def _shifts(means: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What each client's means [G, K] exceed the median of the other present clients' by; 0 for a client alone."""
    shifts = np.full_like(means, np.nan)
    for client in np.flatnonzero(present):
        others = present & (np.arange(len(present)) != client)
        typical = np.median(means[:, others], axis=1) if others.any() else means[:, client]
        shifts[:, client] = means[:, client] - typical
    return shifts


def absent(values: Tensor, rows: Sequence[int], clients: int, axis: int) -> Tensor:
    """Spread rows of the clients that answered over all clients along `axis`; NaN where one was absent."""
    shape = list(values.shape)
    shape[axis] = clients
    full = torch.full(shape, torch.nan)
    full.index_copy_(axis, torch.as_tensor(list(rows)), values.cpu().float())
    return full
