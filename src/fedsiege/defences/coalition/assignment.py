"""Which classes each member of a coalition trains on in a round: how many, and whose sets overlap how much.

Class ids only: nobody's data, histograms or models are looked at.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Decay = Literal["linear", "cosine", "exponential", "polynomial"]

DIGITS = 9
"""A schedule is rounded to so many digits first, so that a half is a half on every machine."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Sets of classes, one a member and each sorted.

    `allowed` is how many classes two sets were allowed to share in the end, `restarts` how often all sets were
    begun anew with one more allowed.
    """

    sets: tuple[tuple[int, ...], ...]
    allowed: int
    restarts: int = 0

    @property
    def covered(self) -> int:
        """How many classes are in any set."""
        return len(set().union(*self.sets))

    @property
    def overlap(self) -> int:
        """The most classes that two of the sets share."""
        return max((len(set(a) & set(b)) for a, b in combinations(self.sets, 2)), default=0)


def classes_each(number: int, rounds: int, most: int, least: int, decay: Decay) -> int:
    """m_t, the classes of each member in round t = `number`, from `most` in the first round to `least` in the last.

    With tau = (t - 1) / (T - 1) and s = most - least: linear most - s tau; cosine least + s (1 + cos(pi tau)) / 2;
    exponential most (least / most)^tau; polynomial least + s (1 - tau)^2. Halves are rounded up.
    """
    tau = (number - 1) / (rounds - 1) if rounds > 1 else 0.0
    span = most - least
    exact: dict[Decay, float] = {
        "linear": most - span * tau,
        "cosine": least + span * (1 + math.cos(math.pi * tau)) / 2,
        "exponential": most * (least / most) ** tau,
        "polynomial": least + span * (1 - tau) ** 2,
    }
    return math.floor(round(exact[decay], DIGITS) + 0.5)


def least_overlap(classes: int, members: int, m: int) -> int:
    """A bound of Johnson's type: some two of d sets of m out of N classes share at least so many.

    ceil(m (d m - N) / (N (d - 1))), and 0 where that is negative, or where there are no two sets.
    """
    if members < 2:
        return 0
    return max(0, -(-m * (members * m - classes) // (classes * (members - 1))))


def bounded(classes: int, members: int, m: int, rng: np.random.Generator) -> Assignment:
    """Sets of m classes of which no two share more than a bound.

    The bound begins at `least_overlap`. A member takes the classes that the fewest before it have, in random order
    among equals, and passes over one that would exceed the bound. Where fewer than m are left to it, or some class
    is used by two members more than another in the end, all begin anew with a bound of one more. The classes being
    used equally often, the overlaps of all pairs add up to the least there can be, and as many classes are covered
    as members * m can cover.

    Raises ValueError when m is more than there are classes: no bound helps.
    """
    if m > classes:
        raise ValueError(f"{m} of {classes} classes")
    first = least_overlap(classes, members, m)
    allowed = first
    while (sets := _within(allowed, classes, members, m, rng)) is None:
        allowed += 1
    return Assignment(sets, allowed, allowed - first)


def _within(
    allowed: int, classes: int, members: int, m: int, rng: np.random.Generator
) -> tuple[tuple[int, ...], ...] | None:
    """Sets of which no two share more than `allowed` classes, all used equally often; None if none were found."""
    owned = np.zeros((members, classes), dtype=np.int64)
    for member in range(members):
        before = owned[:member]
        order = np.lexsort((rng.permutation(classes), before.sum(0)))
        shared, taken = np.zeros(member, dtype=np.int64), 0
        for c in order:
            if taken == m:
                break
            if (shared + before[:, c]).max(initial=0) <= allowed:
                shared += before[:, c]
                owned[member, c] = 1
                taken += 1
        if taken < m:
            return None
    used = owned.sum(0)
    if used.max() - used.min() > 1:
        return None
    return tuple(_sorted(np.flatnonzero(row)) for row in owned)


def drawn(classes: int, m: int, rng: np.random.Generator) -> tuple[int, ...]:
    """m classes at random, of one member that looks at nobody else's."""
    return _sorted(rng.choice(classes, size=m, replace=False))


def _sorted(classes: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(sorted(classes.tolist()))
