"""Promised and delivered: whether a privacy mod that a client declared shows in what the server received.

A server cannot make a site run a mod, and can look at what comes. Each declared defence of the update is turned
into what it promises about an update (its length, its noise, its zeros, its levels), and each promise is held
against every received update by itself, with nobody's data and no model of training:

- a *length* promised by clipping alone, *zeros* and *levels* are bounds, which no honest update passes but by
  rounding;
- *noise* is promised by a distribution, so that an honest client passes a bound now and then. The chance that any
  honest client of the log is called broken is at most `alpha`, which is shared out evenly over all such tests, one
  for each promise in each received update (Bonferroni).

What arrives is the sum of a model and an update, rounded, less the model. That rounding is allowed for, coordinate
by coordinate: float32's, or float16's where the server's own model is written in it.

`kept` says that what was received is what the mod makes, and would hardly have come without it; it does not say who
made it. A client that takes the trouble to forge a length, noise or zeros delivers them. `cannot be told` says why.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, singledispatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.special import erf
from scipy.stats import chi2

from fedsiege.defences.client.base import ClientDefence, is_neutral
from fedsiege.defences.client.dp_fedavg import DPFedAvg
from fedsiege.defences.client.perturb import Perturb
from fedsiege.defences.client.quantize import Quantize
from fedsiege.defences.client.sparsify import Sparsify
from fedsiege.errors import InputError
from fedsiege.registry import build, label_of, names
from fedsiege.update_log import TensorSpec, UpdateLog, shown

ALPHA = 1e-3
"""Chance, at most, that any honest client of a log is called broken."""

CLIPPED = 1e-4
"""By what share a clipped update may be longer than its bound: norms are counted in single precision."""

LIKE = 0.1
"""Largest distance between the distributions of the entries' sizes and of normal ones that is taken for noise."""

LOUD = 1.5
"""Largest root mean square of the entries, in standard deviations of the noise, that is taken for noise."""

BY_CHANCE = 1e-6
"""Chance below which entries that all lie on levels are not there by accident."""

NAMED = 200
"""So many characters of what a client wrote stand in a sentence."""

COHORT = "cohort"
"""Beside a declared component's own fields: among how many clients of a round its noise was shared out."""

MOMENTS = {
    "on_data": "the data",
    "on_epoch": "the order of examples",
    "on_images": "the inputs",
    "on_batch": "the batches",
    "on_loss": "the loss",
    "on_gradient": "the gradients",
}
"""The moments of a client defence that lie before there is an update, in words."""

Outcome = Literal["kept", "broken", "cannot be told"]
COLOURS: dict[Outcome, str] = {"kept": "green", "broken": "bold red", "cannot be told": "yellow"}
"""Of an outcome in a terminal."""

Floats = NDArray[np.float64]
Declared = Mapping[int, Sequence[Mapping[str, Any]]]
"""What each client says it ran, by number: components as a config names them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the received updates of one client say about one promise.

    Args:
        client: its number.
        component: the declared defence with the fields that differ from their defaults.
        promise: what it promises about an update, in words; empty where it promises nothing that could be seen.
        outcome: `kept` in every round, `broken` in at least one, or `cannot be told`.
        why: a sentence.
        statistic, threshold: of the round that speaks most against it, in the units that `promise` names.
        p: chance of such a statistic if the promise is kept, or a bound of it; None where the threshold is no
            matter of chance.
        level: the p below which a promise counts as broken: alpha over all tests of the log; None likewise.
        round: the round that speaks most against it.
        rounds: in how many rounds it was looked at.

    """

    client: int
    component: str
    promise: str
    outcome: Outcome
    why: str
    statistic: float | None = None
    threshold: float | None = None
    p: float | None = None
    level: float | None = None
    round: int | None = None
    rounds: int = 0

    @property
    def sentence(self) -> str:
        """All that a report needs to say."""
        return f"Client {self.client}, {self.component}: {self.outcome}: {self.why}"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one update says about a promise; `telling`: whether a broken one would have looked otherwise."""

    broken: bool
    telling: bool
    statistic: float
    threshold: float
    against: float
    """How much it speaks against the promise, to compare rounds by."""
    p: float | None
    said: str


class Received:
    """An update as it arrived, in float64, and by how much rounding may have moved each entry.

    Args:
        update: `local - start` [d].
        start: the model [d] that it started from.
        tensors: what lies where in them.

    """

    def __init__(
        self, update: NDArray[np.float32], start: NDArray[np.float32], tensors: Sequence[TensorSpec]
    ) -> None:
        self.update = update.astype(np.float64)
        # fl(s + u) is off by a unit of its own size, and the difference to s by one of the update's.
        size = np.abs(start + self.update) + 2 * np.abs(self.update)
        self.slack = unit(start) * size + float(np.finfo(np.float32).smallest_subnormal)
        self.tensors = tuple(tensors)

    def places(self) -> Iterator[tuple[TensorSpec, slice]]:
        """Each trained tensor and where it lies."""
        first = 0
        for tensor in self.tensors:
            if is_trained(tensor.name):
                yield tensor, slice(first, first + tensor.size)
            first += tensor.size

    @cached_property
    def trained(self) -> NDArray[np.bool_]:
        """Which entries belong to trained tensors [d]."""
        kinds = [np.full(tensor.size, is_trained(tensor.name)) for tensor in self.tensors]
        return np.concatenate(kinds)

    def part(self, whole: bool) -> tuple[Floats, Floats]:
        """The entries, and what rounding may have moved them by: all of them, or of trained tensors."""
        if whole or self.trained.all():
            return self.update, self.slack
        return self.update[self.trained], self.slack[self.trained]


def is_trained(name: str) -> bool:
    """Whether a tensor of this name is trained: BatchNorm's running statistics, by PyTorch's names, are not."""
    return name.rpartition(".")[2] not in {"running_mean", "running_var"}


def unit(start: NDArray[np.float32]) -> float:
    """The rounding unit of what travelled: float16's where all of the server's model is written in it."""
    with np.errstate(over="ignore"):
        half = start.astype(np.float16)
    return 2.0**-11 if np.array_equal(half.astype(np.float32), start) and start.any() else 2.0**-24


class Promise:
    """Something that every honest update of a client has."""

    words: str
    """What it is, with the unit of its statistic."""
    by_chance: bool = False
    """Whether an honest update may miss it by chance, so that it is a test."""

    def found(self, received: Received, level: float) -> Finding:
        """What an update says, at this level of a single test."""
        raise NotImplementedError

    def survives(self, later: ClientDefence) -> bool:  # noqa: ARG002 - for those that can
        """Whether it still holds after another defence of the same update."""
        return False


class Length(Promise):
    """The update is no longer than `clip`, but for its noise of standard deviation `sigma`.

    Without noise that is a bound. With noise z of deviation s on d entries, the squared length of u + z over s^2 is
    a non-central chi-squared variable, the larger the longer u is; with L = clip^2,
    P(|u + z|^2 >= s^2 d + L + 2 sqrt((s^4 d + 2 s^2 L) t) + 2 s^2 t) <= exp(-t) (Birge 2001), which gives the p.
    """

    def __init__(self, clip: float, sigma: float, whole: bool) -> None:
        self.clip, self.sigma, self.whole = clip, sigma, whole
        self.by_chance = sigma > 0
        self.words = f"length at most {clip:g}" + (" before its noise" if self.by_chance else "")

    def found(self, received: Received, level: float) -> Finding:
        """Its length, less what rounding can have added."""
        entries, slack = received.part(self.whole)
        length, clip = norm(entries), self.clip * (1 + CLIPPED)
        least = max(0.0, length - norm(slack))
        if not self.by_chance:
            allowed = clip + norm(slack)
            said = f"length {length:.4g}, at most {allowed:.4g} is promised"
            return Finding(length > allowed, True, length, allowed, length / allowed, None, said)
        sigma, d = self.sigma, len(entries)
        p = math.exp(-excess(least, clip, sigma, d))
        threshold = longest(clip, sigma, d, level)
        # Would an update of twice the length, with the noise, have been noticed?
        telling = math.hypot(2 * clip, sigma * math.sqrt(d)) > threshold
        said = f"length {length:.4g}, where clipping to {self.clip:g} and noise make at most {threshold:.4g}"
        if not telling:
            said = f"its noise would hide an update of twice the length ({said})"
        return Finding(p < level, telling, length, threshold, -math.log(max(p, 1e-300)), p, said)

    def survives(self, later: ClientDefence) -> bool:
        """After what only makes updates shorter."""
        return shrinks(later)


class Noise(Promise):
    """Every entry carries normal noise of a standard deviation s, whatever else it is.

    Whatever the update u is, |u_i + z_i| is stochastically larger than |z_i|. So the sum of squares over s^2 is
    stochastically larger than a chi-squared variable of d degrees, and the share of entries of up to any size is
    above that of normal ones by more than D with a chance of at most exp(-2 d D^2) (Massart 1990). p is twice the
    smaller of both. The second finds missing noise under a few long entries, which most updates have.
    """

    by_chance = True

    def __init__(self, sigma: float, whole: bool, cohort: int = 1) -> None:
        """Of `sigma` together in `cohort` uploads, so that each has its share."""
        self.sigma, self.whole = sigma / math.sqrt(cohort), whole
        self.words = f"noise of {self.sigma:.4g} on each entry"
        if cohort > 1:
            self.words += f" ({sigma:.4g} over the root of {cohort} clients)"

    def found(self, received: Received, level: float) -> Finding:
        """The root mean square of its entries, and whether they look like the noise and little else."""
        entries, slack = received.part(self.whole)
        sigma, d = self.sigma, len(entries)
        sizes = np.sort(np.abs(entries) + slack)
        # Not `**`, which raises where a number is too large to be one.
        squares = norm(sizes) / sigma * (norm(sizes) / sigma)
        crowd = crowding(sizes, sigma)
        p = min(1.0, 2 * min(float(chi2.cdf(squares, d)), math.exp(-2 * d * crowd * crowd)))
        rms = norm(entries) / math.sqrt(d)
        threshold = sigma * math.sqrt(float(chi2.ppf(level / 2, d)) / d)
        if p < level:
            said = f"entries of {rms:.3g} root mean square, {crowd:.0%} too many of them small"
            return Finding(True, True, rms, threshold, -math.log(max(p, 1e-300)), p, said)
        alike = apart(sizes, rms) <= LIKE + 1 / math.sqrt(d)
        telling = alike and rms <= LOUD * sigma
        said = f"entries of {rms:.3g} root mean square"
        said += ", distributed as the noise is" if telling else ", which training alone can make as well"
        return Finding(False, telling, rms, threshold, -math.log(max(p, 1e-300)), p, said)


class Zeros(Promise):
    """Of each larger tensor all but a share of entries are zero; those that equal the smallest kept may be more."""

    def __init__(self, share: float, spare: int) -> None:
        self.share, self.spare = share, spare
        self.words = f"share {share:g} of zeros in tensors of more than {spare} entries"

    def found(self, received: Received, level: float) -> Finding:  # noqa: ARG002 - a bound
        """The share of zeros in the tensor that has least of those that it should have."""
        worst: tuple[float, float, bool, str] | None = None
        for tensor, place in received.places():
            if tensor.size <= self.spare:
                continue
            kept = int(tensor.size * (1 - self.share))
            zeros = 1 - int(np.count_nonzero(received.update[place])) / tensor.size
            wanted = 1 - kept / tensor.size
            beyond = beyond_ties(received.update[place], received.slack[place]) > kept
            if worst is None or (beyond, wanted - zeros) > (worst[2], worst[1] - worst[0]):
                worst = (zeros, wanted, beyond, tensor.name)
        if worst is None:
            why = f"no tensor has more than {self.spare} entries, so that none had to have zeros"
            return Finding(False, False, 0.0, 0.0, 0.0, None, why)
        zeros, wanted, beyond, name = worst
        said = f"{zeros:.2%} of the entries of {name} are zero, at least {wanted:.2%} are promised"
        return Finding(beyond, True, zeros, wanted, wanted - zeros, None, said)

    def survives(self, later: ClientDefence) -> bool:
        """After what leaves zeros at zero."""
        return shrinks(later)


class Levels(Promise):
    """The entries of each tensor lie on 2^bits + 1 evenly spaced levels from its smallest to its largest."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.words = f"entries on levels of {bits} bits (distance in steps)"

    def found(self, received: Received, level: float) -> Finding:  # noqa: ARG002 - a bound
        """How far the entry that is farthest from a level is, beyond rounding, and where."""
        chance, worst = 0.0, (0.0, 0.0, -math.inf, "")
        for tensor, place in received.places():
            entries, slack = received.update[place], received.slack[place]
            if tensor.size < 2 or np.ptp(entries) == 0:
                continue
            off, allowed = off_level(entries, slack, self.bits)
            most = int(np.argmax(off - allowed))
            if off[most] - allowed[most] > worst[2]:
                worst = (float(off[most]), float(allowed[most]), float(off[most] - allowed[most]), tensor.name)
            # An entry anywhere between two levels is as near to one with this chance; the two ends are on levels.
            chance += float(np.log(np.partition(np.minimum(1.0, 2 * allowed), 1)[2:]).sum())
        off_most, allowed_most, beyond, name = worst
        telling = chance < math.log(BY_CHANCE)
        if beyond > 0:
            said = f"an entry of {name} is {off_most:.2g} of a step from a level, {allowed_most:.2g} is rounding"
        elif telling:
            said = f"every entry is on a level, to {allowed_most:.2g} of a step in {name}"
        else:
            said = "the levels are too close for what rounding leaves to see"
        return Finding(beyond > 0, telling, off_most, allowed_most, beyond, None, said)


@singledispatch
def promised(defence: ClientDefence, cohort: int = 1) -> list[Promise]:  # noqa: ARG001 - of which nothing is known
    """What a defence promises about the update that leaves the client; nothing where that is not known.

    `cohort` is the number of clients among whom it shared out noise that a round has together.
    """
    return []


@promised.register
def _(defence: Perturb, cohort: int = 1) -> list[Promise]:  # noqa: ARG001 - its noise is each upload's own
    found = [] if defence.clip is None else [Length(defence.clip, defence.sigma, whole=False)]
    return [*found, Noise(defence.sigma, whole=False)] if defence.sigma else [*found]


@promised.register
def _(defence: DPFedAvg, cohort: int = 1) -> list[Promise]:
    sigma, cohort = defence.noise_multiplier * defence.clip, cohort if shares(defence) else 1
    length = Length(defence.clip, sigma / math.sqrt(cohort), whole=True)
    return [length, Noise(sigma, True, cohort)] if sigma else [length]


@promised.register
def _(defence: Sparsify, cohort: int = 1) -> list[Promise]:  # noqa: ARG001 - it has no noise
    return [Zeros(defence.share, defence.spare)] if defence.share else []


@promised.register
def _(defence: Quantize, cohort: int = 1) -> list[Promise]:  # noqa: ARG001 - it has no noise
    return [] if defence.bits is None else [Levels(defence.bits)]


def shares(defence: ClientDefence) -> bool:
    """Whether a defence has less noise the more clients it believes to take part in a round."""
    return isinstance(defence, DPFedAvg) and defence.noise == "distributed" and defence.noise_multiplier > 0


def shrinks(later: ClientDefence) -> bool:
    """Whether a defence only makes entries of an update smaller, and leaves zeros at zero."""
    return isinstance(later, Sparsify) or (
        (isinstance(later, Perturb) and later.sigma == 0)
        or (isinstance(later, DPFedAvg) and later.noise_multiplier == 0)
    )


def check(log: UpdateLog, declared: Declared | None = None, alpha: float = ALPHA) -> list[Verdict]:
    """Whether each client kept each promise, judged on the received updates of a log alone.

    Args:
        log: what a server received.
        declared: components by client, in the order in which they acted; None: what the log says they declared.
        alpha: chance, at most, that any honest client of the log is called broken.

    Returns:
        One verdict for each client and promise, in order of client; one too for each component that promises
        nothing that could be seen. Empty where nothing is declared.

    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha: got {alpha}; expected a number between 0 and 1")
    said = log.declared if declared is None else declared
    if beyond := [client for client in said if not 0 <= client < log.clients]:
        raise InputError(f"declared: got client {beyond[0]}; expected clients from 0 to {log.clients - 1}")
    pledges = [pledge for client in sorted(said) for pledge in pledged(client, said[client], log.clients)]
    if log.observable == "aggregate":
        why = "only the aggregate was recorded, in which no single update can be seen"
        return [pledge.verdict(why) for pledge in pledges]
    findings, level = judged(log, pledges, alpha)
    return [
        pledge.verdict() if pledge.sought is None else concluded(pledge, findings[at], level)
        for at, pledge in enumerate(pledges)
    ]


@dataclass(frozen=True, slots=True)
class Pledge:
    """One promise of one client, or none of a component; `why` it cannot be looked at, where that is so."""

    client: int
    component: str
    promise: Promise | None
    why: str = ""

    @property
    def sought(self) -> Promise | None:
        """The promise, where updates can be held against it."""
        return None if self.why else self.promise

    def verdict(self, why: str = "") -> Verdict:
        """That nothing can be told."""
        words = "" if self.promise is None else self.promise.words
        return Verdict(self.client, self.component, words, "cannot be told", why or self.why)


def pledged(client: int, specs: Sequence[Mapping[str, Any]], clients: int) -> list[Pledge]:
    """What a client's components promise, in their order; components that change nothing promise nothing."""
    built, found = [made(spec) for spec in specs], list[Pledge]()
    for place, (spec, defence) in enumerate(zip(specs, built, strict=True)):
        if isinstance(defence, str):
            found.append(Pledge(client, shown(spec.get("name"), NAMED), None, defence))
            continue
        if is_neutral(defence):
            continue
        label, cohort = label_of(defence), spec.get(COHORT, 1)
        if why := unshared(defence, spec, clients):
            found.append(Pledge(client, label, None, why))
            continue
        promises = promised(defence, cohort)
        if not promises:
            found.append(Pledge(client, label, None, unseen(defence)))
        for promise in promises:
            blurs = [other for other in built[place + 1 :] if not outlives(promise, other)]
            why = f"{_named(blurs[0])} changed the update after it" if blurs else ""
            found.append(Pledge(client, label, promise, why))
    return found


def unshared(defence: ClientDefence, spec: Mapping[str, Any], clients: int) -> str:
    """Why nobody can say how much noise a declared component owes where a round shares it; empty where one can.

    A client that divided by another number than the server has in mind is no liar: it says by which.
    """
    if not shares(defence):
        return ""
    cohort = spec.get(COHORT)
    if cohort is None:
        return "a round's clients share its noise, and it is not declared among how many they shared it out"
    if not isinstance(cohort, int) or isinstance(cohort, bool) or not 1 <= cohort <= clients:
        return f"it shared out its noise among {shown(cohort, 40)} clients, and the log is of {clients}"
    return ""


def made(spec: Mapping[str, Any]) -> ClientDefence | str:
    """A declared component, or why nothing can be said of it.

    Clients write these lists: no name in them makes anything be imported that is not registered.
    """
    name = spec.get("name")
    if name in names("coalition"):
        return "only its members know what a coalition adds to their updates"
    if name not in names("client_defence"):
        return f"no client defence {shown(name, NAMED)!r} is known here"
    try:
        own = {field: value for field, value in spec.items() if field != COHORT}
        defence: ClientDefence = build("client_defence", own, "declared")
    except InputError as error:
        return shown(error, NAMED)
    return defence


def outlives(promise: Promise, later: ClientDefence | str) -> bool:
    """Whether a promise can still be seen after a later component, which may be one that is not known."""
    if isinstance(later, str):
        return False
    acts = type(later).on_update is not ClientDefence.on_update and not is_neutral(later)
    return not acts or promise.survives(later)


def unseen(defence: ClientDefence) -> str:
    """Why a defence leaves nothing to look for in an update: the moments at which it acts."""
    acting = [
        words for moment, words in MOMENTS.items() if getattr(type(defence), moment) is not _moment_of_base(moment)
    ]
    if not acting:
        return "nothing is known of what it leaves in an update"
    return f"it acts on {' and '.join(acting)}, and an update does not show how it was trained"


def judged(
    log: UpdateLog, pledges: Sequence[Pledge], alpha: float
) -> tuple[list[list[tuple[int, Finding]]], float]:
    """What each received update says about each promise, with its round, and the level of a single test."""
    answers = Counter(client for number in log.rounds for client in log.round(number).clients)
    tests = sum(answers[one.client] for one in pledges if one.sought is not None and one.sought.by_chance)
    level = alpha / max(1, tests)
    findings: list[list[tuple[int, Finding]]] = [[] for _ in pledges]
    for number in log.rounds:
        logged = log.round(number)
        for client, row, age in zip(logged.clients, logged.rows(), logged.ages.tolist(), strict=True):
            mine = [(at, one.sought) for at, one in enumerate(pledges) if one.client == client and one.sought]
            received = Received(row, log.start_of(number - age), log.tensors) if mine else None
            for at, promise in mine:
                assert received is not None
                findings[at].append((number, promise.found(received, level)))
    return findings, level


def concluded(pledge: Pledge, findings: Sequence[tuple[int, Finding]], level: float) -> Verdict:
    """The verdict over a client's rounds: broken in one is broken, kept only if every round tells."""
    assert pledge.promise is not None
    if not findings:
        return pledge.verdict("no update of this client was received")
    number, worst = max(findings, key=lambda one: (one[1].broken, one[1].against))
    n, broken = len(findings), sum(one.broken for _, one in findings)
    silent = [(at, one) for at, one in findings if not one.telling]
    outcome: Outcome = "broken" if broken else "cannot be told" if silent else "kept"
    if outcome == "cannot be told":
        number, worst = silent[0]
    often = f"in {broken} of {n} rounds" if broken else f"{n - len(silent)} of {n} rounds tell" if silent else ""
    return Verdict(
        client=pledge.client,
        component=pledge.component,
        promise=pledge.promise.words,
        outcome=outcome,
        why=f"round {number}: {worst.said}" + (f" ({often})" if often else ""),
        statistic=worst.statistic,
        threshold=worst.threshold,
        p=worst.p,
        level=level if pledge.promise.by_chance else None,
        round=number,
        rounds=n,
    )


def norm(entries: Floats) -> float:
    """Euclidean length of entries [d]."""
    return float(np.linalg.norm(entries))


def excess(length: float, clip: float, sigma: float, d: int) -> float:
    """The t at which the bound on the length of a clipped update with noise is `length`; 0 where it is shorter."""
    beyond = length * length - sigma * sigma * d - clip * clip
    if beyond <= 0:
        return 0.0
    middle = 2 * sigma * math.sqrt(sigma * sigma * d + 2 * clip * clip)
    below = middle + math.sqrt(middle * middle + 8 * sigma * sigma * beyond)
    root = 2 * beyond / below if below > 0 else math.inf
    return root * root


def longest(clip: float, sigma: float, d: int, level: float) -> float:
    """The length that a clipped update with noise passes with a chance of at most `level`."""
    t, square, noise = math.log(1 / level), clip * clip, sigma * sigma
    return math.sqrt(noise * d + square + 2 * sigma * math.sqrt((noise * d + 2 * square) * t) + 2 * noise * t)


def half_normal(sizes: Floats, sigma: float) -> Floats:
    """P(|z| <= size) of normal z with this standard deviation [d]."""
    with np.errstate(over="ignore"):
        return np.asarray(erf(sizes / (sigma * math.sqrt(2))), dtype=np.float64)


def crowding(sizes: Floats, sigma: float) -> float:
    """By how much more of the sizes [d], sorted, than of normal entries lie below some size, at most; 0 or more."""
    share = np.arange(1, len(sizes) + 1) / len(sizes)
    return max(0.0, float((share - half_normal(sizes, sigma)).max()))


def apart(sizes: Floats, sigma: float) -> float:
    """Kolmogorov distance of sizes [d], sorted, from those of normal entries; 1 where all are zero."""
    if sigma <= 0:
        return 1.0
    n, expected = len(sizes), half_normal(sizes, sigma)
    above = (np.arange(1, n + 1) / n - expected).max()
    below = (expected - np.arange(n) / n).max()
    return float(max(above, below))


def beyond_ties(entries: Floats, slack: Floats) -> int:
    """How many entries are not zero, not counting all but one of those that may be as small as the smallest."""
    sizes = np.abs(entries)
    some = sizes > 0
    if not some.any():
        return 0
    smallest = (sizes + slack)[some].min()
    return 1 + int(np.count_nonzero((sizes - slack)[some] > smallest))


def off_level(entries: Floats, slack: Floats, bits: int) -> tuple[Floats, Floats]:
    """How far each entry [n] is from a level, and by how much rounding may move it, both in steps."""
    low, high = int(np.argmin(entries)), int(np.argmax(entries))
    step = (entries[high] - entries[low]) / 2**bits
    places = (entries - entries[low]) / step
    # The ends are rounded too, and levels are counted in single precision.
    ends = slack[low] + slack[high] + 4 * 2.0**-24 * max(abs(entries[low]), abs(entries[high]))
    return np.abs(places - np.rint(places)), (slack + 2 * ends) / step


def _named(defence: ClientDefence | str) -> str:
    return "a component that is not known" if isinstance(defence, str) else label_of(defence)


def _moment_of_base(moment: str) -> object:
    return getattr(ClientDefence, moment)


def declared_in(path: Path, clients: int) -> dict[int, list[dict[str, Any]]]:
    """What a YAML or JSON file says that clients declared: a list of components, or one for each client.

    A list is every client's, or of those that a component's own field `clients` names. InputError names the file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a list of components, or one for each client")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({str(error)[:200]})") from None
    if isinstance(said, list):
        return _of_all(_components(said, str(path)), clients, str(path))
    if not isinstance(said, dict) or not all(str(key).isdecimal() for key in said):
        raise InputError(f"{path}: expected a list of components, or a client's number: [components]")
    return {int(client): _components(specs, f"{path}: {client}") for client, specs in said.items()}


def _components(said: object, where: str) -> list[dict[str, Any]]:
    named = [{"name": one} if isinstance(one, str) else one for one in said] if isinstance(said, list) else None
    if named is None or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in named):
        raise InputError(f"{where}: got {said!r}; expected [{{name: ..., field: ...}}, ...]"[:300])
    return named


def _of_all(specs: list[dict[str, Any]], clients: int, where: str) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {client: [] for client in range(clients)}
    for place, spec in enumerate(specs):
        defence = made(spec)
        if isinstance(defence, str):
            raise InputError(f"{where}: {place}: {defence}")
        for client in sorted(defence.users(clients, f"{where}: {place}")):
            found[client].append(spec)
    return found


def table(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts for a terminal."""
    made_of = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("Client", "Declared", "Promise", "Verdict", "Why"):
        made_of.add_column(name, justify="right" if name == "Client" else "left", overflow="fold")
    for one in verdicts:
        cells = [str(one.client), one.component, one.promise or "-", one.outcome, one.why]
        made_of.add_row(
            *(Text(cell, style=COLOURS[one.outcome] if at == 3 else "") for at, cell in enumerate(cells))
        )
    return made_of


def as_json(verdicts: Sequence[Verdict], log: UpdateLog) -> dict[str, Any]:
    """The verdicts for a program: `{"log": ..., "verdicts": [...], "counts": {...}}`."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    return {"log": str(log.folder), "counts": dict(counts), "verdicts": [asdict(one) for one in verdicts]}


def verify(log: UpdateLog, declared: Path | None = None, json_wanted: bool = False) -> bool:
    """Check a log, show the verdicts in the terminal or as JSON; whether no promise is broken.

    `declared` is a file as `declared_in` reads it, in place of what the log says. InputError where nobody declares
    anything.
    """
    said = log.declared if declared is None else declared_in(declared, log.clients)
    verdicts = check(log, said)
    if not any(said.values()):
        raise InputError(f"{log.folder}: nobody declares a defence; expected some in log.json, or --declared FILE")
    counts = Counter(verdict.outcome for verdict in verdicts)
    if json_wanted:
        print(json.dumps(as_json(verdicts, log), indent=2))
        return not counts["broken"]
    console = Console(soft_wrap=False)
    console.print(table(verdicts))
    level = next((one.level for one in verdicts if one.level is not None), None)
    chance = f"; a test's level is {level:.2g}, {ALPHA:g} over all of them" if level is not None else ""
    words = ", ".join(f"{counts[outcome]} {outcome}" for outcome in COLOURS)
    found = f"{len(verdicts)} promise" + ("" if len(verdicts) == 1 else "s")
    console.print(f"{found}: {words}{chance}", highlight=False)
    return not counts["broken"]
