"""How a poisoned update stays within the angles that honest updates have between each other.

What is sent is `alpha a + mean of c_j over the chosen j`: the attack's step a, behind steps c_j on correctly
labelled examples, the scapegoats. Its angle with no honest update r_i may be larger than the largest between two of
them (the *bound*). To choose the j, and alpha, takes only products of these vectors: they are formed once, in
float64, and everything after that costs nothing that grows with the model.

The angle with a vector of zeros is 90 degrees by definition, which is our choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsiege.aggregators.geometry import angles, blocks, weighted_sum
from fedsiege.errors import InputError

Array = NDArray[np.float64]
Preference = Literal["angle", "norm"]
"""Which of the examples that keep the bound is taken: that of the largest angle, or of the longest update."""

LEEWAY = 1e-10
"""Cosines that differ by less are equal: what rounding leaves of a bound that is used up. Below 0.001 degrees."""


@dataclass(frozen=True, slots=True)
class Gram:
    """Products of an attack's step a, M steps c_j that it may hide behind, and n directions of honest updates.

    Args:
        attack2: a with itself.
        attack_steps: a with each c_j [M].
        steps: each c_j with each [M, M].
        attack_rays: a with each r_i / |r_i| [n], 0 where r_i is zeros.
        steps_rays: each c_j with each r_i / |r_i| [M, n].
        bound: the largest angle between two of the r_i, in degrees.

    """

    attack2: float
    attack_steps: Array
    steps: Array
    attack_rays: Array
    steps_rays: Array
    bound: float

    @classmethod
    def of(cls, attack: Tensor, steps: Tensor, references: Tensor) -> "Gram":
        """From a [d], c [M, d] and r [n, d], two or more: InputError for fewer."""
        bound, m = widest(references), len(steps)
        size = m + 1 + len(references)
        found = torch.zeros(size, size, dtype=torch.float64, device=attack.device)
        parts = zip(blocks(steps), blocks(attack[None]), blocks(references), strict=True)
        for (_, step), (_, whole), (_, reference) in parts:
            part = torch.cat([step, whole, reference])
            found.addmm_(part, part.T)
        products: Array = found.cpu().numpy()
        lengths = np.sqrt(products.diagonal()[m + 1 :])
        rays = products[:, m + 1 :] / np.where(lengths > 0, lengths, 1.0)
        return cls(float(products[m, m]), products[:m, m], products[:m, :m], rays[m], rays[:m], bound)


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen j, in the order of their choice, and the largest angle with an r_i after each, in degrees."""

    chosen: tuple[int, ...]
    angles: tuple[float, ...]


def degrees(cosine: Array) -> Array:
    """The angles that have these cosines, which rounding may have put beyond -1 and 1."""
    found: Array = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return found


def widest(rows: Tensor) -> float:
    """The largest angle between two of n rows [n, d], in degrees; InputError for fewer than two."""
    if len(rows) < 2:
        raise InputError(f"references: got {len(rows)} update(s) to measure angles between; expected 2 or more")
    above = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
    return float(angles(rows)[above[0], above[1]].max())


def farthest(row: Tensor, references: Tensor) -> float:
    """The largest angle between a row [d] and the rows [n, d], in degrees."""
    return float(angles(torch.cat([row[None], references]))[0, 1:].max())


def greedy(gram: Gram, count: int, prefer: Preference = "angle", feasible_first: bool = True) -> Selection:
    """Choose examples to hide behind one at a time, with `alpha` at 1: each time the best that keeps the bound.

    Args:
        gram: the products.
        count: how many to choose, M at most.
        prefer: what is best.
        feasible_first: where none keeps the bound, take the one that comes closest to it; otherwise end there.

    Equally good ones are taken by their number, the lowest first.

    """
    m, limit = len(gram.steps), np.cos(np.radians(gram.bound))
    chosen: list[int] = []
    largest: list[float] = []
    free = np.ones(m, dtype=np.bool_)
    rays, on_attack, squares, crossed = np.zeros(len(gram.attack_rays)), 0.0, 0.0, np.zeros(m)
    for k in range(1, min(count, m) + 1):
        # Of the mean over those chosen and one more, for each that this may be.
        mask2 = (squares + 2 * crossed + gram.steps.diagonal()) / k**2
        across = (on_attack + gram.attack_steps) / k
        norm2, cosine = _sums(gram, 1.0, across, mask2, (rays + gram.steps_rays) / k)
        # What is not a number is as far off as can be.
        least = np.nan_to_num(cosine.min(axis=1), nan=-1.0)
        fits = free & (least >= limit - LEEWAY)
        if fits.any():
            best = np.where(fits, -least if prefer == "angle" else norm2, -np.inf).argmax()
        elif feasible_first:
            best = np.where(free, least, -np.inf).argmax()
        else:
            break
        j = int(best)
        chosen.append(j)
        largest.append(float(degrees(least[j])))
        free[j] = False
        rays = rays + gram.steps_rays[j]
        on_attack += gram.attack_steps[j]
        squares += 2 * crossed[j] + gram.steps[j, j]
        crossed = crossed + gram.steps[j]
    return Selection(tuple(chosen), tuple(largest))


def exact_alpha(gram: Gram, chosen: Sequence[int], most: float) -> float | None:
    """The alpha from 0 to `most` that has the largest angle within the bound; None where none is within it.

    Of several with that angle, the largest. Angles are extreme at the ends, where one of them is that of the bound,
    and where one has its own extreme: all of these are looked at, so that nothing is left to a search. Where alpha
    a cancels the mask, what is left is zeros, and 90 degrees from everything.
    """
    some = list(chosen)
    mask2 = float(gram.steps[np.ix_(some, some)].mean())
    across = float(gram.attack_steps[some].mean())
    rays = gram.steps_rays[some].mean(axis=0)
    limit = float(np.cos(np.radians(gram.bound)))
    tried = np.concatenate(
        [
            [0.0, most],
            _crossings(gram, across, mask2, rays, limit),
            _extremes(gram, across, mask2, rays),
        ]
    )
    tried = np.unique(tried[(tried >= 0) & (tried <= most)])
    _, cosine = _sums(gram, tried, across, mask2, rays)
    least = cosine.min(axis=1)
    within = least >= limit - LEEWAY
    if not within.any():
        return None
    return float(tried[within & (least <= least[within].min() + LEEWAY)].max())


def mixture(attack: Tensor, steps: Tensor, chosen: Sequence[int], alpha: float) -> Tensor:
    """alpha a + the mean of c_j over the chosen ones [d], in float64, rounded once to the type of the steps."""
    weights = torch.tensor([alpha, *([1 / len(chosen)] * len(chosen))], dtype=torch.float64)
    return weighted_sum(torch.cat([attack[None], steps[list(chosen)]]), weights)


def _sums(
    gram: Gram, alpha: Array | float, across: Array | float, mask2: Array | float, rays: Array
) -> tuple[Array, Array]:
    """Squared lengths [b], and cosines with each r_i [b, n], of b sums `alpha a + mask`.

    Args:
        gram: the products.
        alpha: [b], or one for all.
        across: products of a and mask, likewise.
        mask2: the masks' squared lengths, likewise.
        rays: products of the masks with the directions r_i / |r_i| [b, n], or of one [n].

    """
    norm2 = np.maximum(alpha**2 * gram.attack2 + 2 * alpha * across + mask2, 0.0)
    along = np.multiply.outer(alpha, gram.attack_rays) + rays
    length = np.sqrt(norm2)[:, None]
    # Zeros are at a right angle to everything; what is not a number stays that.
    cosine = np.where(length == 0, 0.0, along / np.where(length == 0, 1.0, length))
    return norm2, cosine


def _crossings(gram: Gram, across: float, mask2: float, rays: Array, limit: float) -> Array:
    """Every alpha, and some more, at which the cosine with an r_i is `limit`: two for each i, and again polished.

    (alpha p + q)^2 = limit^2 (alpha^2 A + 2 alpha B + M) for the products p, q of a and mask with the direction.
    The square lets in roots of the other sign, which are found out when all are evaluated, and loses half of the
    digits where the bound is a right angle; a step of Newton's on the equation itself brings them back.
    """
    p, q, a2, c2 = gram.attack_rays, rays, gram.attack2, limit**2
    u, half, w = p**2 - c2 * a2, p * q - c2 * across, q**2 - c2 * mask2
    s = -half - np.copysign(np.sqrt(np.maximum(half**2 - u * w, 0.0)), half)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = np.concatenate([s / u, w / s])
        p, q = np.tile(p, 2), np.tile(q, 2)
        length = np.sqrt(np.maximum(found**2 * a2 + 2 * found * across + mask2, 0.0))
        slope = p - limit * (found * a2 + across) / length
        polished = found - (found * p + q - limit * length) / slope
    both: Array = np.concatenate([found, polished])
    return both[np.isfinite(both)]


def _extremes(gram: Gram, across: float, mask2: float, rays: Array) -> Array:
    """The alpha at which each angle has its only extreme, where it has one."""
    p, q = gram.attack_rays, rays
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found: Array = (q * across - p * mask2) / (p * across - q * gram.attack2)
    return found[np.isfinite(found)]
