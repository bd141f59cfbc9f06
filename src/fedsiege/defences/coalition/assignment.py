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

    The bound begins at `least_overlap`. Sets are looked for in two ways, member by member and class by class; where
    neither finds any, both begin anew with a bound of one more. With ten members or fewer the second one gets by
    with the smaller bound, with a hundred the first. The classes being used equally often, the overlaps of all
    pairs add up to the least there can be, and as many classes are covered as members * m can cover. No class and
    no member is treated unlike another: every order and every tie is drawn.

    Raises ValueError when m is more than there are classes: no bound helps.
    """
    if m > classes:
        raise ValueError(f"{m} of {classes} classes")
    first = least_overlap(classes, members, m)
    allowed = first
    while (owned := _by_member(allowed, classes, members, m, rng)) is None and (
        owned := _by_class(allowed, classes, members, m, rng)
    ) is None:
        allowed += 1
    return Assignment(tuple(_sorted(np.flatnonzero(row)) for row in owned), allowed, allowed - first)


def _by_member(
    allowed: int, classes: int, members: int, m: int, rng: np.random.Generator
) -> NDArray[np.int64] | None:
    """Who owns which class [members, classes], no two sharing more than `allowed`; None if no such sets were found.

    A member takes the classes that the fewest before it have, in random order among equals, and passes over one
    that would exceed what is allowed. It fails where fewer than m are left to a member, or where some class is used
    by two members more than another in the end.
    """
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
    # The last to choose have what the others left: who that is must be left to chance too.
    return None if used.max() - used.min() > 1 else owned[rng.permutation(members)]


def _by_class(
    allowed: int, classes: int, members: int, m: int, rng: np.random.Generator
) -> NDArray[np.int64] | None:
    """Who owns which class [members, classes], as `_by_member` has it.

    Each class has floor(d m / N) owners or, of some classes at random, one more. In random order of classes, an
    owner is the member with the fewest classes so far; among those, the one whose largest overlap with the class's
    owners, then the sum of its overlaps with them, is the smallest; among equals, any. It fails where all who still
    want classes would share more than is allowed.
    """
    owned, shared = np.zeros((members, classes), dtype=np.int64), np.zeros((members, members), dtype=np.int64)
    load, never = np.zeros(members, dtype=np.int64), np.iinfo(np.int64).max
    owners, more = divmod(members * m, classes)
    for place, c in enumerate(rng.permutation(classes)):
        largest, total, ties = np.zeros_like(load), np.zeros_like(load), rng.permutation(members)
        out = load == m
        for _ in range(owners + (place < more)):
            # One number that sorts by load, largest overlap, sum of overlaps and chance, in this order.
            rank = ((load * (m + 1) + largest) * (members * m + 1) + total) * members + ties
            rank[out | (largest > allowed)] = never
            owner = int(rank.argmin())
            if rank[owner] == never:
                return None
            shared[owner] += owned[:, c]
            shared[:, owner] = shared[owner]
            owned[owner, c], out[owner] = 1, True
            load[owner] += 1
            np.maximum(largest, shared[owner] + 1, out=largest)
            total += shared[owner] + 1
    return owned


def drawn(classes: int, m: int, rng: np.random.Generator) -> tuple[int, ...]:
    """m classes at random, of one member that looks at nobody else's."""
    return _sorted(rng.choice(classes, size=m, replace=False))


def _sorted(classes: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(sorted(classes.tolist()))
