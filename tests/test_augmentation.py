"""Moves and colours of a batch against one image at a time and against Pillow, and what is drawn."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from fedsiege.augmentation import Colours, Jitter, Moves, brightened, contrasted, crop_flip, mean_grey, turned
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


def bytes_of(m: int, high: int, wide: int, channels: int = 3, least: int = 1) -> Tensor:
    shape = (m, channels, high, wide)
    return torch.randint(least, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def moves_of(
    down: list[int],
    right: list[int],
    mirror: list[bool],
    upside_down: list[bool],
    degrees: list[float],
    padding: int,
) -> Moves:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return Moves(
        padding,
        torch.tensor(down),
        torch.tensor(right),
        torch.tensor(mirror),
        torch.tensor(upside_down),
        angle.cos().float(),
        angle.sin().float(),
    )


def between_pixels(degrees: float, high: int, wide: int) -> NDArray[np.bool_]:
    """Where the place that a pixel comes from is so near to the border of two that rounding decides."""
    angle = np.deg2rad(degrees)
    down, right = np.mgrid[:high, :wide] + 0.5 - np.array([high / 2, wide / 2])[:, None, None]
    y = np.sin(angle) * right + np.cos(angle) * down + high / 2
    x = np.cos(angle) * right - np.sin(angle) * down + wide / 2
    near: NDArray[np.bool_] = (np.abs(y - y.round()) < 2e-3) | (np.abs(x - x.round()) < 2e-3)
    return near


@pytest.mark.parametrize(("high", "wide"), [(32, 32), (17, 24)])
def test_moves_are_those_of_pillow_one_after_the_other(high: int, wide: int) -> None:
    m, padding = 60, 4
    rng = stream(1, "test")
    images = bytes_of(m, high, wide)
    down, right = (rng.integers(0, 9, m).tolist() for _ in range(2))
    mirror, upside_down = (rng.integers(0, 2, m).astype(bool).tolist() for _ in range(2))
    degrees = [0.0, 45.0, -45.0, *rng.uniform(-45, 45, m - 3).tolist()]
    moved = moves_of(down, right, mirror, upside_down, degrees, padding).of(images)
    assert moved.dtype == torch.uint8
    seen = 0
    for i in range(m):
        plain = ImageOps.expand(picture(images[i]), padding)
        plain = plain.crop((right[i], down[i], right[i] + wide, down[i] + high))
        plain = ImageOps.mirror(plain) if mirror[i] else plain
        plain = ImageOps.flip(plain) if upside_down[i] else plain
        plain = plain.rotate(degrees[i], Image.Resampling.NEAREST)
        sure = ~between_pixels(degrees[i], high, wide)
        seen += int(sure.sum())
        np.testing.assert_array_equal(moved[i].permute(1, 2, 0).numpy()[sure], np.asarray(plain)[sure])
    assert seen > 0.95 * m * high * wide


def test_bytes_and_floats_are_moved_alike_and_one_channel_as_three() -> None:
    images = bytes_of(20, 12, 12)
    moves = Moves.drawn(20, stream(0, "test"), CPU, 2, 0.5, 45)
    moved = moves.of(images)
    assert torch.equal(moves.of(images.float()), moved.float())
    assert torch.equal(moves.of(images[:, :1]), moved[:, :1])


def test_an_image_that_is_not_moved_is_itself() -> None:
    images = bytes_of(3, 9, 14)
    assert torch.equal(moves_of([0] * 3, [0] * 3, [False] * 3, [False] * 3, [0.0] * 3, 0).of(images), images)
    still = Moves.drawn(3, stream(0, "test"), CPU, 0, 0.0, 0.0)
    assert torch.equal(still.of(images), images)


def test_a_quarter_turn_goes_counter_clockwise() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    # Not quite 90 degrees, so that no place is between two pixels.
    quarter = moves_of([0], [0], [False], [False], [89.0], 0).of(image)
    assert torch.equal(quarter, torch.rot90(image, 1, (2, 3)))
    rows, columns = turned(torch.tensor([1.0]), torch.tensor([0.0]), 2, 3)
    assert rows[0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert columns[0].tolist() == [[0, 1, 2], [0, 1, 2]]


def test_moves_are_drawn_as_asked() -> None:
    moves = Moves.drawn(40_000, stream(0, "test"), CPU, 2, 0.25, 30)
    for offsets in (moves.down, moves.right):
        np.testing.assert_allclose(np.bincount(offsets.numpy(), minlength=5) / 40_000, 0.2, rtol=0.05)
    for coins in (moves.mirror, moves.upside_down):
        assert float(coins.double().mean()) == pytest.approx(0.25, abs=0.01)
    degrees = torch.atan2(moves.sine, moves.cosine).rad2deg().numpy()
    assert np.abs(degrees).max() <= 30.001
    np.testing.assert_allclose(np.histogram(degrees, bins=6, range=(-30, 30))[0] / 40_000, 1 / 6, rtol=0.05)
    drawn = [moves.down, moves.right, moves.mirror.int(), moves.upside_down.int(), torch.tensor(degrees)]
    together = np.corrcoef(np.stack([one.double().numpy() for one in drawn]))
    assert np.abs(together - np.eye(5)).max() < 0.02


@pytest.mark.parametrize("factor", [0.2, 0.75, 1.0, 1.25, 1.8])
def test_brightness_and_contrast_are_those_of_pillow_but_for_rounding(factor: float) -> None:
    images = bytes_of(8, 16, 16, least=0)
    by, unit = torch.full((8,), factor), images / 255
    for ours, theirs in (
        (brightened(unit, by), ImageEnhance.Brightness),
        (contrasted(unit, by), ImageEnhance.Contrast),
    ):
        for i in range(8):
            plain: Any = np.asarray(theirs(picture(images[i])).enhance(factor))
            # Pillow rounds the mean grey to a byte and cuts off fractions.
            np.testing.assert_allclose(ours[i].permute(1, 2, 0).numpy() * 255, plain, atol=1.5)


def test_colours_by_hand() -> None:
    image = torch.tensor([0.0, 0.5, 1.0, 0.5]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    by = torch.tensor([1.8])
    assert contrasted(image, by).flatten(2)[0, 0].tolist() == pytest.approx([0, 0.5, 1, 0.5])
    assert contrasted(image, torch.tensor([0.2])).flatten(2)[0, 0].tolist() == pytest.approx([0.4, 0.5, 0.6, 0.5])
    assert brightened(image, by).flatten(2)[0, 0].tolist() == pytest.approx([0, 0.9, 1, 0.9])
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    assert float(mean_grey(red)) == pytest.approx(0.299)
    assert float(mean_grey(red[:, :2])) == pytest.approx(0.5)
    assert float(mean_grey(red[:, :1])) == pytest.approx(1.0)


def test_each_image_has_its_own_order_of_brightness_and_contrast() -> None:
    images = bytes_of(2, 8, 8, least=0)[:1].expand(2, -1, -1, -1)
    half, more = torch.full((2,), 0.75), torch.full((2,), 1.8)
    made = Colours(half, more, torch.tensor([True, False])).of(images)
    torch.testing.assert_close(made[:1], contrasted(brightened(images[:1] / 255, half[:1]), more[:1]))
    torch.testing.assert_close(made[1:], brightened(contrasted(images[1:] / 255, more[1:]), half[1:]))
    assert not torch.allclose(made[0], made[1], atol=0.01)


def test_colours_are_drawn_as_asked() -> None:
    colours = Colours.drawn(40_000, stream(0, "test"), CPU, 0.25, 0.8)
    for factors, by in ((colours.brightness, 0.25), (colours.contrast, 0.8)):
        counts = np.histogram(factors.numpy(), bins=5, range=(1 - by, 1 + by))[0]
        np.testing.assert_allclose(counts / 40_000, 0.2, rtol=0.05)
    assert float(colours.brightness_first.double().mean()) == pytest.approx(0.5, abs=0.01)


def test_colours_leave_float_images_in_their_range() -> None:
    unit = bytes_of(30, 8, 8, least=0) / 255
    made = Colours.drawn(30, stream(0, "test"), CPU, 0.25, 0.8).of(unit)
    assert made.dtype == torch.float32
    assert 0 <= float(made.min()) < float(made.max()) <= 1
