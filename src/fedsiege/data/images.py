"""Encoded image files to one uint8 tensor."""

import io
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedsiege.errors import InputError

GREY = ("1", "L", "LA")


def decode(
    images: Iterable[tuple[str, bytes]], count: int, *, size: int | None = None, channels: int | None = None
) -> Tensor:
    """`count` encoded images (each with the name errors use) as uint8 [count, channels, height, width].

    All greyscale gives one channel, anything else RGB; `channels` fixes that beforehand, as held-out images must
    look like those of train. `size` resizes to size x size (bilinear with antialiasing).
    Raises InputError naming the first image that cannot be read or whose size differs.
    """
    buffer: NDArray[np.uint8] | None = None
    for position, (name, encoded) in enumerate(images):
        grey, pixels = _pixels(name, encoded, size, colour=channels == 3)
        if buffer is None:
            buffer = np.empty((count, channels or (1 if grey else 3), *pixels.shape[1:]), dtype=np.uint8)
        elif buffer.shape[2:] != pixels.shape[1:]:
            height, width = buffer.shape[2:]
            raise InputError(
                f"image {name}: {pixels.shape[2]} x {pixels.shape[1]} pixels, the ones before {width} x {height}; "
                "images of different size need data.size"
            )
        if not grey and buffer.shape[1] == 1:
            if channels == 1:
                raise InputError(f"image {name}: in colour, the training images are greyscale")
            buffer = np.repeat(buffer, 3, axis=1)
        buffer[position] = pixels
    if buffer is None:
        return torch.empty((0, channels or 3, size or 0, size or 0), dtype=torch.uint8)
    return torch.from_numpy(buffer)


def _pixels(name: str, encoded: bytes, size: int | None, *, colour: bool) -> tuple[bool, NDArray[np.uint8]]:
    """Whether the image is greyscale, and its pixels [1 or 3, height, width]."""
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            if opened.mode[0] in "IF":
                raise InputError(f"image {name}: mode {opened.mode}; expected 8 bits a channel")
            grey = opened.mode in GREY
            image: Image.Image = opened.convert("L" if grey and not colour else "RGB")
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image {name}: cannot be read ({error})") from None
    pixels = np.asarray(image)
    return grey, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
