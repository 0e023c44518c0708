"""Does a picture move, grow and turn as told, and where does what moves in come from?"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from convscope.core.errors import UsageError
from convscope.pictures.framing import Framing
from convscope.studies.invariance.study import canvas, middle, warp

GREY = (9, 8, 7)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (201, 377)])
def test_the_middle_of_the_canvas_is_what_the_framing_shows(size: tuple[int, int]) -> None:
    framing = Framing(64, (48, 40))
    smooth = Image.fromarray(noise(9, 11)).resize(size, Image.Resampling.BICUBIC)
    shown = middle(canvas(smooth, framing), framing.crop).astype(int)
    assert np.abs(shown - framing(smooth)).max() <= 1
    assert min(canvas(smooth, framing).shape[:2]) == 64


def test_a_crop_larger_than_the_picture_is_its_own_canvas() -> None:
    framing = Framing(20, (48, 40))
    picture = Image.fromarray(noise(30, 30))
    assert (canvas(picture, framing) == framing(picture)).all()
    stretched = Framing(None, (48, 40))
    assert (canvas(picture, stretched) == stretched(picture)).all()


@pytest.mark.parametrize("change", ["vertical", "horizontal"])
@pytest.mark.parametrize("amount", [-7, -2, 0, 3, 9])
def test_a_shift_moves_pixels_and_shows_the_picture_beyond_the_crop(
    change: str, amount: int
) -> None:
    pixels = noise(20, 31)
    shown, filled = warp(pixels, (12, 13), change, amount, GREY)
    axis = 0 if change == "vertical" else 1
    wide = np.full((80, 91, 3), GREY, np.uint8)
    wide[30:50, 30:61] = pixels
    expected = np.roll(wide, amount, axis)[34:46, 39:52]
    assert (shown == expected).all()
    room = (4, 9)[axis]
    lost = max(0, abs(amount) - room) / (12, 13)[axis]
    assert filled == pytest.approx(lost)
    assert (shown == GREY).all(2).mean() == pytest.approx(lost)


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (270, 3), (-90, 3)])
def test_quarter_turns_go_to_the_left_and_keep_every_pixel(degrees: float, turns: int) -> None:
    pixels = noise(16, 16)
    shown, filled = warp(pixels, (16, 16), "rotation", degrees, GREY)
    assert (shown == np.rot90(pixels, turns)).all()
    assert filled == 0


def test_a_turn_by_45_degrees_leaves_four_corners_to_the_border() -> None:
    pixels = np.full((100, 100, 3), 200, np.uint8)
    shown, filled = warp(pixels, (100, 100), "rotation", 45, GREY)
    octagon = 2 * 2**0.5 - 2  # what a unit square shares with itself turned by 45 degrees
    assert filled == pytest.approx(1 - octagon, abs=0.01)
    assert (shown[0, 0] == GREY).all()
    assert (shown[50, 50] == 200).all()


def test_a_ratio_of_1_changes_nothing_and_one_of_2_shows_the_middle_half() -> None:
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[6:18, 8:24] = 255
    assert (warp(pixels, (24, 32), "scale", 1, GREY)[0] == pixels).all()
    shown, filled = warp(pixels, (24, 32), "scale", 2, GREY)
    assert (shown[1:-1, 1:-1] == 255).all()
    assert filled == 0


def test_a_gradient_is_half_as_steep_at_a_ratio_of_2() -> None:
    pixels = np.repeat(np.arange(0, 120, 2, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    shown, _ = warp(pixels, (40, 60), "scale", 2, GREY)
    steps = np.diff(shown[20, 5:-5, 0].astype(int))
    assert set(steps.tolist()) <= {0, 1, 2}
    assert steps.mean() == pytest.approx(1, abs=0.03)


def test_a_ratio_below_1_shows_the_border_around() -> None:
    pixels = np.full((40, 40, 3), 200, np.uint8)
    shown, filled = warp(pixels, (40, 40), "scale", 0.5, GREY)
    assert filled == pytest.approx(0.75, abs=0.02)
    assert (shown[20, 20] == 200).all()
    assert (shown[2, 20] == GREY).all()


def test_edges_repeat_and_mirrors_mirror() -> None:
    pixels = noise(10, 10)
    edge, filled = warp(pixels, (10, 10), "vertical", 3, "edge")
    assert (edge[:3] == pixels[:1]).all()
    assert filled == pytest.approx(0.3)
    mirror, _ = warp(pixels, (10, 10), "vertical", 3, "mirror")
    assert (mirror[:3] == pixels[2::-1]).all()


@pytest.mark.parametrize(
    ("change", "amount", "border"),
    [
        ("rotate", 3, GREY),
        ("vertical", 0.5, GREY),
        ("scale", 0, GREY),
        ("scale", -1, GREY),
        ("rotation", float("nan"), GREY),
        ("vertical", 3, "miror"),
    ],
)
def test_what_cannot_be_meant_is_refused(change: str, amount: float, border: object) -> None:
    with pytest.raises(UsageError) as told:
        warp(noise(9, 9), (9, 9), change, amount, border)  # type: ignore[arg-type]
    assert told.value.code == "U411"
