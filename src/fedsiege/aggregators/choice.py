"""Krum's scores, the rows with the lowest scores, and how many of them a rule may have to do without."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ALIKE = 2.0**-32
"""Scores this close to each other, relatively, are equal: squared distances hold nine digits or more."""


def neighbourhoods(squared: Tensor, f: int) -> Tensor:
    """Krum's score of each row: the sum [n] of its n - f - 2 smallest squared distances [n, n] to other rows.

    Where n - f - 2 is not positive, one neighbour counts, as long as there is one.
    """
    n = len(squared)
    near = max(n - f - 2, min(1, n - 1))
    return squared.clone().fill_diagonal_(math.inf).sort(dim=1).values[:, :near].sum(1)


def minority(n: int) -> int:
    """The largest number of n rows that are fewer than half; 0 of none."""
    return max((n - 1) // 2, 0)


def most_for_krum(n: int) -> int:
    """The largest f with n >= 2 f + 3; 0 for one or two rows too, of which there is nothing to tell."""
    return max((n - 3) // 2, 0)


def lowest(scores: Tensor, m: int, clients: Sequence[int]) -> Tensor:
    """Positions [m], rising, of the m lowest of scores [n], none negative; of equal ones those of lower clients."""
    bound = scores.kthvalue(m).values
    sure = scores < bound * (1 - ALIKE)
    equal = (~sure & (scores <= bound * (1 + ALIKE))).nonzero()[:, 0].tolist()
    taken = sorted(equal, key=lambda row: clients[row])[: m - int(sure.sum())]
    sure[taken] = True
    return sure.nonzero()[:, 0]


def only(chosen: Tensor, n: int) -> Tensor:
    """Of n rows, 1 for those at the positions `chosen` and 0 for the others: [n] float64, on the CPU."""
    kept = torch.zeros(n, dtype=torch.float64)
    kept[chosen.cpu()] = 1
    return kept
