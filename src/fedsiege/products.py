"""Products of per-example gradients with many updates, without keeping the gradients.

A layer's gradient of one example is a product itself, output gradients times inputs, summed over positions. So its
product with an update can be had in two ways: *form* the gradient, in blocks that stay in the caches, and multiply;
or *move* the inputs through the update and weigh the result with the output gradients, which forms nothing but
works anew for each update. Which is cheaper depends on positions, widths and updates; `cheaper_moved` says.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = {"cpu": (64, 256, 16), "cuda": (512, 4096, 1024)}
"""Outputs, inputs and examples of a block of formed gradients.

On a CPU the block (1 MB) and the same entries of some ten updates fit into a core's cache together.
"""

NEAR = 64
"""Positions up to which inputs are laid out by position first: a small copy that makes a small product faster."""

MOVED = {"cpu": 2**20, "cuda": 2**26}
"""Entries of inputs moved at once."""

PACK, READ, SQUARE = 16, 3.5, 12
"""What an entry of a formed gradient costs to write, to multiply with one update, and to square, where one
multiplication inside a large matrix product is 1. `fedsiege bench evidence_choice` says what the rule is worth."""

CANCELLED = 1e-3
"""Share of |g|² |a|² below which the squared norm of g aᵀ is not taken from products of positions."""

Way = Callable[[Tensor, Tensor, Sequence[Tensor]], tuple[Tensor, Tensor]]
"""Output gradients [b, out, positions], inputs [b, in, positions] and updates -> products [n, b], norms² [b]."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Per-example gradients of a part of one tensor, from entry `offset` on, of b examples of a batch.

    Either as they are, `g` [b, entries], or as the product of output gradients `g` [b, out, positions] and inputs
    `a` [b, in, positions], which need not be formed. `first` is the place in the batch of the first example.
    """

    tensor: str
    offset: int
    g: Tensor
    a: Tensor | None = None
    first: int = 0

    @property
    def entries(self) -> int:
        """How many entries of the tensor this is about."""
        return self.g[0].numel() if self.a is None else self.g.shape[1] * self.a.shape[1]

    def formed(self) -> Tensor:
        """The gradients themselves [b, entries]."""
        return self.g if self.a is None else (self.g @ self.a.transpose(1, 2)).flatten(1)

    def total(self) -> Tensor:
        """The sums [b] of the gradients' entries; nothing is formed for them."""
        if self.a is None:
            return self.g.sum(1)
        sums: Tensor = torch.linalg.vecdot(self.g.sum(1), self.a.sum(1))
        return sums

    def squares_on(self, rows: Tensor) -> Tensor:
        """Squared norms [n, b] of the gradients on the entries at which each of n rows [n, entries] is not zero."""
        if self.a is None:
            return (rows != 0).to(self.g.dtype) @ self.g.square().T
        squares = self.g.new_zeros(len(rows), len(self.g))
        whole = rows.unflatten(1, (self.g.shape[1], self.a.shape[1]))
        for outputs, inputs, blocks in _tiles(self.g, self.a):
            there = (whole[:, outputs, inputs].flatten(1) != 0).to(self.g.dtype)
            for some, block in blocks:
                squares[:, some] += there @ block.square_().T
        return squares

    def against(self, stacks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Products [n, b] with the same entries of n updates, and squared norms [b].

        Args:
            stacks: the updates [n_i, entries] in one or more parts; their rows need not be adjacent in memory.

        """
        if self.a is None:
            return torch.cat([rows @ self.g.T for rows in stacks]), torch.linalg.vecdot(self.g, self.g)
        updates = sum(len(rows) for rows in stacks)
        way: Way = moved if cheaper_moved(self.g.shape[2], self.a.shape[1], self.g.shape[1], updates) else formed
        return way(self.g, self.a, stacks)


def cheaper_moved(positions: int, inputs: int, outputs: int, updates: int) -> bool:
    """Whether moving the inputs through every update costs less than forming the gradients, per entry."""
    norm = _gram_cost(positions, inputs, outputs)
    return positions * updates + norm < PACK + positions + READ * updates + min(norm, SQUARE)


def _gram_cost(positions: int, inputs: int, outputs: int) -> float:
    return positions**2 * (inputs + outputs) / (inputs * outputs)


def moved(g: Tensor, a: Tensor, stacks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Products [n, b] and squared norms [b] by moving inputs; g [b, out, positions], a [b, in, positions]."""
    (b, outputs, positions), inputs = g.shape, a.shape[1]
    rows, weights = (t.transpose(1, 2).reshape(b * positions, -1) for t in (a, g))
    together = max(1, MOVED[g.device.type] // weights.numel())
    dots = []
    for stack in stacks:
        for updates in stack.split(together):
            through = rows @ updates.unflatten(1, (outputs, inputs)).transpose(1, 2)
            dots.append(torch.linalg.vecdot(through, weights).view(-1, b, positions).sum(2))
    return torch.cat(dots), gram_norm2(g, a)


def formed(g: Tensor, a: Tensor, stacks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Products [n, b] and squared norms [b] by forming gradients; g [b, out, positions], a [b, in, positions].

    Entries are the outer loops: the updates are the large operand, and each of their tiles is read once.
    """
    (b, outputs, positions), inputs = g.shape, a.shape[1]
    by_gram = _gram_cost(positions, inputs, outputs) < SQUARE
    norm2 = gram_norm2(g, a) if by_gram else g.new_zeros(b)
    dots = [g.new_zeros(len(stack), b) for stack in stacks]
    whole = [stack.unflatten(1, (outputs, inputs)) for stack in stacks]
    for rows, columns, blocks in _tiles(g, a):
        tiles = [stack[:, rows, columns].flatten(1) for stack in whole]
        for some, block in blocks:
            for dot, tile in zip(dots, tiles, strict=True):
                dot[:, some] += tile @ block.T
            if not by_gram:
                norm2[some] += torch.linalg.vecdot(block, block)
    return torch.cat(dots), norm2


def _tiles(g: Tensor, a: Tensor) -> Iterator[tuple[slice, slice, Iterator[tuple[slice, Tensor]]]]:
    """Tiles of outputs and inputs; of each, some examples at a time with their gradients there [some, entries]."""
    high, wide, together = TILE[g.device.type]
    for columns in _steps(a.shape[1], wide):
        into = a[:, columns].transpose(1, 2)
        into = into.contiguous() if a.shape[2] <= NEAR else into
        for rows in _steps(g.shape[1], high):
            yield rows, columns, _blocks(g[:, rows], into, together)


def _blocks(g: Tensor, into: Tensor, together: int) -> Iterator[tuple[slice, Tensor]]:
    return ((some, torch.bmm(g[some], into[some]).flatten(1)) for some in _steps(len(g), together))


def _steps(size: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, size)) for first in range(0, size, step))


def gram_norm2(g: Tensor, a: Tensor) -> Tensor:
    """Squared norms [b] of g aᵀ from products of positions: |g aᵀ|² = sum of (aᵀa) * (gᵀg).

    Where positions cancel each other, so do the terms of this sum, and rounding shows: such gradients are formed.
    """
    norm2 = ((a.transpose(1, 2) @ a) * (g.transpose(1, 2) @ g)).sum((1, 2))
    cancelled = norm2 < CANCELLED * g.square().sum((1, 2)) * a.square().sum((1, 2))
    for example in cancelled.nonzero()[:, 0].tolist():
        norm2[example] = (g[example] @ a[example].T).square().sum()
    return norm2
