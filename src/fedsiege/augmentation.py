"""Random moves and colours of a batch of images at once, every draw from a named stream."""

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


@dataclass(frozen=True, slots=True)
class Moves:
    """How each of m images is cropped, mirrored and turned, in this order.

    Args:
        padding: black pixels around an image before it is cropped.
        down, right: crop offsets [m], 0..2 * padding.
        mirror, upside_down: flips left to right and top to bottom [m].
        cosine, sine: of the turn, counter-clockwise [m].

    """

    padding: int
    down: Tensor
    right: Tensor
    mirror: Tensor
    upside_down: Tensor
    cosine: Tensor
    sine: Tensor

    @classmethod
    def drawn(
        cls, m: int, rng: np.random.Generator, device: torch.device, padding: int, chance: float, degrees: float
    ) -> "Moves":
        """Uniform offsets, flips with a chance each, and uniform turns by up to so many degrees either way."""
        down, right = rng.integers(0, 2 * padding, size=(2, m), endpoint=True)
        mirror, upside_down = rng.random((2, m)) < chance
        turn = np.deg2rad(rng.uniform(-degrees, degrees, m))
        # Cosines from the host: a device's own could put a pixel elsewhere.
        cosine, sine = np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)
        draws = (down, right, mirror, upside_down, cosine, sine)
        return cls(padding, *(torch.as_tensor(draw, device=device) for draw in draws))

    def of(self, images: Tensor) -> Tensor:
        """The images [m, channels, high, wide] moved, nearest pixel and black outside; same type, same size."""
        high, wide = images.shape[2:]
        rows, columns = turned(self.cosine, self.sine, high, wide)
        y = before(rows, self.upside_down, self.down - self.padding, high)
        x = before(columns, self.mirror, self.right - self.padding, wide)
        inside = (y >= 0) & (x >= 0)
        # One gather for all moves together: black pixels look up the first one and are then put out.
        places = torch.where(inside, y * wide + x, 0).long().flatten(1)
        every = places[:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, every).view_as(images) * inside[:, None]


def turned(cosine: Tensor, sine: Tensor, high: int, wide: int) -> tuple[Tensor, Tensor]:
    """Where each pixel of images that are turned about their middle comes from.

    Args:
        cosine, sine: of the turn, counter-clockwise [m].
        high, wide: of the images, in pixels.

    Returns:
        Row and column of the nearest pixel, whole numbers in float32 [m, high, wide]; some lie outside.

    """
    cosine, sine = cosine.view(-1, 1, 1), sine.view(-1, 1, 1)
    down = (torch.arange(high, device=cosine.device) + 0.5 - high / 2)[:, None]
    right = torch.arange(wide, device=cosine.device) + 0.5 - wide / 2
    rows = torch.addcmul(cosine * down + high / 2, sine, right)
    columns = torch.addcmul(wide / 2 - sine * down, cosine, right)
    return rows.floor_(), columns.floor_()


def before(places: Tensor, flipped: Tensor, offset: Tensor, size: int) -> Tensor:
    """Where rows or columns of images were before these were cropped and then flipped.

    Args:
        places: rows or columns after both [m, high, wide].
        flipped: whether an image was flipped [m].
        offset: the crop's first row or column [m]; negative in the padding.
        size: rows or columns of the images.

    Returns:
        Their places [m, high, wide]; -1 for those outside, before or after.

    """
    flipped, offset = flipped.view(-1, 1, 1), offset.view(-1, 1, 1).to(places.dtype)
    sign = torch.where(flipped, -1.0, 1.0)
    found = torch.addcmul(torch.where(flipped, size - 1 + offset, offset), sign, places)
    outside = (places < 0) | (places >= size) | (found < 0) | (found >= size)
    return found.masked_fill_(outside, -1)


@dataclass(frozen=True, slots=True)
class Colours:
    """By what brightness and contrast of each of m images are multiplied [m], and which of them comes first [m]."""

    brightness: Tensor
    contrast: Tensor
    brightness_first: Tensor

    @classmethod
    def drawn(
        cls, m: int, rng: np.random.Generator, device: torch.device, brightness: float, contrast: float
    ) -> "Colours":
        """Uniform factors from 1 - amount to 1 + amount, and fair coins for the order."""
        factors = [rng.uniform(1 - by, 1 + by, m).astype(np.float32) for by in (brightness, contrast)]
        first = rng.random(m) < 0.5
        return cls(*(torch.as_tensor(draw, device=device) for draw in (*factors, first)))

    def of(self, images: Tensor) -> Tensor:
        """The images [m, channels, high, wide], bytes or from 0 to 1, recoloured: float32 from 0 to 1."""
        x = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images
        one = torch.ones_like(self.brightness)
        x = brightened(x, torch.where(self.brightness_first, self.brightness, one))
        x = contrasted(x, self.contrast)
        return brightened(x, torch.where(self.brightness_first, one, self.brightness))


def brightened(images: Tensor, factors: Tensor) -> Tensor:
    """Images [m, channels, high, wide] from 0 to 1, each times its factor [m]; what leaves the range is cut."""
    return (images * factors.view(-1, 1, 1, 1)).clamp(0, 1)


def contrasted(images: Tensor, factors: Tensor) -> Tensor:
    """Images [m, channels, high, wide] from 0 to 1, each moved from or to its mean grey by its factor [m]; cut."""
    by = factors.view(-1, 1, 1, 1)
    return (images * by + (1 - by) * mean_grey(images)).clamp(0, 1)


def mean_grey(images: Tensor) -> Tensor:
    """The mean luma [m, 1, 1, 1] of images with three channels (ITU-R 601), else the mean of all values."""
    means = images.mean((2, 3), keepdim=True)
    if images.shape[1] != 3:
        return means.mean(1, keepdim=True)
    luma = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    return (means * luma).sum(1, keepdim=True)
