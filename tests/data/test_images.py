import io

import numpy as np
import pytest
import torch
from made_data import encode, pictures
from PIL import Image

from fedsiege.data.images import decode
from fedsiege.errors import InputError


def test_colour_pixels_are_exact() -> None:
    images = pictures(3, 5, 4, 3)
    x = decode([(str(n), encode(image)) for n, image in enumerate(images)], 3)
    assert x.dtype == torch.uint8
    assert np.array_equal(x.numpy(), np.stack(images).transpose(0, 3, 1, 2))


def test_greyscale_has_one_channel() -> None:
    images = pictures(3, 5, 4)
    x = decode([("", encode(image)) for image in images], 3)
    assert np.array_equal(x.numpy()[:, 0], np.stack(images))


@pytest.mark.parametrize("grey_first", [True, False])
def test_mixed_modes_become_colour(grey_first: bool) -> None:
    grey, colour = pictures(1, 5, 4)[0], pictures(1, 5, 4, 3)[0]
    images = [grey, colour] if grey_first else [colour, grey]
    x = decode([("", encode(image)) for image in images], 2).numpy()
    order = (0, 1) if grey_first else (1, 0)
    assert np.array_equal(x[order[0]], np.stack([grey] * 3))
    assert np.array_equal(x[order[1]], colour.transpose(2, 0, 1))


def test_heldout_images_follow_train() -> None:
    grey, colour = pictures(1, 5, 4)[0], pictures(1, 5, 4, 3)[0]
    assert decode([("", encode(grey))], 1, channels=3).shape == (1, 3, 5, 4)
    with pytest.raises(InputError, match="image test:0: in colour"):
        decode([("test:0", encode(colour))], 1, channels=1)


def test_palettes_and_transparency_become_colour() -> None:
    image = Image.fromarray(pictures(1, 5, 4, 3)[0])
    encoded = []
    for mode in ("P", "RGBA"):
        file = io.BytesIO()
        image.convert(mode).save(file, "PNG")
        encoded.append((mode, file.getvalue()))
    assert decode(encoded, 2).shape == (2, 3, 5, 4)


def test_resize_is_bilinear_with_antialiasing() -> None:
    image = pictures(1, 12, 10, 3)[0]
    expected = np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.BILINEAR))
    x = decode([("", encode(image))], 1, size=4)
    assert np.array_equal(x[0].numpy(), expected.transpose(2, 0, 1))


def test_unlike_sizes_need_a_size() -> None:
    images = [("a.png", encode(pictures(1, 5, 4, 3)[0])), ("b.png", encode(pictures(1, 5, 7, 3)[0]))]
    with pytest.raises(InputError, match=r"image b\.png: 7 x 5 pixels, the ones before 4 x 5.*data\.size"):
        decode(images, 2)
    assert decode(images, 2, size=3).shape == (2, 3, 3, 3)


@pytest.mark.parametrize("broken", [b"", b"not an image", encode(pictures(1, 30, 30, 3)[0])[:200]])
def test_a_broken_image_is_named(broken: bytes) -> None:
    with pytest.raises(InputError, match=r"image x/7\.jpg: cannot be read"):
        decode([("x/7.jpg", broken)], 1)


def test_sixteen_bits_are_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((3, 3), 40000, dtype=np.uint16)).save(file, "PNG")
    with pytest.raises(InputError, match="mode I;16; expected 8 bits"):
        decode([("scan", file.getvalue())], 1)


def test_no_images_at_all() -> None:
    assert decode([], 0).shape[0] == 0
