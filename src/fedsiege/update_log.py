"""A log of updates: what a server received, on disk; written beside any framework, read by an audit.

A folder with `log.json`, what all rounds share, and one `round_000001.safetensors` a round: `start` [d] and
`end` [d], the global model before and after, `clients` [n], `weights` [n], `ages` [n] and `updates` [n, d], each
`local - start`. It holds nothing of anybody's data. A log may come from anywhere, so all of it is checked before it
is believed: nothing is unpickled, no size is trusted that the file's own does not bear out, and rows are mapped.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsiege.errors import InputError
from fedsiege.files import write_json

FORMAT = "fedsiege-updates"
VERSION = 1
LOG = "log.json"

MOST_CLIENTS = 1_000_000
MOST_ROUNDS = 1_000_000
MOST_BYTES = {LOG: 2**26, "header": 2**20}
"""A longer log.json, or header of a round's file, is refused before it is read."""

BLOCK = 2**22
"""Entries looked at together."""

SAMPLE = 2**16
"""Bytes of each tensor by which one log is told from another."""

Row = NDArray[np.float32]
Observable = Literal["updates", "aggregate"]
Why = Literal["failed", "late", "missing", "misshapen", "nonfinite", "empty"]

_NAME = re.compile(r"round_(\d{6,})\.safetensors")
_WIDTHS = {"I64": "<i8", "F64": "<f8", "F32": "<f4"}
_TYPES = {"clients": "I64", "weights": "F64", "ages": "I64", "start": "F32", "end": "F32", "updates": "F32"}
"""The tensors of a round, in the order in which they are written: the widest first, so that each is aligned."""


class TensorSpec(NamedTuple):
    """A tensor of the model, by the name that the recorded framework gives it."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its entries."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Absence:
    """A client that should have answered in a round and whose answer is not there to be read."""

    round: int
    client: int
    why: Why
    said: str = ""
    """What the recorder had to say about it."""


@dataclass(frozen=True, slots=True)
class LoggedRound:
    """One round of a log: the global model before [d] and after [d], and what arrived, sorted by client.

    Arrays lie in the file and are mapped, not loaded. `ages[i]` counts the rounds since the model that row i
    started from, and the row is the difference to that one.
    """

    number: int
    start: Row
    end: Row
    clients: tuple[int, ...]
    weights: NDArray[np.float64]
    ages: NDArray[np.int64]
    stored: Row | None = None
    """All rows of the file, as they lie; None where only the aggregate was observable."""
    places: tuple[int, ...] = ()
    """Where each client's row is among the stored ones."""

    @property
    def updates(self) -> Row:
        """The updates [n, d]: a copy, unless the rows lie in the file as they are wanted."""
        if self.stored is None:
            return np.empty((0, len(self.start)), dtype=np.float32)
        whole = self.places == tuple(range(len(self.stored)))
        return self.stored if whole else self.stored[list(self.places)]

    def rows(self) -> Iterator[Row]:
        """The updates one by one [d], whatever their number."""
        if self.stored is not None:
            yield from (self.stored[place] for place in self.places)


class _Said(BaseModel):
    """A part of log.json; keys that it does not know are somebody's notes."""

    model_config = ConfigDict(frozen=True, extra="ignore")


_Client = Annotated[int, Field(strict=True, ge=0, lt=MOST_CLIENTS)]
_Round = Annotated[int, Field(strict=True, ge=1, le=MOST_ROUNDS)]
_Text = Annotated[str, Field(strict=True)]


class _Tensor(_Said):
    name: _Text
    shape: list[Annotated[int, Field(strict=True, ge=0)]]


class _Absence(_Said):
    round: _Round
    client: _Client
    why: Why
    said: _Text = ""


class _Log(_Said):
    """What log.json says."""

    format: Literal["fedsiege-updates"]
    version: Annotated[int, Field(strict=True, ge=VERSION, le=VERSION)]
    source: _Text = ""
    observable: Observable = "updates"
    clients: Annotated[int, Field(strict=True, ge=1, le=MOST_CLIENTS)]
    tensors: Annotated[list[_Tensor], Field(min_length=1)]
    skipped: list[_Text] = []
    names: dict[str, _Text] = {}
    declared: dict[str, list[dict[str, Any]]] = {}
    absences: list[_Absence] = []
    final: Literal["observed", "assumed_mean"] = "observed"


@dataclass(frozen=True, slots=True)
class UpdateLog:
    """A log that was read and found sound."""

    folder: Path
    source: str
    """What recorded it, in its own words."""
    observable: Observable
    """Whether single updates could be seen, or their aggregate alone."""
    clients: int
    tensors: tuple[TensorSpec, ...]
    """The tensors that every flat vector is made of, in order."""
    skipped: tuple[str, ...]
    """Tensors of the model that were left out, by name."""
    names: Mapping[int, str]
    declared: Mapping[int, tuple[Mapping[str, Any], ...]]
    """The privacy mods that clients say they ran, as a config names them."""
    absences: tuple[Absence, ...]
    """Those that the recorder noted, and those whose rows cannot be used."""
    final: Literal["observed", "assumed_mean"]
    """Whether the last round's end was seen, or is the weighted mean of what arrived."""
    refused: Mapping[int, str]
    """Rounds whose models are no models, and why; they are not among `rounds`."""
    kept: Mapping[int, "_Kept"] = field(repr=False)
    """What is known of each usable round's file."""

    @property
    def rounds(self) -> tuple[int, ...]:
        """The numbers of the usable rounds, increasing."""
        return tuple(self.kept)

    @property
    def missing(self) -> tuple[int, ...]:
        """The rounds before the last usable one that nobody recorded, or that are refused."""
        return tuple(number for number in range(1, max(self.kept, default=1)) if number not in self.kept)

    @property
    def size(self) -> int:
        """Length d of a flat vector."""
        return sum(tensor.size for tensor in self.tensors)

    def round(self, number: int) -> LoggedRound:
        """A usable round, mapped from its file; InputError where there is none of that number."""
        if number not in self.kept:
            raise InputError(f"{self.folder}: got round {number}; the usable rounds of this log are {self.rounds}")
        kept = self.kept[number]
        arrays = kept.file.arrays()
        order = list(kept.places)
        return LoggedRound(
            number=number,
            start=arrays["start"],
            end=arrays["end"],
            clients=kept.clients,
            weights=_some(arrays.get("weights"), order, np.dtype(np.float64)),
            ages=_some(arrays.get("ages"), order, np.dtype(np.int64)),
            stored=arrays.get("updates"),
            places=kept.places,
        )

    def start_of(self, number: int) -> Row:
        """The model [d] that a round began with: in its own file, or as what the round before ended with.

        InputError where it is in neither. Of every age that is among a usable round's it is in one of them.
        """
        return self.round(number).start if number in self.kept else self.round(number - 1).end

    def digest(self, rounds: Iterable[int]) -> bytes:
        """SHA-256 by which this log is told from another: of log.json, and of these rounds as far as is cheap.

        Of a round's file that is its size, its header and the beginning of each of its tensors: no two trainings
        have models that begin alike. It is no seal against somebody who alters a row on purpose.
        """
        found = hashlib.sha256(_inside(self.folder, LOG).read_bytes())
        for number in rounds:
            file = self.kept[number].file
            found.update(f"{number} {file.path.stat().st_size} {sorted(file.places.items())}".encode())
            for values in file.arrays().values():
                flat = values.reshape(-1)
                found.update(flat[: SAMPLE // flat.itemsize].tobytes())
        return found.digest()

    @classmethod
    def read(cls, folder: str | Path, rows: bool = True) -> Self:
        """The log in `folder`, checked to the last row; InputError names file, field, value and what was expected.

        Rows that are not finite are left out and noted as absences, as are late ones whose start model is not in
        the log. A round whose models are not finite is refused and the rest is read. `rows=False` does not
        look at the values of the rows, which takes as long as reading all of them.
        """
        folder = Path(folder)
        said = _said(_inside(folder, LOG), folder / LOG)
        log, path = _validated(said, folder / LOG), folder / LOG
        tensors = _tensors(log, path)
        size = sum(tensor.size for tensor in tensors)
        kept, refused, absences = dict[int, _Kept](), dict[int, str](), list[Absence]()
        for number, name in _numbered(folder):
            file = _RoundFile.read(_inside(folder, name), log, size)
            unsound = file.unsound()
            if unsound is not None:
                refused[number] = f"{unsound} is not finite"
                continue
            kept[number], unusable = file.usable(number, rows)
            absences += unusable
        if not kept:
            why = f" (round {min(refused)}: {refused[min(refused)]})" if refused else ""
            raise InputError(f"{folder}: no usable round here{why}; expected round_000001.safetensors or others")
        late = [_without_start(kept, number) for number in kept]
        for number, (rest, gone) in zip(list(kept), late, strict=True):
            kept[number] = rest
            absences += gone
        noted = [_absence(one, log, position, path) for position, one in enumerate(log.absences)]
        known = {(one.round, one.client) for one in noted}
        return cls(
            folder=folder,
            source=shown(log.source),
            observable=log.observable,
            clients=log.clients,
            tensors=tensors,
            skipped=tuple(shown(name) for name in log.skipped),
            names={c: shown(name) for c, name in _by_client(log.names, "names", log.clients, path).items()},
            declared=_declared(log, path),
            absences=(*noted, *(one for one in absences if (one.round, one.client) not in known)),
            final=log.final,
            refused=refused,
            kept=kept,
        )


class LogWriter:
    """Writes a log beside a running server: it is valid after every round, however the server ends.

    Raises InputError for what would make a log that nobody can read, and OSError where the disk does.
    """

    def __init__(
        self,
        folder: str | Path,
        clients: int,
        tensors: Sequence[tuple[str, Sequence[int]]],
        observable: Observable = "updates",
        source: str = "",
        skipped: Sequence[str] = (),
    ) -> None:
        """Begin a log in `folder`, which must hold none yet, of `clients` clients and a model of these tensors."""
        self.folder = Path(folder)
        if (self.folder / LOG).exists() or any(self.folder.glob("round_*.safetensors")):
            raise InputError(f"{self.folder}: holds a log already; expected a new folder")
        self._head: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "source": shown(source),
            "observable": observable,
            "clients": clients,
            "tensors": [{"name": name, "shape": [int(n) for n in shape]} for name, shape in tensors],
            "skipped": [shown(name) for name in skipped],
        }
        self._names: dict[int, str] = {}
        self._declared: dict[int, list[dict[str, Any]]] = {}
        self._absences: dict[tuple[int, int], Absence] = {}
        self._final: str = "observed"
        self._log = _validated(self._head, self.folder / LOG)
        self._size = sum(tensor.size for tensor in _tensors(self._log, self.folder / LOG))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_head()

    def write_round(
        self,
        number: int,
        start: Row,
        end: Row,
        updates: Mapping[int, Row],
        weights: Mapping[int, float],
        ages: Mapping[int, int] | None = None,
    ) -> None:
        """Write what a round's server received.

        Args:
            number: the round, from 1; rounds may be left out.
            start: the global model that the round began with [d], all logged tensors flat and in their order.
            end: the global model that it ended with [d].
            updates: `local - start` [d] by client, of the model the client started from; none where only the
                aggregate is observable. Rows that are not finite are noted as absences instead.
            weights: by client, what its row weighs in a mean (its number of examples): of each that answered.
            ages: by client, how many rounds ago its start model was the global one; 0 where left out.

        """
        path = self.folder / f"round_{number:06d}.safetensors"
        if not 1 <= number <= MOST_ROUNDS or path.exists():
            raise InputError(f"{path}: got round {number}; expected a number from 1, once")
        for name, values in (("start", start), ("end", end), *((f"client {c}", row) for c, row in updates.items())):
            if values.shape != (self._size,):
                raise InputError(f"round {number}, {name}: got shape {values.shape}; expected ({self._size},)")
        if self._log.observable == "aggregate" and updates:
            raise InputError(f"round {number}: got {len(updates)} updates; this log is of the aggregate alone")
        answered = sorted(weights)
        if self._log.observable == "updates":
            if set(updates) != set(weights):
                raise InputError(
                    f"round {number}: got updates of clients {sorted(updates)} and weights of {answered}"
                )
            unsound = [client for client in answered if not _is_finite(_single(updates[client]))]
            for client in unsound:
                self._note(Absence(number, client, "nonfinite"))
            answered = [client for client in answered if client not in unsound]
        aged = [(ages or {}).get(client, 0) for client in answered]
        _check_rows(str(path), answered, [weights[c] for c in answered], aged, number, self._log.clients)
        whole: dict[str, NDArray[Any]] = {
            "clients": np.array(answered, dtype=np.int64),
            "weights": np.array([weights[client] for client in answered], dtype=np.float64),
            "ages": np.array(aged, dtype=np.int64),
            "start": _single(start),
            "end": _single(end),
        }
        rows = (_single(updates[client]) for client in answered) if self._log.observable == "updates" else None
        _write_round(path, whole, rows, len(answered))
        self._write_head()

    def absent(self, round: int, client: int, why: Why, said: str = "") -> None:
        """Note that a client's answer is not there to be read; it is on disk with the next round or `close`."""
        self._note(Absence(round, client, why, shown(said)))

    def declare(self, client: int, declared: Sequence[Mapping[str, Any]]) -> None:
        """Note the privacy mods that a client says it ran, each `{name: ..., field: ...}`."""
        self._declared[_client(client, self._log.clients)] = [dict(one) for one in declared]

    def name(self, client: int, text: str) -> None:
        """Note what a client is called."""
        self._names[_client(client, self._log.clients)] = shown(text)

    def close(self, final: Literal["observed", "assumed_mean"] = "observed") -> None:
        """End the log; `final` says whether the last round's end was seen."""
        self._final = final
        self._write_head()

    def _note(self, absence: Absence) -> None:
        _client(absence.client, self._log.clients)
        self._absences.setdefault((absence.round, absence.client), absence)

    def _write_head(self) -> None:
        write_json(
            self.folder / LOG,
            {
                **self._head,
                "names": {str(client): self._names[client] for client in sorted(self._names)},
                "declared": {str(client): self._declared[client] for client in sorted(self._declared)},
                "absences": [
                    {"round": one.round, "client": one.client, "why": one.why, "said": one.said}
                    for one in self._absences.values()
                ],
                "final": self._final,
            },
        )


def _write_round(path: Path, whole: Mapping[str, NDArray[Any]], rows: Iterable[Row] | None, count: int) -> None:
    """Write a round's file, row by row: a cohort need not fit into memory twice. It is whole or absent."""
    size = len(whole["start"])
    shapes = {name: values.shape for name, values in whole.items()}
    if rows is not None:
        shapes["updates"] = (count, size)
    header, place = dict[str, Any](), 0
    for name, shape in shapes.items():
        end = place + math.prod(shape) * np.dtype(_WIDTHS[_TYPES[name]]).itemsize
        header[name] = {"dtype": _TYPES[name], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned then
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, values in whole.items():
                file.write(np.ascontiguousarray(values, dtype=_WIDTHS[_TYPES[name]]).data)
            for row in rows or ():
                file.write(row.data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class _RoundFile:
    """A round's file whose header is sound: of each tensor the place in bytes, and its shape."""

    path: Path
    places: Mapping[str, tuple[int, tuple[int, ...]]]
    clients: int

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its tensors, mapped; whoever writes to them writes to a copy."""
        return {
            name: np.memmap(self.path, dtype=_WIDTHS[_TYPES[name]], mode="c", offset=place, shape=shape)
            if math.prod(shape)
            else np.empty(shape, dtype=_WIDTHS[_TYPES[name]])
            for name, (place, shape) in self.places.items()
        }

    def unsound(self) -> str | None:
        """Which of its models is not finite."""
        arrays = self.arrays()
        return next((name for name in ("start", "end") if not _is_finite(arrays[name])), None)

    def usable(self, number: int, rows: bool) -> tuple["_Kept", list[Absence]]:
        """The rows that are finite (`rows`: where that is looked at), by client, and an absence for each other."""
        arrays = self.arrays()
        clients, ages = arrays.get("clients", _NONE).tolist(), arrays.get("ages")
        aged = [0] * len(clients) if ages is None else ages.tolist()
        weights = arrays["weights"].tolist() if "weights" in arrays else []
        _check_rows(str(self.path), clients, weights, aged, number, self.clients)
        stored = arrays.get("updates")
        order = np.argsort(clients, kind="stable").tolist()
        kept = [at for at in order if stored is None or not rows or _is_finite(stored[at])]
        gone = [Absence(number, clients[at], "nonfinite") for at in sorted(set(order) - set(kept))]
        found = tuple(clients[at] for at in kept)
        return _Kept(self, found, tuple(kept), tuple(aged[at] for at in kept)), gone

    @classmethod
    def read(cls, path: Path, log: _Log, size: int) -> Self:
        """Check what a round's file says it holds against what the log says and against the file's own size."""
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or length > min(total - 8, MOST_BYTES["header"]):
                raise InputError(
                    f"{path}: header: got a length of {length} bytes in a file of {total}; expected a safetensors "
                    f"header of at most {MOST_BYTES['header']} bytes: the file is torn or of another kind"
                )
            header = _parsed(file.read(length), path)
        known = {name: header[name] for name in _TYPES if name in header}
        rows = _count_of(known, path, log.clients)
        shapes = {"clients": (rows,), "weights": (rows,), "ages": (rows,), "start": (size,), "end": (size,)}
        needed = {"start", "end", "clients", "weights", "updates"}
        if log.observable == "aggregate":
            if "updates" in known:
                raise InputError(f"{path}: updates: are there; expected none, as the log is of the aggregate alone")
            needed = {"start", "end"} | ({"clients", "weights"} if "clients" in known else set())
        for name in sorted(needed - set(known)):
            raise InputError(f"{path}: {name}: missing; expected a tensor of type {_TYPES[name]}")
        shape_of = {**shapes, "updates": (rows, size)}
        places = {
            name: (_placed(name, said, shape_of[name], 8 + length, total, path), shape_of[name])
            for name, said in known.items()
        }
        return cls(path, places, log.clients)


@dataclass(frozen=True, slots=True)
class _Kept:
    """The usable rows of a round: whose they are, where they lie, and their ages."""

    file: _RoundFile
    clients: tuple[int, ...]
    places: tuple[int, ...]
    ages: tuple[int, ...]


_NONE = np.empty(0, dtype=np.int64)


def _without_start(kept: Mapping[int, _Kept], number: int) -> tuple[_Kept, list[Absence]]:
    """A round without the late rows whose start model is in no file, and an absence for each of these.

    The model that round r began with is the start of r's file or the end of the one before.
    """
    one = kept[number]
    there = [age == 0 or number - age in kept or number - age - 1 in kept for age in one.ages]
    if all(there):
        return one, []
    gone = [
        Absence(
            number, client, "late", f"it started from the model of round {number - age}, which is not in the log"
        )
        for client, age, known in zip(one.clients, one.ages, there, strict=True)
        if not known
    ]
    rest = [at for at, known in enumerate(there) if known]
    clients, places, ages = (tuple(values[at] for at in rest) for values in (one.clients, one.places, one.ages))
    return _Kept(one.file, clients, places, ages), gone


def _some(values: NDArray[Any] | None, order: list[int], kind: np.dtype[Any]) -> NDArray[Any]:
    """The values at these places; zeros where there are none."""
    return np.zeros(len(order), dtype=kind) if values is None else np.asarray(values)[order].astype(kind)


def _is_finite(row: Row) -> bool:
    """Whether every entry [d] is a number; looked at in blocks, as a row may be larger than memory."""
    return all(bool(np.isfinite(row[at : at + BLOCK]).all()) for at in range(0, len(row), BLOCK))


def _single(row: NDArray[Any]) -> Row:
    """A vector [d] in the log's precision; what is beyond it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(row, dtype=_WIDTHS["F32"])


def _check_rows(
    where: str, clients: Sequence[int], weights: Sequence[float], ages: Sequence[int], number: int, count: int
) -> None:
    """Refuse a client twice or out of range, a weight that is none, an age that goes back before round 1."""
    seen = set[int]()
    for client in clients:
        if not 0 <= client < count:
            raise InputError(f"{where}: clients: got {client}; expected 0 to {count - 1}")
        if client in seen:
            raise InputError(f"{where}: clients: got {client} twice; expected each client once")
        seen.add(client)
    for client, weight in zip(clients, weights, strict=False):
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"{where}: weights: got {weight} for client {client}; expected a finite number from 0")
    for client, age in zip(clients, ages, strict=True):
        if not 0 <= age < number:
            raise InputError(f"{where}: ages: got {age} for client {client}; expected 0 to {number - 1}")


def _client(client: int, count: int) -> int:
    if not 0 <= client < count:
        raise InputError(f"client: got {client}; expected 0 to {count - 1}")
    return client


def _count_of(header: Mapping[str, Any], path: Path, clients: int) -> int:
    """How many rows a round's file says it has: one a client at most, before any of them is read.

    A file may be as long as it says and yet hold nothing. Whether there is room is checked with each tensor.
    """
    shape = header["clients"].get("shape") if isinstance(header.get("clients"), dict) else []
    if shape == []:
        return 0
    if not (isinstance(shape, list) and len(shape) == 1 and _is_count(shape[0])):
        raise InputError(f"{path}: clients: got shape {_short(shape)}; expected [n]")
    count: int = shape[0]
    if count > clients:
        raise InputError(f"{path}: clients: got {count} rows; expected at most {clients}, one a client")
    return count


def _placed(name: str, said: Any, shape: tuple[int, ...], begin: int, total: int, path: Path) -> int:
    """Where a tensor begins in its file; InputError unless type, shape and room for it are as they must be."""
    said = said if isinstance(said, dict) else {}
    expected = f"expected {_TYPES[name]} of shape {list(shape)}"
    if said.get("dtype") != _TYPES[name] or said.get("shape") != list(shape):
        got = f"{_short(said.get('dtype'))} of shape {_short(said.get('shape'))}"
        raise InputError(f"{path}: {name}: got {got}; {expected}")
    width = np.dtype(_WIDTHS[_TYPES[name]]).itemsize
    offsets = said.get("data_offsets")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(_is_count(at) for at in offsets)):
        raise InputError(f"{path}: {name}: got data_offsets {_short(offsets)}; expected [begin, end]")
    first, last = offsets
    if last - first != math.prod(shape) * width or begin + last > total:
        raise InputError(
            f"{path}: {name}: got bytes {first} to {last} of {total - begin}; {expected}, which takes "
            f"{math.prod(shape) * width}: the file is torn or was altered"
        )
    if (begin + first) % width:
        raise InputError(f"{path}: {name}: begins at byte {begin + first}; expected a multiple of {width}")
    return int(begin + first)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _inside(folder: Path, name: str) -> Path:
    """A regular file of the folder; a link that leads out of it, a pipe or a device is none."""
    path = folder / name
    try:
        real = path.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: no {name} here; expected the folder of a log of updates") from None
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not real.is_relative_to(folder.resolve()):
        raise InputError(f"{path}: leads out of the log's folder; expected a file in it")
    if not real.is_file():
        raise InputError(f"{path}: is not a regular file")
    return real


def _numbered(folder: Path) -> list[tuple[int, str]]:
    """The round files of a log, by number; InputError for one whose name says none."""
    found = list[tuple[int, str]]()
    for path in folder.iterdir():
        if path.suffix != ".safetensors" or path.name.startswith("."):
            continue
        match = _NAME.fullmatch(path.name)
        number = int(match[1]) if match and len(match[1]) < 20 else 0
        if not 1 <= number <= MOST_ROUNDS or path.name != f"round_{number:06d}.safetensors":
            raise InputError(
                f"{folder}: got a file {_short(path.name)}; expected round_000001.safetensors to "
                f"round_{MOST_ROUNDS:06d}.safetensors"
            )
        found.append((number, path.name))
    return sorted(found)


def _said(path: Path, shown: Path) -> dict[str, Any]:
    """The mapping in log.json."""
    size = path.stat().st_size
    if size > MOST_BYTES[LOG]:
        raise InputError(f"{shown}: has {size} bytes; expected at most {MOST_BYTES[LOG]}")
    return _parsed(path.read_bytes(), shown)


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    """A JSON mapping in which no key is twice and every number is finite."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict[str, Any]()
        for key, value in pairs:
            if key in found:
                raise ValueError(f"{_short(key)} is there twice")
            found[key] = value
        return found

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError(f"{number[:40]} is not a finite number")
        return value

    try:
        found = json.loads(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({str(error)[:200]})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: got {_short(found)}; expected a mapping")
    return found


def _validated(said: Mapping[str, Any], path: Path) -> _Log:
    """What log.json says; InputError with the first thing that is wrong with it."""
    if said.get("format") != FORMAT:
        raise InputError(f"{path}: format: got {_short(said.get('format'))}; expected {FORMAT!r}")
    version = said.get("version")
    if _is_count(version) and isinstance(version, int) and version > VERSION:
        raise InputError(f"{path}: version: got {version}; this FedSiege reads {VERSION}: update it")
    try:
        return _Log.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:200]
        got = "missing" if first["type"] == "missing" else f"got {_short(first['input'])}"
        raise InputError(f"{path}: {place}: {got}; {first['msg']}") from None


def _tensors(log: _Log, path: Path) -> tuple[TensorSpec, ...]:
    """The tensors of a log: at least one entry in all, every name once and fit to be shown."""
    found = tuple(TensorSpec(one.name, tuple(one.shape)) for one in log.tensors)
    seen = set[str]()
    for position, tensor in enumerate(found):
        where = f"{path}: tensors.{position}.name: got {_short(tensor.name)}"
        parts = re.split(r"[/\\]", tensor.name)
        if not tensor.name.strip() or not tensor.name.isprintable() or len(tensor.name) > 1000:
            raise InputError(f"{where}; expected 1 to 1000 printable characters")
        if tensor.name in seen:
            raise InputError(f"{where} twice; expected each name once")
        if ".." in parts or (len(parts) > 1 and not parts[0]):
            raise InputError(f"{where}, which looks like a path out of a folder; expected a tensor's name")
        seen.add(tensor.name)
    size = sum(tensor.size for tensor in found)
    if not 0 < size < 2**40:
        raise InputError(f"{path}: tensors: have {size} entries in all; expected 1 to {2**40 - 1}")
    return found


def _by_client(said: Mapping[str, Any], what: str, clients: int, path: Path) -> dict[int, Any]:
    """A mapping by client's number."""
    for key in said:
        if not re.fullmatch(r"0|[1-9]\d{0,8}", key) or int(key) >= clients:
            raise InputError(f"{path}: {what}: got client {_short(key)}; expected 0 to {clients - 1}")
    return {int(key): value for key, value in said.items()}


def _declared(log: _Log, path: Path) -> dict[int, tuple[Mapping[str, Any], ...]]:
    """The privacy mods that clients declared, each with a name."""
    found = _by_client(log.declared, "declared", log.clients, path)
    for client, mods in found.items():
        for mod in mods:
            if not isinstance(mod.get("name"), str):
                raise InputError(
                    f"{path}: declared.{client}: got {_short(mod)}; expected {{name: ..., field: ...}}"
                )
    return {client: tuple(mods) for client, mods in found.items()}


def _absence(said: _Absence, log: _Log, position: int, path: Path) -> Absence:
    if said.client >= log.clients:
        raise InputError(f"{path}: absences.{position}.client: got {said.client}; expected 0 to {log.clients - 1}")
    return Absence(said.round, said.client, said.why, shown(said.said))


def shown(text: object, most: int = 500) -> str:
    """What somebody else wrote, fit for any terminal, page or file: one printable line, cut after `most`."""
    return " ".join("".join(one if one.isprintable() else " " for one in str(text)[:most]).split())


def _short(value: Any) -> str:
    """A value as a message shows it; whoever wrote the file may have made it long."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
