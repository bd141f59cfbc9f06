"""What an adversary may see of the recorded evidence, and the error when an attack asks for more.

Evidence says nothing about membership: a candidate is a column, and no column knows which group it comes from.
"""

import copy
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray

from fedsiege.errors import InputError, ThreatModelError
from fedsiege.records import Counters, Floats
from fedsiege.registry import nearest

Vantage = Literal[
    "client", "malicious_clients", "coalition_member", "server", "server_aggregate_only", "server_and_insider"
]
"""Where the adversary sits. Only `server` and `server_and_insider` see what single clients uploaded."""

Signal = Literal[
    "loss",
    "top",
    "spread",
    "entropy",
    "modified_entropy",
    "cosine",
    "cosine_nonzero",
    "cosine_unshifted",
    "cosine_front",
    "diff",
    "norm2",
    "head",
    "rise",
    "labels",
]
"""What an attack can need of the evidence."""

ON_REQUEST: Mapping[Signal, str] = {
    "cosine_nonzero": "support",
    "cosine_front": "front",
    "top": "outputs",
    "spread": "outputs",
    "entropy": "outputs",
    "modified_entropy": "outputs",
}
"""Signal -> what has to be recorded for it that is not recorded unless an attack of the run needs it."""

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]

SINGLE_UPDATES: tuple[Vantage, ...] = ("server", "server_and_insider")

OF_THE_GLOBAL_MODEL: Mapping[str, str] = {
    "loss": "global_loss",
    "top": "global_top",
    "spread": "global_spread",
    "entropy": "global_entropy",
    "modified_entropy": "global_modified_entropy",
    "cosine": "aggregate_cosine",
    "diff": "aggregate_diff",
    "norm2": "norm2",
}
"""Signal -> the evidence that stands in for it where only global models are seen."""

AXES: Mapping[str, str] = {
    "loss": "TKm",
    "top": "TKm",
    "spread": "TKm",
    "entropy": "TKm",
    "modified_entropy": "TKm",
    "cosine": "TKm",
    "cosine_nonzero": "TKm",
    "cosine_unshifted": "TKm",
    "cosine_front": "TKm",
    "diff": "TKm",
    "norm2": "Tm",
    "head": "TKC",
    "rise": "TKC",
    "labels": "m",
    "present": "TK",
    "global_loss": "Tm",
    "global_top": "Tm",
    "global_spread": "Tm",
    "global_entropy": "Tm",
    "global_modified_entropy": "Tm",
    "aggregate_cosine": "Tm",
    "aggregate_diff": "Tm",
}
"""The arrays of evidence and their axes: T recorded rounds, K clients, m candidates, C classes."""


EVERY = slice(None)
"""All columns."""


class Evidence(Protocol):
    """What was recorded of T rounds, K clients and m candidates; t counts recorded rounds, 0..T-1.

    Arrays are float32 or float64. A row of a client that did not take part in the round is NaN.
    """

    @property
    def rounds(self) -> tuple[int, ...]:
        """The numbers (from 1) of the recorded rounds, increasing."""
        ...

    @property
    def clients(self) -> int:
        """K, all clients of the federation."""
        ...

    @property
    def labels(self) -> Labels:
        """The candidates' classes [m]."""
        ...

    def present(self, t: int) -> Flags:
        """Who took part [K]."""
        ...

    def loss(self, t: int) -> Floats:
        """Cross-entropy of the model that each client uploaded [K, m]."""
        ...

    def global_loss(self, t: int) -> Floats:
        """Cross-entropy of the global model at the end of the round, the one broadcast next [m]."""
        ...

    def top(self, t: int) -> Floats:
        """Largest of the probabilities p, of the model that each client uploaded [K, m]."""
        ...

    def global_top(self, t: int) -> Floats:
        """As `top`, of the global model at the end of the round [m]."""
        ...

    def spread(self, t: int) -> Floats:
        """Population standard deviation of p over classes, of the model that each client uploaded [K, m]."""
        ...

    def global_spread(self, t: int) -> Floats:
        """As `spread`, of the global model at the end of the round [m]."""
        ...

    def entropy(self, t: int) -> Floats:
        """Entropy -sum p log p, of the model that each client uploaded [K, m]."""
        ...

    def global_entropy(self, t: int) -> Floats:
        """As `entropy`, of the global model at the end of the round [m]."""
        ...

    def modified_entropy(self, t: int) -> Floats:
        """-(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i), with y the label [K, m]."""
        ...

    def global_modified_entropy(self, t: int) -> Floats:
        """As `modified_entropy`, of the global model at the end of the round [m]."""
        ...

    def cosine(self, t: int) -> Floats:
        """Cosine of the example's gradient at the start model with `start - local` [K, m]; positive = member."""
        ...

    def cosine_nonzero(self, t: int) -> Floats:
        """As `cosine`, over the coordinates at which the client's update is not zero [K, m]."""
        ...

    def cosine_unshifted(self, t: int) -> Floats:
        """As `cosine`, with each client's update brought to the other clients' mean, by parameter group [K, m]."""
        ...

    def cosine_front(self, t: int) -> Floats:
        """As `cosine`, over the trained parameters before the tail that a coalition's noise falls on [K, m]."""
        ...

    def diff(self, t: int) -> Floats:
        """2 <g, u> - |g|^2 with g the example's gradient and u = `start - local` [K, m]."""
        ...

    def norm2(self, t: int) -> Floats:
        """|g|^2 at the global model at the start of the round [m]."""
        ...

    def aggregate_cosine(self, t: int) -> Floats:
        """As `cosine`, with the change of the global model [m]."""
        ...

    def aggregate_diff(self, t: int) -> Floats:
        """As `diff`, with the change of the global model [m]."""
        ...

    def head(self, t: int) -> Floats:
        """Each client's update `local - start` of the last layer's bias, or its weight's row sums [K, C]."""
        ...

    def rise(self, t: int) -> Floats:
        """The share, 0 to 1, of a client's update of a class's last-layer weights that raised the class [K, C]."""
        ...


class ArrayEvidence:
    """Evidence from plain arrays.

    Args:
        arrays: any of `loss top spread entropy modified_entropy cosine cosine_nonzero cosine_unshifted
            cosine_front diff` [T, K, m], `norm2 global_loss global_top global_spread global_entropy
            global_modified_entropy aggregate_cosine aggregate_diff` [T, m], `head rise` [T, K, C], `labels` [m]
            (integers) and `present` [T, K] (booleans; all present when left out).
        rounds: T increasing round numbers; 1..T when left out.

    Raises InputError for an unknown array or a shape that does not fit, and on asking for an array not given.

    """

    def __init__(self, arrays: Mapping[str, Any], rounds: Sequence[int] | None = None) -> None:
        self._arrays = {name: _array(name, given) for name, given in arrays.items()}
        sizes = _sizes(self._arrays)
        if "T" not in sizes:
            raise InputError(f"evidence: got {_listed(self._arrays)}; expected at least one array over rounds")
        self.rounds = tuple(range(1, sizes["T"] + 1)) if rounds is None else tuple(rounds)
        if len(self.rounds) != sizes["T"] or list(self.rounds) != sorted(set(self.rounds)):
            raise InputError(f"evidence rounds: got {self.rounds}; expected {sizes['T']} increasing round numbers")
        self.clients = sizes.get("K", 1)

    @property
    def labels(self) -> Labels:
        """The candidates' classes [m]."""
        return np.asarray(self._given("labels"), dtype=np.int64)

    def present(self, t: int) -> Flags:
        """Who took part [K]; everyone where `present` was not given."""
        if "present" not in self._arrays:
            return np.ones(self.clients, dtype=np.bool_)
        return np.asarray(self._arrays["present"][t], dtype=np.bool_)

    def loss(self, t: int) -> Floats:
        """Cross-entropy of each client's model [K, m]."""
        return self._at("loss", t)

    def global_loss(self, t: int) -> Floats:
        """Cross-entropy of the global model [m]."""
        return self._at("global_loss", t)

    def top(self, t: int) -> Floats:
        """Largest probability of each client's model [K, m]."""
        return self._at("top", t)

    def global_top(self, t: int) -> Floats:
        """Largest probability of the global model [m]."""
        return self._at("global_top", t)

    def spread(self, t: int) -> Floats:
        """The probabilities' standard deviation over classes, of each client's model [K, m]."""
        return self._at("spread", t)

    def global_spread(self, t: int) -> Floats:
        """The probabilities' standard deviation over classes, of the global model [m]."""
        return self._at("global_spread", t)

    def entropy(self, t: int) -> Floats:
        """Entropy of the probabilities of each client's model [K, m]."""
        return self._at("entropy", t)

    def global_entropy(self, t: int) -> Floats:
        """Entropy of the probabilities of the global model [m]."""
        return self._at("global_entropy", t)

    def modified_entropy(self, t: int) -> Floats:
        """Modified entropy of the probabilities of each client's model [K, m]."""
        return self._at("modified_entropy", t)

    def global_modified_entropy(self, t: int) -> Floats:
        """Modified entropy of the probabilities of the global model [m]."""
        return self._at("global_modified_entropy", t)

    def cosine(self, t: int) -> Floats:
        """Cosine of gradient and `start - local` [K, m]."""
        return self._at("cosine", t)

    def cosine_nonzero(self, t: int) -> Floats:
        """`cosine` where the update is not zero [K, m]."""
        return self._at("cosine_nonzero", t)

    def cosine_unshifted(self, t: int) -> Floats:
        """`cosine` with the update's shift taken off [K, m]."""
        return self._at("cosine_unshifted", t)

    def cosine_front(self, t: int) -> Floats:
        """`cosine` over the parameters before the tail [K, m]."""
        return self._at("cosine_front", t)

    def diff(self, t: int) -> Floats:
        """2 <g, u> - |g|^2 [K, m]."""
        return self._at("diff", t)

    def norm2(self, t: int) -> Floats:
        """|g|^2 [m]."""
        return self._at("norm2", t)

    def aggregate_cosine(self, t: int) -> Floats:
        """Cosine with the change of the global model [m]."""
        return self._at("aggregate_cosine", t)

    def aggregate_diff(self, t: int) -> Floats:
        """Difference with the change of the global model [m]."""
        return self._at("aggregate_diff", t)

    def head(self, t: int) -> Floats:
        """Each client's update of the last layer [K, C]."""
        return self._at("head", t)

    def rise(self, t: int) -> Floats:
        """How far each client's update raised each class [K, C]."""
        return self._at("rise", t)

    def _at(self, name: str, t: int) -> Floats:
        values: Floats = self._given(name)[t]
        return values

    def _given(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            raise InputError(
                f"evidence: {name} {_expected(name)} is needed and was not given; given: {_listed(self._arrays)}"
            )
        return self._arrays[name]


class AsOne:
    """Evidence in which each coalition is one client: of its members only the first that is present is seen.

    Args:
        evidence: in which all members of a coalition have the same rows.
        coalitions: their members.
        target: the client asked about, if it is in a coalition; that coalition is then seen as this client.

    """

    def __init__(
        self, evidence: Evidence, coalitions: Sequence[Collection[int]], target: int | None = None
    ) -> None:
        self._evidence, self._coalitions, self._target = evidence, coalitions, target
        self.rounds, self.clients, self.labels = evidence.rounds, evidence.clients, evidence.labels

    def present(self, t: int) -> Flags:
        """Who is seen [K]."""
        return as_one(self._evidence.present(t), self._coalitions, self._target)

    def __getattr__(self, signal: str) -> Any:
        return getattr(self._evidence, signal)


def as_one(present: Flags, coalitions: Sequence[Collection[int]], target: int | None = None) -> Flags:
    """Who is seen [K] of those present, where each coalition is seen as one client; see `AsOne`."""
    seen = np.array(present, dtype=np.bool_)
    for members in coalitions:
        there = [client for client in sorted(members) if seen[client]]
        hidden = [client for client in there if client != target] if target in members else there[1:]
        seen[hidden] = False
    return seen


def apart(
    evidence: Evidence, coalitions: Sequence[Collection[int]], targets: Sequence[int]
) -> Iterator[tuple[Evidence, list[int]]]:
    """The evidence with each coalition as one client, for targets that see the same: members each by themselves."""
    if not coalitions:
        yield evidence, list(targets)
        return
    members = {client for coalition in coalitions for client in coalition}
    outside = [target for target in targets if target not in members]
    sides = [*([(None, outside)] if outside else []), *((one, [one]) for one in targets if one in members)]
    for target, some in sides:
        seen: Any = AsOne(evidence, coalitions, target)
        yield seen, some


@dataclass(frozen=True, slots=True)
class Known:
    """Candidates of which an adversary knows the truth: their columns [n], and who is the target's member [n]."""

    target: int
    columns: Labels
    members: Flags


@dataclass(frozen=True, slots=True)
class Shadow:
    """A federation like the attacked one that the adversary trained itself, on data of its own.

    Args:
        evidence: recorded as the real one was, as far as the attacks that want it read it. Its columns are the real
            evidence's M, which nobody trained on here, and candidates of its own.
        asked: where the real evidence's columns are in it [M]; empty where no attack asks for them.
        known: what the adversary knows of its own clients' members, a target each.

    """

    evidence: "Evidence"
    asked: Labels
    known: tuple[Known, ...]


@dataclass(frozen=True, slots=True)
class Background:
    """What an adversary knows besides the evidence.

    Args:
        shadows: federations that it trained itself.
        population: columns of the real evidence that nobody trained on, in no federation, as the adversary knows.
        known: for an upper bound on what an attack can learn: the truth about some of the real candidates, a target
            each. Such an attack is judged on the other candidates.

    """

    shadows: tuple[Shadow, ...] = ()
    population: Labels = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    known: tuple[Known, ...] = ()


class View:
    """Evidence as one adversary sees it; everything comes out as finite float64.

    A vantage that sees single updates gets the target's column from `own`, the other clients' from `others`, and
    all from `everyone`. Every other vantage sees global models only: `own` is then the global model's, the same for
    every target, in every recorded round, and `others` and `everyone` raise ThreatModelError.
    """

    def __init__(self, evidence: Evidence, vantage: Vantage, background: Background | None = None) -> None:
        if vantage not in get_args(Vantage):
            raise InputError(f"vantage: got {vantage!r}; expected one of {', '.join(get_args(Vantage))}")
        self.vantage: Vantage = vantage
        self.background = background or Background()
        self.counters: Counters = {}
        self.rounds_read: set[int] = set()
        self._evidence = evidence
        self._reader = _Reader(evidence)
        self._whole: View | None = None
        self._parts: dict[int, Self] = {}

    @property
    def clients(self) -> int:
        """K, all clients of the federation."""
        return self._evidence.clients

    @property
    def labels(self) -> Labels:
        """The candidates' classes [m]; whoever asks about an example knows its label."""
        return np.asarray(self._evidence.labels, dtype=np.int64)

    @property
    def sees_updates(self) -> bool:
        """Whether this adversary sees what single clients uploaded."""
        return self.vantage in SINGLE_UPDATES

    @property
    def recorded(self) -> tuple[int, ...]:
        """The numbers (from 1) of the recorded rounds: `recorded[t]`."""
        return self._evidence.rounds

    def of(self, target: int) -> Self:
        """This view with counters of its own for one target; what it counts, this view counts as well."""
        if target not in self._parts:
            part = copy.copy(self)
            part.counters, part.rounds_read, part._parts, part._whole = {}, set(), {}, self
            self._parts[target] = part
        return self._parts[target]

    def rounds(self, target: int) -> list[int]:
        """The recorded rounds t to read for a target: its own ones, or all under a vantage on global models."""
        self._check(target)
        every = range(len(self.recorded))
        found = [t for t in every if not self.sees_updates or self._evidence.present(t)[target]]
        if not found:
            raise InputError(
                f"client {target} took part in none of the recorded rounds {', '.join(map(str, self.recorded))}; "
                "lower record_every, train more rounds or choose another target"
            )
        return found

    def company(self, target: int, t: int) -> int:
        """How many other clients took part in round t."""
        self._need_updates("the list of single clients' updates")
        return int(self._others(target, t).sum())

    def present(self, t: int) -> NDArray[np.int64]:
        """The numbers of the clients that took part in round t [n], increasing."""
        self._need_updates("the list of single clients' updates")
        return np.flatnonzero(self._evidence.present(t))

    def own(self, signal: Signal, target: int, t: int) -> Values:
        """The signal of the target's update [m] (`head rise`: [C]), or of the global model under its vantages."""
        values: Values = self.each(signal, [target], t)[0]
        return values

    def each(self, signal: Signal, targets: Sequence[int], t: int, columns: slice = EVERY) -> Values:
        """`own` of several targets [targets, m] (`head rise`: [targets, C]), or some columns of it."""
        for target in targets:
            self._check(target)
        if not self.sees_updates and signal not in OF_THE_GLOBAL_MODEL:
            self._need_updates(f"own({signal!r})")
        name = signal if self.sees_updates else OF_THE_GLOBAL_MODEL[signal]
        if self.sees_updates:
            self._check_present(signal, targets, t)
        values = self._read(name, t)
        if values.ndim == 1:
            return np.tile(self._finite(name, t, values[columns]), (len(targets), 1))
        return self._finite(name, t, values[list(targets), columns])

    def others(self, signal: Signal, target: int, t: int) -> Values:
        """The signal of the other clients that took part [<= K-1, m] (`head rise`: [.., C])."""
        self._check(target)
        self._need_updates(f"others({signal!r})")
        return self._finite(signal, t, self._read(signal, t)[self._others(target, t)])

    def everyone(self, signal: Signal, t: int, columns: slice = EVERY) -> Values:
        """The signal of every client of `present(t)` [n, m] (`head rise`: [n, C]), or some columns of it."""
        self._need_updates(f"everyone({signal!r})")
        return self._finite(signal, t, self._read(signal, t)[self.present(t), columns])

    def shadow_views(self, least: int = 1) -> "list[tuple[Shadow, View]]":
        """The adversary's own federations, each with a view of it from the same place.

        Raises InputError where there are fewer than `least`.
        """
        shadows = self.background.shadows
        if len(shadows) < least:
            raise InputError(
                f"shadows: got {len(shadows)} shadow federations; expected {least} or more, which a run trains and "
                "plain arrays do not have"
            )
        return [(shadow, View(shadow.evidence, self.vantage)) for shadow in shadows]

    def population(self) -> Labels:
        """Columns of the evidence that the adversary knows to be nobody's; InputError where there are none."""
        if not len(self.background.population):
            raise InputError("population: got no examples that the adversary knows to be nobody's; expected some")
        return self.background.population

    def known(self, target: int) -> Known:
        """The candidates of a target of which the adversary knows the truth; InputError where there are none."""
        for known in self.background.known:
            if known.target == target:
                return known
        raise InputError(f"known: got no candidates of client {target} whose truth is known; expected some")

    def count(self, name: str, n: float = 1) -> None:
        """Add n to a counter of what the attack did (n = 0 shows the counter at zero)."""
        self.counters[name] = self.counters.get(name, 0) + n
        if self._whole is not None:
            self._whole.count(name, n)

    def _others(self, target: int, t: int) -> Flags:
        present = np.array(self._evidence.present(t), dtype=np.bool_)
        present[target] = False
        return present

    def _read(self, name: str, t: int) -> Floats:
        self._note(t)
        return self._reader.read(name, t)

    def _note(self, t: int) -> None:
        self.rounds_read.add(t)
        if self._whole is not None:
            self._whole._note(t)

    def _finite(self, name: str, t: int, found: Floats) -> Values:
        values: Values = found.astype(np.float64)
        bad = values.size - np.count_nonzero(np.isfinite(values))
        if bad:
            raise InputError(
                f"evidence: {bad} of {values.size} values of {name} in round {self.recorded[t]} are not finite; "
                "expected numbers for every client that is present"
            )
        return values

    def _check(self, target: int) -> None:
        if not isinstance(target, int | np.integer) or not 0 <= target < self.clients:
            raise InputError(f"target: got {target!r}; expected a client number, 0..{self.clients - 1}")

    def _check_present(self, signal: Signal, targets: Sequence[int], t: int) -> None:
        present = self._evidence.present(t)
        for target in targets:
            if not present[target]:
                raise InputError(
                    f"client {target} did not take part in round {self.recorded[t]}; there is no {signal} of it"
                )

    def _need_updates(self, asked: str) -> None:
        if not self.sees_updates:
            raise ThreatModelError(
                f"vantage {self.vantage} sees global models only; {asked} asks for the updates of single clients, "
                f"which are hidden from it (seen by: {', '.join(SINGLE_UPDATES)})"
            )


class _Reader:
    """Holds the round read last: attacks ask for the target's row, then for the others of the same round."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._held: tuple[tuple[str, int], Floats] | None = None
        self._lock = threading.Lock()

    def read(self, name: str, t: int) -> Floats:
        """The evidence itself: whoever hands it out hands out a copy. Threads may share it."""
        with self._lock:
            if self._held is None or self._held[0] != (name, t):
                self._held = (name, t), np.asarray(getattr(self._evidence, name)(t))
            return self._held[1]


def _array(name: str, given: Any) -> NDArray[Any]:
    if name not in AXES:
        raise InputError(f"evidence: unknown array {name!r}{nearest(name, list(AXES))}; known: {', '.join(AXES)}")
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"evidence {name}: not an array ({error}); expected {_expected(name)}") from None
    kinds, what = {"labels": ("iu", "integers"), "present": ("b", "booleans")}.get(name, ("fiu", "numbers"))
    if array.dtype.kind not in kinds:
        raise InputError(f"evidence {name}: got type {array.dtype}; expected {what} {_expected(name)}")
    if array.ndim != len(AXES[name]) or 0 in array.shape:
        raise InputError(f"evidence {name}: got shape {array.shape}; expected {_expected(name)}, none of them 0")
    return array


def _sizes(arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """The size of every axis; InputError where two arrays differ."""
    sizes: dict[str, int] = {}
    first: dict[str, str] = {}
    for name, array in arrays.items():
        for axis, size in zip(AXES[name], array.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise InputError(
                    f"evidence {name}: got shape {array.shape}; expected {_expected(name)} "
                    f"with {axis} = {sizes[axis]} as in {first[axis]}"
                )
            first.setdefault(axis, name)
    return sizes


def _expected(name: str) -> str:
    return f"[{', '.join(AXES[name])}]"


def _listed(arrays: Mapping[str, NDArray[Any]]) -> str:
    return ", ".join(arrays) or "nothing"
