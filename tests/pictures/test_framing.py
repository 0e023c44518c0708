"""Does a framing show what torchvision's Resize and CenterCrop show?"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from convscope.core.units import Box
from convscope.pictures.framing import FILTERS, Framing

SIZES = [(301, 447), (447, 301), (225, 224), (1001, 333), (97, 800), (500, 375), (224, 256)]
SMALL = [(64, 48), (31, 29), (8, 90)]
FRAMINGS = [(256, (224, 224)), (64, (64, 50)), (227, (227, 227))]
LARGER = [(50, (60, 31)), (51, (32, 80)), (20, (41, 41))]


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def peer(picture: Image.Image, framing: Framing) -> np.ndarray:
    mode = InterpolationMode[framing.interpolation.upper()]
    crop = CenterCrop(framing.crop)
    return np.asarray(crop(Resize(framing.resize, mode)(picture)))


def difference(picture: Image.Image, framing: Framing) -> np.ndarray:
    ours = framing(picture)
    assert ours.shape == (*framing.crop, 3)
    assert ours.dtype == np.uint8
    return np.abs(ours.astype(int) - peer(picture, framing))


@pytest.mark.parametrize("size", SIZES + SMALL)
@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_framed_picture_is_torchvisions_to_one_part_in_255(size, interpolation) -> None:
    picture = noise(*size).filter(ImageFilter.GaussianBlur(1))
    for resize, crop in FRAMINGS + LARGER:
        assert difference(picture, Framing(resize, crop, interpolation)).max() <= 1


@pytest.mark.parametrize("size", SIZES + SMALL)
def test_even_where_rounding_ties_abound_hardly_a_value_is_off_by_two(size) -> None:
    # From 256 to 232 every weight is a multiple of 1/29 or 1/32.
    for resize, crop in [*FRAMINGS, *LARGER, (232, (224, 200))]:
        off = difference(noise(*size), Framing(resize, crop))
        assert off.max() <= 2
        assert (off > 1).mean() <= 1e-4


def test_half_a_pixel_of_shift_would_be_noticed() -> None:
    picture, framing = noise(301, 447), Framing()
    moved = picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 0.5, 0, 1, 0))
    assert difference(picture, framing).max() <= 1
    assert np.abs(framing(moved).astype(int) - peer(picture, framing)).max() > 20


def test_without_a_resize_the_whole_picture_is_stretched() -> None:
    halves = Image.new("RGB", (90, 30))
    halves.paste((200, 100, 0), (0, 0, 45, 30))
    pixels = Framing(None, (20, 10))(halves)
    assert pixels.shape == (20, 10, 3)
    assert (pixels[:, :4] == (200, 100, 0)).all()
    assert (pixels[:, 6:] == 0).all()


@pytest.mark.parametrize("size", SIZES + SMALL)
def test_a_picture_stretched_first_is_cut_as_torchvision_cuts_it(size) -> None:
    for resize, crop in (((80, 72), (64, 48)), ((40, 90), (50, 60)), ((256, 256), (224, 224))):
        assert difference(noise(*size), Framing(resize, crop)).max() <= 1


def test_a_box_is_stretched_and_cut_with_its_picture() -> None:
    framing = Framing((80, 100), (60, 60))
    assert framing.box(Box(0, 0, 40, 50), (40, 50)) == Box(-10, -20, 70, 80)
    assert framing.whole((50, 40)) == (100, 80)


def test_stretching_to_the_crop_itself_is_stretching() -> None:
    assert Framing((30, 40), (30, 40)) == Framing(None, (30, 40))
    assert Framing([30, 50], [30, 40]) == Framing((30, 50), (30, 40))  # out of JSON


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    picture = noise(256, 256)
    middle = np.asarray(picture)[16:240, 16:240]
    assert (Framing()(picture) == middle).all()


def test_a_framing_survives_a_trip_to_another_process() -> None:
    framing = Framing(227, (227, 210), "bicubic")
    assert pickle.loads(pickle.dumps(framing)) == framing
