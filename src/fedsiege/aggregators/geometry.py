"""Lengths, angles and distances of a cohort's updates, in float64, a block of coordinates at a time.

An attacker chooses its rows: entries may be as large as the type holds, and rows may lie as far from the others as
they like. Nothing here may lose what the other rows are because of that, nor turn into NaN.
"""

from collections.abc import Iterator

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

BLOCK = 2**12
"""Coordinates of a block: fifty rows of float64 are less than two megabytes, and wider ones are no faster."""
GPU_BLOCK = 2**18
"""The same on a GPU, where a block is a launch."""
LOST = 2.0**-16
"""A squared distance below this share of the squares that it is the difference of is measured again."""
VANISHED = 2.0**-900
"""Below it, squares of scaled entries have lost digits to the end of float64."""


def blocks(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Places and values, in float64, of rows [n, d], some columns at a time; values are not to be written to."""
    width = GPU_BLOCK if rows.is_cuda else BLOCK
    for first in range(0, rows.shape[1], width):
        place = slice(first, first + width)
        yield place, rows[:, place].double()


def products(rows: Tensor, about: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Products [n, n] of rows [n, d], less a point [d], with each other, and what each row was multiplied with [n].

    The factors are powers of two, ones for types narrower than float64: squares of float32 fit float64, squares of
    float64 do not. The product of rows i and j themselves is `products[i, j] / factors[i] / factors[j]`.
    """
    factors = _factors(rows, about)
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in _differences(rows, factors, about):
        found.addmm_(part, part.T)
    return found, factors


def gram(rows: Tensor) -> Tensor:
    """Products [n, n] of each of rows [n, d] with each, in float64; infinite where float64 ends."""
    found, factors = products(rows)
    return found / factors[:, None] / factors


def norms(rows: Tensor, about: Tensor | None = None) -> Tensor:
    """Lengths [n] of rows [n, d], or of their differences from a point [d]."""
    factors = _factors(rows, about)
    squares = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for part in _differences(rows, factors, about):
        squares += torch.linalg.vecdot(part, part)
    return squares.sqrt() / factors


def distances2(rows: Tensor) -> Tensor:
    """Squared distances [n, n] between rows [n, d], their diagonal 0; each to nine digits or more.

    |a - b|^2 = |a|^2 + |b|^2 - 2 ab costs the digits that a and b have in common. So the products are of
    differences from one of the rows, and rows that are much closer to each other than to that one, as all are where
    it is an attacker's, are measured again among themselves.
    """
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    factors = _factors(rows)
    groups = [torch.arange(len(rows), device=rows.device)]
    while groups:
        group = groups.pop()
        factor = factors[group].min()
        measured, lost = _from_the_first(rows, group, factor)
        found[group[:, None], group] = measured / factor / factor
        _, labels = connected_components(lost.cpu().numpy(), directed=False)
        label = torch.as_tensor(labels, device=rows.device)
        parts = [group[label == one] for one in label.unique()]
        groups += [part for part in parts if 1 < len(part) < len(group)]
    return found.fill_diagonal_(0)


def away(found: Tensor, factors: Tensor, shares: Tensor) -> Tensor:
    """Distances [n] of rows to the point that has these shares [n] of their differences from the origin.

    Args:
        found: products [n, n] of the scaled differences.
        factors: [n], what each was multiplied with.
        shares: [n].

    """
    by = relative(factors)
    along = shares / by
    towards = found @ along
    squared = found.diagonal() - 2 * by * towards + by**2 * (along @ towards)
    return squared.clamp(min=0).sqrt() / factors


def relative(factors: Tensor) -> Tensor:
    """Factors [n] as shares of the largest, so that their squares end nowhere near the ends of float64."""
    return (factors / factors.max()).clamp(min=2.0**-1000)


def cosines(rows: Tensor) -> Tensor:
    """Cosines [n, n] between rows [n, d]; 0 with a row of zeros, 1 on the diagonal."""
    found, _ = products(rows)
    lengths = found.diagonal().sqrt()
    scale = lengths[:, None] * lengths
    found = torch.where(scale > 0, found / scale.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return found.clamp_(-1, 1).fill_diagonal_(1)


def angles(rows: Tensor) -> Tensor:
    """Angles [n, n] between rows [n, d], in degrees and float64; 90 with a row of zeros, 0 on the diagonal."""
    return torch.rad2deg(torch.arccos(cosines(rows)))


def weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """The sum [d] of rows [n, d] with weights [n], summed in float64, in the type of the rows.

    A row of weight 0 does not count, even if its entries are not finite.
    """
    total = torch.empty(rows.shape[1], dtype=rows.dtype, device=rows.device)
    by = weights.to(device=rows.device, dtype=torch.float64)
    counted = by.nonzero()[:, 0]
    by = by[counted]
    for place, part in blocks(rows):
        part = part if len(counted) == len(rows) else part[counted]
        total[place] = (by @ part).to(rows.dtype)
    return total


def _from_the_first(rows: Tensor, group: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [g, g] among some rows times a factor, and where they lost too many digits."""
    squares = torch.zeros(len(group), len(group), dtype=torch.float64, device=rows.device)
    for _, part in blocks(rows):
        part = part[group] if len(group) < len(rows) else part
        if rows.dtype == torch.float64:
            part = part * factor
        part -= part[0].clone()
        squares.addmm_(part, part.T)
    own = squares.diagonal()
    found = (own[:, None] + own - 2 * squares).clamp_(min=0)
    lost = found < LOST * torch.maximum(own[:, None], own)
    if rows.dtype == torch.float64:
        lost |= found < VANISHED
    return found, lost


def _differences(rows: Tensor, factors: Tensor, about: Tensor | None) -> Iterator[Tensor]:
    """Blocks of rows [n, d], less a point [d] where there is one, times factors [n]."""
    for place, part in blocks(rows):
        if rows.dtype == torch.float64:
            part = part * factors[:, None]
        if about is not None:
            part -= about[place].double() * factors[:, None]
        yield part


def _factors(rows: Tensor, about: Tensor | None = None) -> Tensor:
    """Powers of two [n] that bring the largest entries of float64 rows, or of a point, to about one."""
    if rows.dtype != torch.float64:
        return torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    low, high = rows.amin(1), rows.amax(1)
    largest = torch.maximum(-low, high)
    if about is not None:
        largest = torch.maximum(largest, about.abs().max())
    exponents = torch.frexp(largest).exponent.clamp(-1000, 1000)
    return torch.ldexp(torch.ones_like(largest), -exponents)
