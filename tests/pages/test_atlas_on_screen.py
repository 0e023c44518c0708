"""Do the right pixels stand in the right places of the screen?"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from convscope.drawing.tiles import block
from tests.pages.conftest import Window, pixels
from tests.pages.fake_records import SIZE, Atlas

ODD = quote("co/nv <5>", safe="")


def sized(tile: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(tile).resize((width, height)), dtype=float)


@pytest.mark.parametrize("place", [0, 4, 8])
def test_a_large_tile_shows_its_own_pixels_and_no_neighbour_s(
    window: Window, records: Atlas, place: int
) -> None:
    page = window.open(f"#/unit/{ODD}/0")
    window.loaded()
    record = records.layers[2]
    for half, tiles in enumerate((record.patches, record.projections)):
        shown = pixels(page.locator(".one").nth(place).locator(".tile").nth(half))
        height, width = shown.shape[:2]
        inner = np.s_[4:-4, 4:-4]  # the corners are round
        right = abs(shown - sized(tiles[0, place], width, height))[inner].mean()
        wrong = abs(shown - sized(tiles[0, (place + 1) % 9], width, height))[inner].mean()
        assert right < 7
        assert wrong > 2 * right


def test_pictures_say_what_they_are(window: Window, records: Atlas) -> None:
    page = window.open("#/unit/features.3/7")
    record = records.layers[1]
    name = records.pictures.name[int(record.image[7, 0]) // 3]
    value = float(f"{record.value[7, 0]:.3g}")
    alt = page.locator(".one img").first.get_attribute("alt")
    assert alt == f"features.3:7, picture {name}, activation {value:g}, patch"


def test_the_place_on_the_whole_picture_is_the_record_s_box(window: Window, records: Atlas) -> None:
    page = window.open("#/unit/features.3/7")
    thumb = page.locator(".one").nth(2).locator(".thumb")
    around, frame = thumb.bounding_box(), thumb.locator(".frame").bounding_box()
    assert around["width"] / around["height"] == pytest.approx(SIZE[1] / SIZE[0], abs=0.02)
    scale = SIZE[1] / around["width"]
    shown = [frame["x"] - around["x"], frame["y"] - around["y"], frame["width"], frame["height"]]
    box = records.layers[1].box[7, 2]
    top, left, bottom, right = np.clip(box, 0, [SIZE[0], SIZE[1], SIZE[0], SIZE[1]])
    expected = [left, top, right - left, bottom - top]
    assert [scale * length for length in shown] == pytest.approx(expected, abs=1.5)


def test_a_picture_that_is_not_square_fills_its_frame(window: Window, records: Atlas) -> None:
    page = window.open("#/picture/30")
    window.loaded()
    shown = pixels(page.locator(".large .thumb"))
    height, width = shown.shape[:2]
    expected = sized(records.pictures.thumbs[10, 6:-6], width, height)
    assert abs(shown - expected)[4:-4, 4:-4].mean() < 9


def test_each_projection_can_have_its_own_scale(window: Window) -> None:
    page = window.open(f"#/unit/{ODD}/0")
    window.loaded()
    tile = page.locator("[data-place='0']")
    jointly = np.ptp(pixels(tile)[4:-4, 4:-4])
    page.get_by_role("button", name="each its own").click()
    assert jointly < 130
    assert np.ptp(pixels(tile)[4:-4, 4:-4]) > 230


@pytest.mark.parametrize("show", ["patches", "projections"])
def test_patches_or_projections_can_be_shown_alone(
    window: Window, records: Atlas, show: str
) -> None:
    page = window.open(f"#/layer/features.3?show={show}")
    window.loaded()
    shown = pixels(page.locator(".block").nth(6))
    height, width = shown.shape[:2]
    assert abs(height - width) < 2
    right, wrong = (
        abs(shown - sized(block(getattr(records.layers[1], half)[6]), width, height)).mean()
        for half in (show, {"patches": "projections"}.get(show, "patches"))
    )
    assert right < 25  # gaps are drawn over the tiles' edges
    assert wrong > 1.5 * right


@pytest.mark.parametrize("show", ["both", "patches"])
@pytest.mark.parametrize("width", [320, 1280])
def test_cards_are_equally_high_and_cut_nothing_off(
    browser: Any, address: str, show: str, width: int
) -> None:
    window = Window(browser, address, viewport={"width": width, "height": 20_000})
    page = window.open(f"#/layer/features.3?show={show}")
    measured = page.eval_on_selector_all(
        ".wall > li", "all => all.map(li => [li.clientHeight, li.scrollHeight, li.scrollWidth])"
    )
    assert len(measured) == 40
    assert len({height for height, _, _ in measured}) == 1
    assert all(inside <= height for height, inside, _ in measured)
    assert all(wide <= width for _, _, wide in measured)
    window.closed()


def test_heat_maps_lie_where_the_square_s_centre_was(window: Window) -> None:
    page = window.open("#/occlusion/0")
    window.loaded()
    view = page.locator(".pale").first.bounding_box()
    raster = page.locator(".raster").first.bounding_box()
    scale = SIZE[1] / view["width"]
    shown = [
        scale * (raster["x"] - view["x"]),
        scale * (raster["y"] - view["y"]),
        scale * raster["width"],
        scale * raster["height"],
    ]
    assert shown == pytest.approx([16 - 4, 16 - 4, 13 * 8, 9 * 8], abs=0.7)
