"""Crops and flips of a batch against one image at a time, and what is drawn."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsiege.augmentation import Jitter, crop_flip
from fedsiege.streams import stream

CPU = torch.device("cpu")


def plain(image: Tensor, down: int, right: int, mirror: bool, padding: int) -> Tensor:
    channels, high, wide = image.shape
    padded = torch.zeros(channels, high + 2 * padding, wide + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + high, padding : padding + wide] = image
    cropped = padded[:, down : down + high, right : right + wide]
    return torch.flip(cropped, dims=(2,)) if mirror else cropped


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [1, 4])
def test_a_batch_is_moved_as_its_images_one_by_one(dtype: torch.dtype, padding: int) -> None:
    images = torch.randint(1, 256, (50, 3, 6, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    jitter = Jitter.drawn(60, stream(0, "test"), CPU, padding)
    moved = jitter.of(images, slice(10, 60))
    assert moved.dtype == dtype
    for i, image in enumerate(images):
        down, right, mirror = (int(draw[10 + i]) for draw in (jitter.down, jitter.right, jitter.mirror))
        assert torch.equal(moved[i], plain(image, down, right, bool(mirror), padding))


def test_the_middle_crop_is_the_image_itself() -> None:
    images = torch.rand(4, 1, 8, 8)
    middle, never = torch.full((4,), 4), torch.zeros(4, dtype=torch.bool)
    assert torch.equal(crop_flip(images, middle, middle, never), images)
    assert torch.equal(crop_flip(images, middle, middle, ~never), images.flip(3))


def test_offsets_are_uniform_and_half_are_mirrored() -> None:
    jitter = Jitter.drawn(90_000, stream(0, "test"), CPU)
    for offsets in (jitter.down, jitter.right):
        counts = np.bincount(offsets.numpy(), minlength=9)
        assert len(counts) == 9
        np.testing.assert_allclose(counts, 10_000, rtol=0.05)
    assert abs(float(jitter.mirror.double().mean()) - 0.5) < 0.01
    assert abs(np.corrcoef(jitter.down.numpy(), jitter.right.numpy())[0, 1]) < 0.02
