"""Which clients form coalitions, as a server can tell from the tails of their uploads.

Members of a coalition add noise to the last parameters of their uploads whose weighted sum over those present is
zero. Noise that hides an update is larger than the update, and so its balance gives it away: the weighted sum of
the members' tails is far smaller than its terms, in every round.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from fedsiege.errors import InputError
from fedsiege.trace import Trace
from fedsiege.view import Values

Form = Literal["scalar", "vector"]

LOUD = 0.25
"""A long tail whose mean is a larger share of its entries' standard deviation was shifted; see `loud`."""

FEW = 12.0
"""A tail of n entries has to be louder than this by the square root of n: the mean of few varies more.

A short tail is only part of the last layer, and its mean tells which classes a client has.
"""

HIDDEN = 1.0
"""Whatever its length, a tail with a larger mean than deviation was shifted: such noise hides the update."""

STRONGER = 1.5
"""Noise with a number for each entry makes a tail's deviation larger than other clients' by this factor."""

NOISY = 3.5
"""A client in no coalition is called noisy from this deviation on, in units of the clients' median."""

BALANCED = 0.2
"""Members whose sum is a larger share of its terms are no coalition.

Clients that own different classes pull the last layer in opposite directions: on digits two of them came to 0.27.
"""

CHANCE = 0.01
"""Probability at which noise that does not cancel may seem to, in any of the sets that are looked at."""

TYPICAL = 3
"""Quiet clients from which on their mean stands for what all updates share."""

EXACT = 16
"""Clients up to which every set of them is looked at."""

ALIKE = 2.0
"""A smaller set is preferred to a larger one whose balance is better by less than this factor."""


@dataclass(frozen=True, slots=True)
class Found:
    """A coalition: its members, sorted, the form of its noise, and how well it cancels.

    `balance` is the root mean square of the weighted sum of the members' noise, as a share of what independent
    noise of the same size would leave: about 1 where nothing cancels.
    """

    members: tuple[int, ...]
    form: Form
    balance: float


@dataclass(frozen=True, slots=True)
class Detection:
    """What the tails of the uploads tell.

    Args:
        coalitions: those found.
        unbalanced: clients whose tails are noisy and that are in none of them: their noise does not cancel.
        shift: of each client, the root mean square over rounds of its tail's mean, in units of the standard
            deviation of the tail's entries [K]; noise of one number a member makes it large.
        deviation: the standard deviation of its tail's entries, in units of the clients' median [K]; noise of a
            number an entry makes it large.

    Clients that were never there have NaN.

    """

    coalitions: tuple[Found, ...]
    unbalanced: tuple[int, ...]
    shift: Values
    deviation: Values


def loud(tail: int) -> float:
    """The shift from which on a tail of so many entries is taken for one with noise.

    Measured on digits without any defence: 8 clients, 3 and 8 rounds, tails of 2, 5 and 20 % (24 to 4,277 entries)
    of two small networks and a convolutional one, on eight seeds that the figures above were not chosen on. Of
    1,152 looks at a client none was called noisy with labels alike, 5 were with skewed ones (Dirichlet, 0.3); no
    coalition was found. After 8 rounds, a pair with noise of one number was found 65, 70 and 72 times in 72 at
    sigma 0.05, 0.1 and 0.37, and 36, 58 and 71 times with skewed labels: short tails hide the smaller noise.
    """
    return min(HIDDEN, max(LOUD, FEW / math.sqrt(tail)))


def detect(trace: Trace, weights: Sequence[float] | None = None) -> Detection:
    """Find the coalitions among the clients of a recorded federation.

    Noise of one number a member is told from the tails' means, over all rounds; few rounds take a better balance
    to tell it from chance. Noise of a number an entry has no mean: it is told from the products of the tails with
    each other, less their means, first among the clients whose tails are larger than the quietest's, and less
    what the quiet clients sent: what all updates share does not cancel. Where few clients are quiet it cannot be
    taken off, and the more members there are, the larger their noise has to be. Rounds in which a member's answer
    was lost do not balance.

    Every set of clients is looked at while there are no more than `EXACT` that could be members. Beyond, sets are
    found by leaving out one client after the other, which may take several coalitions for one, or find none.

    Args:
        trace: recorded with a tail: in a run with a coalition, or with `trace.tail` set.
        weights: of the clients in the aggregation [K]; those that their answers came with when left out.

    Raises InputError for a trace without a tail.

    """
    tails = _Tails.of(trace, weights)
    shift, deviation = tails.shift(), tails.deviation()
    shifted = [client for client in tails.clients if shift[client] >= loud(trace.tail)]
    found = _search(tails.of_means(), shifted, tails.rounds, "scalar")
    taken = {client for one in found for client in one.members}
    left = [client for client in tails.clients if client not in taken]
    dimensions = tails.rounds * trace.tail
    least = STRONGER * min((deviation[client] for client in left), default=0.0)
    louder = [client for client in left if deviation[client] >= least]
    quiet = [client for client in tails.clients if client not in louder]
    shared = quiet if len(quiet) >= TYPICAL else []
    by_entry = _search(tails.of_entries(shared), louder, dimensions, "vector")
    if not by_entry:  # where all clients are members, none is quiet
        by_entry = _search(tails.of_entries([]), left, dimensions, "vector")
        by_entry = by_entry if sum(len(one.members) for one in by_entry) == len(left) else []
    found += by_entry
    taken = {client for one in found for client in one.members}
    noisy = {*shifted, *(client for client in left if deviation[client] >= NOISY)}
    return Detection(tuple(found), tuple(sorted(noisy - taken)), shift, deviation)


@dataclass(frozen=True, slots=True)
class _Tails:
    """The tails of R rounds: weights, means and deviations [R, K], zero where a client was absent.

    `between` [R, K, K] are the products of tails, each less its mean.
    """

    weights: Values
    means: Values
    spread: Values
    between: Values

    @classmethod
    def of(cls, trace: Trace, weights: Sequence[float] | None) -> "_Tails":
        """What a trace holds of the rounds in which several clients were there."""
        if not trace.tail:
            raise InputError(
                f"{trace.folder}: was recorded without a tail; expected a run with a coalition, or with trace.tail"
            )
        chosen = [t for t in range(len(trace.rounds)) if trace.present(t).sum() > 1]
        if not chosen:
            raise InputError(f"{trace.folder}: no recorded round with two clients; expected one or more")
        rounds = [_round(trace, t, weights) for t in chosen]
        shares, means, spread, between = (np.stack(parts) for parts in zip(*rounds, strict=True))
        return cls(shares, means, spread, between)

    @property
    def rounds(self) -> int:
        """R, how many rounds there are."""
        return len(self.weights)

    @property
    def clients(self) -> list[int]:
        """Those that were there in any of the rounds."""
        return [int(client) for client in np.flatnonzero(self.weights.any(0))]

    def shift(self) -> Values:
        """The tails' means by their deviations, over all rounds [K]."""
        return _ratio(np.square(self.means).sum(0), np.square(self.spread).sum(0))

    def deviation(self) -> Values:
        """The tails' deviations by the median client's [K], the mean over rounds."""
        there = np.where(self.weights > 0, self.spread, np.nan)
        typical = np.nanmedian(there, axis=1, keepdims=True)
        relative = np.divide(there, typical, out=np.ones_like(there), where=(typical > 0) & (self.weights > 0))
        count = np.maximum((self.weights > 0).sum(0), 1)
        mean: Values = np.where(self.weights > 0, relative, 0).sum(0) / count
        return np.where(self.weights.any(0), mean, np.nan)

    def of_means(self) -> Values:
        """Products of what the clients' means put into the weighted sum, each with each [K, K], over all rounds."""
        terms = self.weights * self.means
        return np.asarray(terms.T @ terms)

    def of_entries(self, quiet: Sequence[int]) -> Values:
        """As `of_means`, of the entries less their means, and less the mean of what quiet clients sent."""
        typical = np.isin(np.arange(self.weights.shape[1]), quiet) & (self.weights > 0)
        share = typical / np.maximum(typical.sum(1, keepdims=True), 1)
        less = np.eye(len(share.T)) - share[:, None, :]
        centred = less @ self.between @ less.transpose(0, 2, 1)
        return np.asarray(np.einsum("ti,tij,tj->ij", self.weights, centred, self.weights))


def _round(trace: Trace, t: int, weights: Sequence[float] | None) -> tuple[Values, Values, Values, Values]:
    """The weights, means and deviations [K], and the products less means [K, K], of one round."""
    there = trace.present(t)
    given = trace.weight(t) if weights is None else np.asarray(weights, dtype=np.float64)
    means = np.where(there, trace.tail_sum(t), 0) / trace.tail
    gram = np.where(there[:, None] & there, trace.tail_gram(t), 0)
    between = gram - trace.tail * np.multiply.outer(means, means)
    spread = np.sqrt(np.maximum(np.diag(between), 0) / trace.tail)
    return np.where(there, given, 0) / given[there].sum(), means, spread, between


def _ratio(above: Values, below: Values) -> Values:
    """Square roots of quotients; NaN for 0 / 0, infinite for all else by 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        root: Values = np.sqrt(above / below)
    return root


def _search(products: Values, clients: list[int], dimensions: int, form: Form) -> list[Found]:
    """Sets of clients whose terms cancel, the most balanced first, none with a client of another.

    Args:
        products: of the terms, each with each [K, K].
        clients: that could be members.
        dimensions: how many independent numbers a client's noise has.
        form: of the noise.

    """
    found: list[Found] = []
    left = list(clients)
    while len(left) > 1:
        sets = _all_sets(len(left)) if len(left) <= EXACT else _shrinking(products[np.ix_(left, left)])
        balance = _balances(products[np.ix_(left, left)], sets)
        # B² of noise that does not cancel is distributed as chi² over its degrees of freedom, divided by them.
        by_chance = chi2.cdf(dimensions * np.square(balance), dimensions) * len(sets)
        enough = (balance <= BALANCED) & (by_chance <= CHANCE)
        if not enough.any():
            break
        enough &= balance <= ALIKE * balance[enough].min()
        best = min(np.flatnonzero(enough), key=lambda row: (int(sets[row].sum()), float(balance[row])))
        members = [client for client, inside in zip(left, sets[best], strict=True) if inside]
        found.append(Found(tuple(members), form, float(balance[best])))
        left = [client for client in left if client not in members]
    return found


def _balances(products: Values, sets: NDArray[np.bool_]) -> Values:
    """The balance of each set [s, n]: the norm of the sum of its terms, by the norm that orthogonal terms have."""
    chosen = sets.astype(np.float64)
    summed = np.maximum(((chosen @ products) * chosen).sum(1), 0)
    apart = chosen @ np.diag(products)
    balance: Values = np.sqrt(np.divide(summed, apart, out=np.ones_like(summed), where=apart > 0))
    return balance


def _all_sets(n: int) -> NDArray[np.bool_]:
    """Every set of two or more of n clients [s, n]."""
    numbers = np.arange(2**n)
    sets = (numbers[:, None] >> np.arange(n) & 1).astype(np.bool_)
    several: NDArray[np.bool_] = sets[sets.sum(1) > 1]
    return several


def _shrinking(products: Values) -> NDArray[np.bool_]:
    """The whole and ever smaller sets [s, n], each without the client that leaves the best balance."""
    inside = np.ones(len(products), dtype=np.bool_)
    sets = [inside]
    while inside.sum() > 2:
        smaller = np.tile(inside, (int(inside.sum()), 1))
        smaller[np.arange(len(smaller)), np.flatnonzero(inside)] = False
        inside = smaller[np.argmin(_balances(products, smaller))]
        sets.append(inside)
    return np.stack(sets)
