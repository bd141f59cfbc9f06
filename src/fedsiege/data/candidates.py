"""Which examples an audit asks about, and which it knows to be nobody's: drawn once per run and frozen.

The same candidates are scored for every client, every round and every attack. Non-members that are drawn anew per
client and round, as published code does, yield a TPR of 20-40 % at 0.1 % FPR without any leakage.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from fedsiege.data.dataset import Dataset
from fedsiege.errors import InputError
from fedsiege.metrics.null import NULLS, SIDE
from fedsiege.records import Examples, Ids, joined
from fedsiege.streams import stream

Rows = NDArray[np.int64]

MEMBERS = ("member", "pseudo_ifl", "pseudo_ofl")
"""Groups that an attack should rank high: the target's members, and a null run's pseudo-members."""


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CandidateSpec:
    """How many examples each target is asked about."""

    members: Annotated[int, Field(ge=1)] | None = None
    """The target's own examples; null: all."""
    ifl: Annotated[int, Field(ge=0)] = 500
    """Other clients' examples (in the federation), evenly over them; a null test halves them."""
    ofl: Annotated[int, Field(ge=0)] = 500
    """Held-out examples (out of the federation); a null test halves them."""
    null: bool = False
    """Test the audit itself: the non-members are halved, one half plays member, so the truth is AUC 0.5."""
    compat: Literal["none", "fedmia"] = "none"
    """fedmia: non-members are drawn anew per client and round when scores are computed (published figures only)."""


@dataclass(frozen=True, slots=True)
class Audit:
    """The truth about one target: who is what. Never handed to an attack.

    `ids` [n] are sorted; `groups` [n] are member, ifl or ofl, and in a null audit pseudo_ifl and pseudo_ofl (the
    pseudo-members) or ifl and ofl. `draw` is 0, or the number of the random halving of a null test.
    """

    target: int
    draw: int
    ids: Ids
    groups: NDArray[np.str_]

    @property
    def members(self) -> NDArray[np.bool_]:
        """Which of them an attack should rank high [n]."""
        members: NDArray[np.bool_] = np.isin(self.groups, MEMBERS)
        return members

    def halves(self, seed: int) -> "tuple[Audit, Audit]":
        """The audit cut in two at random, each group as evenly as it goes: what an attack is told, and the rest."""
        rng = stream(seed, "candidates", "known", self.target, self.draw)
        told = np.zeros(len(self.ids), dtype=np.bool_)
        for group in np.unique(self.groups):
            own = rng.permutation(np.flatnonzero(self.groups == group))
            told[own[: len(own) // 2]] = True
        first, second = (replace(self, ids=self.ids[some], groups=self.groups[some]) for some in (told, ~told))
        return first, second


@dataclass(frozen=True, slots=True)
class Candidates:
    """The union of all audits' examples and the population, sorted by id (their order says nothing); the audits.

    `population` are the ids of examples that nobody trains on and no audit asks about, in random order.
    """

    examples: Examples
    audits: tuple[Audit, ...]
    population: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.str_))

    @property
    def asked(self) -> Examples:
        """The examples that some audit asks about."""
        return self.examples.take(np.flatnonzero(~np.isin(self.examples.ids, self.population)))


def anybodys(audits: Sequence[Audit]) -> dict[str, bool]:
    """By id, whether an example that is asked about is anybody's; once, however many targets it was drawn for."""
    groups = {i: g for one in audits for i, g in zip(one.ids.tolist(), one.groups.tolist(), strict=True)}
    return {identity: not group.endswith("ofl") for identity, group in groups.items()}


def resolve_targets(targets: str | int | list[int], clients: int) -> list[int]:
    """The audited clients of `targets: all | number | [numbers]`; InputError for anything that is no client."""
    if targets == "all":
        return list(range(clients))
    listed = targets if isinstance(targets, list) else [targets]
    if not listed:
        raise InputError("targets: got an empty list; expected all, a client or a list of clients")
    for target in listed:
        if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < clients:
            raise InputError(f"targets: got {target!r}; expected all or client numbers from 0 to {clients - 1}")
    if len(set(listed)) < len(listed):
        raise InputError(f"targets: got {listed}; a client is named twice")
    return [int(target) for target in listed]


def draw(
    data: Dataset,
    shards: list[Rows],
    targets: list[int],
    spec: CandidateSpec,
    seed: int,
    population: int = 0,
    apart: Collection[int] = (),
) -> Candidates:
    """The candidates of every target, and a `population` of so many examples, drawn once.

    Each client has one random order of its examples, the held-out data another. A target's members are the first
    of its own order, its IFL examples the first of the others' orders in turn, its OFL examples the first held-out
    ones: targets share their non-members and the union stays small. A null test halves such pools at random, with
    a stream of its own per target and draw. The population comes from what is `spare`. Nobody asks about the
    examples of clients that are `apart`.

    Raises InputError when a target is no client or has no examples, or more is asked than there is.
    """
    targets = resolve_targets(targets, len(shards))
    orders = [stream(seed, "candidates", client).permutation(rows) for client, rows in enumerate(shards)]
    outside = stream(seed, "candidates", "heldout").permutation(len(data.heldout))
    if spec.ifl // 2 + spec.ofl // 2 < SIDE if spec.null else spec.ifl + spec.ofl < 1:
        raise InputError(_too_few(data, shards, targets, spec))
    turns = _in_turn([rows[:0] if client in apart else rows for client, rows in enumerate(orders)])
    audits = []
    for target in targets:
        pools = _ifl_pool(*turns, target, len(orders[target]), spec), _ofl_pool(outside, spec)
        if spec.null:
            draws = range(ceil(NULLS / len(targets)))
            audits += [_null_audit(data, target, number, pools, seed) for number in draws]
        else:
            audits.append(_audit(data, target, _members(orders, target, spec), *pools))
    asked = np.unique(np.concatenate([audit.ids for audit in audits]))
    nobodys = _population(data, shards, asked, population, seed)
    return Candidates(_taken(data, np.concatenate([asked, nobodys])), tuple(audits), nobodys)


def spare(data: Dataset, shards: list[Rows], asked: Ids) -> tuple[Rows, Rows]:
    """The rows of `train` that no client owns and the rows of `heldout`, but for those that are `asked` about.

    They are what an adversary may own itself. The accuracy of the global model is measured on all of `heldout`:
    that an adversary knows some of it changes neither the model nor its accuracy.
    """
    unowned = np.setdiff1d(np.arange(len(data.train)), np.concatenate(shards))
    return unowned[~np.isin(data.train.ids[unowned], asked)], np.flatnonzero(~np.isin(data.heldout.ids, asked))


def _population(data: Dataset, shards: list[Rows], asked: Ids, count: int, seed: int) -> Ids:
    train, heldout = spare(data, shards, asked)
    ids: Ids = np.concatenate([data.train.ids[train], data.heldout.ids[heldout]])
    if count > len(ids):
        raise InputError(
            f"attacks: got a population of {count} examples that nobody trains on and nothing "
            f"else asks about; there are {len(ids)} ({len(train)} training examples that no client owns, "
            f"{len(heldout)} held out): lower population, candidates.ofl, validation or examples_per_client"
        )
    drawn: Ids = stream(seed, "candidates", "population").permutation(ids)[:count]
    return drawn


def _members(orders: list[Rows], target: int, spec: CandidateSpec) -> Rows:
    there = len(orders[target])
    if not there:
        raise InputError(f"targets: client {target} has no examples, so it has no candidates")
    if spec.members is not None and spec.members > there:
        raise InputError(f"candidates.members: got {spec.members}; client {target} has {there} examples")
    return orders[target][: spec.members]


def _in_turn(orders: list[Rows]) -> tuple[Rows, Rows]:
    """All clients' rows, one of each in turn (a client that runs out is passed over), and whose they are."""
    sizes = [len(rows) for rows in orders]
    order = np.argsort(np.concatenate([np.arange(size) for size in sizes]), kind="stable")
    return np.concatenate(orders)[order], np.repeat(np.arange(len(orders)), sizes)[order]


def _ifl_pool(rows: Rows, owners: Rows, target: int, own: int, spec: CandidateSpec) -> Rows:
    """The first rows of the other clients, in turn; the target has `own` of them all."""
    if spec.ifl > len(rows) - own:
        raise InputError(
            f"candidates.ifl: got {spec.ifl}; clients other than {target} have {len(rows) - own} examples together"
        )
    # Even where all of the target's own come first, these are enough: no look at all rows for each target.
    near = slice(spec.ifl + own)
    first: Rows = rows[near][owners[near] != target]
    return first[: spec.ifl]


def _ofl_pool(outside: Rows, spec: CandidateSpec) -> Rows:
    if spec.ofl > len(outside):
        raise InputError(f"candidates.ofl: got {spec.ofl}; there are {len(outside)} held-out examples")
    return outside[: spec.ofl]


def _audit(data: Dataset, target: int, members: Rows, ifl: Rows, ofl: Rows) -> Audit:
    parts = {"member": data.train.ids[members], "ifl": data.train.ids[ifl], "ofl": data.heldout.ids[ofl]}
    return _sorted(target, 0, parts)


def _null_audit(data: Dataset, target: int, number: int, pools: tuple[Rows, Rows], seed: int) -> Audit:
    """Both pools halved at random: one half plays member."""
    rng = stream(seed, "candidates", "null", target, number)
    parts: dict[str, Ids] = {}
    for name, pool, owner in zip(("ifl", "ofl"), pools, (data.train, data.heldout), strict=True):
        shuffled = owner.ids[rng.permutation(pool)]
        half = len(pool) // 2
        parts |= {f"pseudo_{name}": shuffled[:half], name: shuffled[half : 2 * half]}
    return _sorted(target, number, parts)


def _sorted(target: int, number: int, parts: dict[str, Ids]) -> Audit:
    ids = np.concatenate(list(parts.values()))
    groups = np.repeat(list(parts), [len(part) for part in parts.values()])
    order = np.argsort(ids)
    return Audit(target, number, ids[order], groups[order])


def _taken(data: Dataset, ids: Ids) -> Examples:
    """The examples of these ids, sorted by id."""
    train, heldout = (part.take(np.flatnonzero(np.isin(part.ids, ids))) for part in (data.train, data.heldout))
    union = joined([train, heldout])
    return union.take(np.argsort(union.ids))


def _too_few(data: Dataset, shards: list[Rows], targets: list[int], spec: CandidateSpec) -> str:
    if not spec.null:
        return "candidates: ifl and ofl are both 0; expected at least one non-member"
    owned = sum(len(rows) for rows in shards)
    ifl = min(owned - len(shards[target]) for target in targets)
    return (
        f"candidates: a null test halves ifl + ofl and needs {SIDE} examples a side; "
        f"got {spec.ifl} + {spec.ofl}, and there are {ifl} and {len(data.heldout)}"
    )
