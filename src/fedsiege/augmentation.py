"""Random crops and flips of a batch of images at once, every draw from the client's own stream."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4
"""Black pixels around an image before it is cropped back to its size, as the CIFAR recipes have it."""


@dataclass(frozen=True, slots=True)
class Jitter:
    """How each of m images is moved: crop offsets `down` and `right` [m], 0..2 * padding, and `mirror` [m]."""

    down: Tensor
    right: Tensor
    mirror: Tensor
    padding: int = PADDING

    @classmethod
    def drawn(cls, m: int, rng: np.random.Generator, device: torch.device, padding: int = PADDING) -> "Jitter":
        """Uniform offsets and fair coins for m images."""
        offsets = rng.integers(0, 2 * padding, size=(2, m), endpoint=True)
        coins = rng.integers(0, 2, size=m).astype(bool)
        down, right, mirror = (torch.as_tensor(draw, device=device) for draw in (offsets[0], offsets[1], coins))
        return cls(down, right, mirror, padding)

    def of(self, images: Tensor, rows: slice | Tensor) -> Tensor:
        """A batch [b, channels, high, wide], moved as entries `rows` say; same type, same size."""
        return crop_flip(images, self.down[rows], self.right[rows], self.mirror[rows], self.padding)


def crop_flip(images: Tensor, down: Tensor, right: Tensor, mirror: Tensor, padding: int = PADDING) -> Tensor:
    """Pad images [b, channels, high, wide] with zeros, crop them back at (down, right) [b], mirror some [b]."""
    high, wide = images.shape[2:]
    padded = F.pad(images, (padding,) * 4)
    across = torch.arange(wide, device=images.device)
    columns = right[:, None] + torch.where(mirror[:, None], across.flip(0), across)
    rows = down[:, None] + torch.arange(high, device=images.device)
    places = rows[:, :, None] * (wide + 2 * padding) + columns[:, None, :]
    # One gather over flattened images: each channel of an image looks up the same places.
    every = places.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return padded.flatten(2).gather(2, every).view_as(images)
