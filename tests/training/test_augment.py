"""Is what an epoch does to a picture what the recipe says, and nothing but its seed's doing?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from convscope.pictures.framing import Framing
from convscope.training.data import LUMA, Shrunk, _box, _hue, order, stream, view
from convscope.training.recipe import Recipe

PLAIN = Recipe(size=40, test_size=40, test_resize=44, crop="centre", flip=0.0)
BUSY = dataclasses.replace(
    PLAIN, crop="resized", flip=0.5, rotate=20, jitter=0.3, hue=0.1, erase=0.5, grey=0.2
)


def photograph(height: int = 61, width: int = 83) -> np.ndarray:
    random = np.random.default_rng(5)
    small = Image.fromarray(random.integers(0, 256, (7, 9, 3)).astype(np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def test_a_view_is_decided_by_seed_epoch_and_number_alone() -> None:
    picture = photograph()
    first = view(picture, 40, BUSY, stream(7, 0, 3, 11))
    for other in range(5):  # other pictures in between change nothing
        view(picture, 40, BUSY, stream(7, 0, 3, other))
    again = view(picture, 40, BUSY, stream(7, 0, 3, 11))
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    for key in ((8, 0, 3, 11), (7, 0, 4, 11), (7, 0, 3, 12)):
        assert not np.array_equal(first.pixels, view(picture, 40, BUSY, stream(*key)).pixels)


def test_the_order_is_another_permutation_in_every_epoch() -> None:
    epochs = [order(0, epoch, 50).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[1] == order(0, 1, 50).tolist()


@pytest.mark.parametrize(("height", "width"), [(61, 83), (83, 61), (44, 44), (200, 90)])
def test_the_centre_is_cut_as_the_networks_own_framing_cuts_it(height: int, width: int) -> None:
    picture = photograph(height, width)
    ours = view(picture, 40, PLAIN, stream(0, 0, 0)).pixels
    theirs = Framing(44, (40, 40))(Image.fromarray(picture))
    # Pillow may resample rows or columns first, which rounds otherwise; the place is the same.
    assert abs(ours.astype(int) - theirs).max() <= 1


def test_boxes_lie_inside_and_have_the_area_and_shape_allowed() -> None:
    recipe = dataclasses.replace(PLAIN, crop="resized", scale_min=0.25, ratio_max=1.5)
    boxes = np.array([_box(83, 61, 40, recipe, stream(0, 0, 0, n)) for n in range(400)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 83
    assert bottom.max() <= 61
    area = (right - left) * (bottom - top) / (83 * 61)
    ratio = (right - left) / (bottom - top)
    assert 0.25 <= area.min() < 0.3
    assert 0.7 < area.max() <= 1.0
    assert 1 / 1.5 <= ratio.min() < 0.72
    assert 1.39 < ratio.max() <= 1.5


def test_a_random_window_stays_in_the_centre_square_and_reaches_its_corners() -> None:
    recipe = dataclasses.replace(PLAIN, crop="random", test_resize=44)
    boxes = [_box(88, 44, 40, recipe, stream(0, 0, 0, n)) for n in range(300)]
    places = {(round(left) - 22, round(top)) for left, top, _, _ in boxes}
    assert places == {(x, y) for x in range(5) for y in range(5)}
    assert all(math.isclose(right - left, 40) for left, _, right, _ in boxes)


def test_a_mirrored_picture_is_the_same_picture_backwards() -> None:
    picture = photograph()
    plain = view(picture, 40, PLAIN, stream(0, 0, 0)).pixels
    for field, expected in (("flip", plain[:, ::-1]), ("flip_vertical", plain[::-1])):
        recipe = dataclasses.replace(PLAIN, **{field: 1.0})
        assert np.array_equal(view(picture, 40, recipe, stream(0, 0, 0)).pixels, expected)


def test_colours_change_as_brightness_then_saturation_then_contrast_would_change_them() -> None:
    recipe = dataclasses.replace(PLAIN, jitter=0.4)
    seen = view(photograph(), 40, recipe, stream(3, 0, 0))
    random = stream(3, 0, 0)
    random.random(2)  # whether to mirror
    brightness, contrast, saturation = 1 + random.uniform(-0.4, 0.4, 3)
    assert abs(np.array([brightness, contrast, saturation]) - 1).min() > 0.01
    slow = np.zeros((40, 40, 3))
    pixels = seen.pixels / 255 * brightness
    for y in range(40):
        for x in range(40):
            grey = pixels[y, x] @ LUMA
            slow[y, x] = saturation * pixels[y, x] + (1 - saturation) * grey
    mean = np.mean([slow[y, x] @ LUMA for y in range(0, 40, 8) for x in range(0, 40, 8)])
    slow = contrast * slow + (1 - contrast) * mean
    fast = (seen.pixels / 255) @ seen.colour.T + seen.offset
    np.testing.assert_allclose(fast, slow, atol=1e-6)


def test_a_third_of_a_turn_of_hue_makes_red_green_and_green_blue() -> None:
    third = _hue(2 * math.pi / 3)
    np.testing.assert_allclose(third @ [1, 0, 0], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(third @ [0, 1, 0], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(_hue(0.7) @ [0.3, 0.3, 0.3], [0.3, 0.3, 0.3], atol=1e-6)


def test_what_is_erased_is_one_rectangle_of_one_colour() -> None:
    recipe = dataclasses.replace(PLAIN, erase=1.0)
    picture = photograph()
    plain = view(picture, 40, PLAIN, stream(0, 0, 0)).pixels
    for number in range(20):
        changed = view(picture, 40, recipe, stream(0, 0, 0, number)).pixels
        rows, columns = np.nonzero((changed != plain).any(2))
        block = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert len(np.unique(block.reshape(-1, 3), axis=0)) == 1
        assert 0.01 < block.shape[0] * block.shape[1] / 1600 <= 0.25


def test_a_grey_picture_has_no_colour() -> None:
    seen = view(photograph(), 40, dataclasses.replace(PLAIN, grey=1.0), stream(0, 0, 0))
    out = (seen.pixels / 255) @ seen.colour.T + seen.offset
    np.testing.assert_allclose(out, out[..., :1].repeat(3, 2), atol=1e-6)


def test_a_quarter_turn_turns_the_picture() -> None:
    square = photograph(60, 60)
    recipe = dataclasses.replace(PLAIN, size=60, test_size=60, test_resize=60, rotate=180.0)
    seed = next(s for s in range(2000) if abs(stream(s, 0, 0).uniform(-180, 180) - 90) < 0.05)
    turned = view(square, 60, recipe, stream(seed, 0, 0)).pixels.astype(float)
    candidates = [np.rot90(square, times).astype(float) for times in range(4)]
    inside = (slice(4, -4), slice(4, -4))
    errors = [abs(turned[inside] - one[inside]).mean() for one in candidates]
    assert min(errors) == min(errors[1], errors[3])
    assert min(errors) < 4 < sorted(errors)[1]


def test_large_pictures_are_shrunk_and_small_ones_left_alone() -> None:
    assert Shrunk(30)(Image.fromarray(photograph(60, 90))).shape == (30, 45, 3)
    assert Shrunk(30)(Image.fromarray(photograph(90, 61))).shape == (44, 30, 3)
    small = photograph(20, 40)
    assert np.array_equal(Shrunk(30)(Image.fromarray(small)), small)
