"""Does the page of an explanation open anywhere, say what the record says, and run nothing?"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope.core.errors import OutputError
from convscope.core.units import Box
from convscope.drawing.tiles import GREY
from convscope.pages.explain import write_explanation, write_explanations
from convscope.studies.explain.record import Explanation, Explanations
from tests.pages.conftest import Window, pixels
from tests.studies.fake_explanations import (
    SIZE,
    a_map,
    explanation,
    forgotten,
    many,
    of_other,
    outcome,
    prediction,
)

HOSTILE = "<img src=x onerror=alert(1)>.png"
CLASS = "<script>alert(2)</script>"
BOXES = (Box(12, 60, 42, 81), Box(-5, 84, 9, 200))
"""In the bright part of the picture; the second reaches outside."""
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
FITS = "() => document.documentElement.scrollWidth <= innerWidth"
LOADED = """() => [...document.images].every(i => {
    i.loading = 'eager';
    return i.complete && i.naturalWidth > 0;
})"""


def one() -> Explanation:
    """Four maps with all that a page may have to say of them."""
    noise = np.random.default_rng(0).normal(size=SIZE)
    pixel = {"pixels": np.zeros((3, *SIZE), np.float32), "raw": None, "layer": "pixels"}
    nothing = a_map(np.zeros(SIZE), method="Deconvnet of a class score", **pixel)
    long = a_map(layer="blocks.11.branch." + "very_long_name." * 9, origin={"notes": ["<b>y</b>"]})
    return explanation(
        [a_map(), a_map(noise, method="Gradient × input", **pixel), nothing, long],
        [outcome(), outcome(0.45, 0.45), outcome(), outcome(0.2, 0.45)],
        ["gradcam", "gradient-x-input", "deconvnet", "mine:own"],
        prediction=prediction(HOSTILE, (CLASS, "größe 🌻", "a\u202eb")),
        target_name=CLASS,
        label="“true” & ‘false’",
        boxes=BOXES,
        coverage=(0.1, 0.2, float("nan"), 0.1),
        randomised=tuple(forgotten(0.1, last) for last in (0.2, 0.9, float("nan"), 0.1)),
        sensitive=tuple(of_other(rank) for rank in (0.1, 0.2, float("nan"), 0.99)),
        refused={"guided-backprop": "gelu: has no rule <i>here</i>"},
    )


def folder(out: Path, record: Explanations | None = None) -> Path:
    """A folder of three pictures, of which the record says something."""

    def run(each: Callable[[int, Explanation], None]) -> Explanations:
        for number in (0, 7, 8):
            each(number, one())
        return record or many(
            methods=("gradcam", "gradient-x-input"),
            classes=(CLASS, "b" * 200, "c"),
            refused={"guided-backprop": "gelu: has no rule"},
        )

    return write_explanations(out, run)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages in folders whose names would break a carelessly made URL."""
    out = tmp_path_factory.mktemp("why # 100 %")
    return {
        "picture": write_explanation(out / "größe", one()),
        "folder": folder(out / "many?"),
    }


@pytest.fixture(params=["light", "dark"])
def opened(browser: Any, request: pytest.FixtureRequest) -> Iterator[Window]:
    window = Window(browser, "", color_scheme=request.param)
    yield window
    window.closed()


@pytest.mark.parametrize("kind", ["picture", "folder"])
def test_a_page_opens_from_disk_in_silence_and_can_be_read(
    opened: Window, places: dict[str, Path], kind: str
) -> None:
    page = opened.page
    page.goto(places[kind].as_uri())
    page.wait_for_function(LOADED)
    found = page.evaluate(CONTRAST)
    assert found["faint"] == []
    assert found["looked"] > 40
    dark = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 384) == page.evaluate(
        "() => matchMedia('(prefers-color-scheme: dark)').matches"
    )
    assert page.locator("script, iframe, object, [style], [onerror]").count() == 0


@pytest.mark.parametrize("kind", ["picture", "folder"])
def test_a_narrow_screen_scrolls_tables_and_not_the_page(
    browser: Any, places: dict[str, Path], kind: str
) -> None:
    window = Window(browser, "", viewport={"width": 320, "height": 640})
    window.page.goto(places[kind].as_uri())
    window.page.wait_for_function(LOADED)
    assert window.page.evaluate(FITS)
    widest = "() => Math.max(...[...document.images].map(i => i.getBoundingClientRect().right))"
    assert window.page.evaluate(widest) <= 320
    window.closed()


@pytest.fixture
def picture(browser: Any, places: dict[str, Path]) -> Iterator[Any]:
    window = Window(browser, "")
    window.page.goto(places["picture"].as_uri())
    window.page.wait_for_function(LOADED)
    yield window.page
    window.closed()


def test_names_are_text_and_never_markup(picture: Any) -> None:
    assert picture.locator("h1").inner_text() == f"Why “{CLASS}”?"
    assert picture.title().startswith(HOSTILE)
    assert picture.locator("figcaption").inner_text().startswith(HOSTILE)
    assert "gelu: has no rule <i>here</i>" in picture.locator(".refused").inner_text()
    assert picture.get_by_text("<b>y</b>").count() == 1
    assert "\\u202e" in picture.locator(".classes").inner_text()
    assert picture.locator(".asked-for").count() == 1


def test_each_map_has_its_verdict_and_numbers(picture: Any) -> None:
    cards = picture.locator("article.map")
    for fold in picture.locator("article.map details").all():
        assert fold.get_attribute("open") is None  # the sentence leads, numbers are folded
        fold.locator("summary").click()
    levels = [cards.nth(n).locator(".verdict").get_attribute("class") for n in range(4)]
    assert levels == ["verdict good", "verdict poor", "verdict none", "verdict fair"]
    first = cards.nth(0).locator("dl").inner_text()
    for fact in ("4", "10% of the picture", "0.200 (random 0.450)", "ρ 0.10, 0.20", "25% lost"):
        assert fact in first
    assert "ρ 0.10, flat map" in cards.nth(2).locator("dl").inner_text()
    assert picture.locator(".numbers tbody tr").count() == 4


def test_a_map_of_nothing_is_the_grey_picture_and_is_said_to_be_none(
    picture: Any, places: dict[str, Path]
) -> None:
    card = picture.locator("article.map").nth(2)
    assert "No positive evidence" in card.inner_text()
    file = card.locator("img").get_attribute("src")
    with Image.open(places["picture"].parent / file) as drawing:
        drawn = np.asarray(drawing.convert("RGB")).astype(float)
    expected = np.linspace(0, 255, SIZE[1]) * sum(GREY)
    assert np.abs(drawn - expected[None, :, None]).max() < 12  # stored with small losses


def test_boxes_stand_where_they_are_in_the_picture(picture: Any) -> None:
    """Dark lines on a bright ground, found by their darkness in what is on the screen."""
    shown = pixels(picture.locator(".whole svg")).mean(2)
    scale = shown.shape[1] / SIZE[1]
    box = BOXES[0]
    row = shown[round((box.top + box.bottom) / 2 * scale)]
    dark = np.flatnonzero(row < 90)
    dark = dark[dark > 50 * scale]
    assert dark.min() == pytest.approx(box.left * scale, abs=3)
    assert dark.max() == pytest.approx(box.right * scale, abs=3)
    column = shown[:, round((box.left + box.right) / 2 * scale)]
    across = np.flatnonzero(column < 90)
    assert across.min() == pytest.approx(box.top * scale, abs=3)
    assert across.max() == pytest.approx(box.bottom * scale, abs=3)
    assert shown[round(4 * scale), round(83 * scale) :].min() < 90  # what reaches outside is cut


def test_pictures_of_a_folder_lead_to_their_pages_and_back(
    browser: Any, places: dict[str, Path]
) -> None:
    window = Window(browser, "")
    page = window.page
    page.goto(places["folder"].as_uri())
    assert page.locator(".gallery a").count() == 3
    assert page.locator(".findings li").count() >= 1
    assert CLASS in page.locator(".crops").inner_text()
    page.locator(".gallery a").nth(1).click()
    page.wait_for_function("() => document.querySelector('article.map')")
    assert page.locator("h1").inner_text() == f"Why “{CLASS}”?"
    page.wait_for_function(LOADED)
    page.locator(".back a").click()
    page.wait_for_function("() => document.querySelector('.gallery')")
    window.closed()


def test_all_files_are_there_or_none(tmp_path: Path) -> None:
    page = write_explanation(tmp_path / "out", one())
    names = {path.name for path in page.parent.iterdir()}
    assert {"index.html", "figure.png", "picture.webp", "map3.webp", "records", "static"} <= names
    assert (page.parent / "records" / "maps" / "mine.own").is_dir()
    with pytest.raises(OutputError) as fault:
        write_explanation(tmp_path / "out", one())
    assert fault.value.code == "O501"

    def stumbles(each: Callable[[int, Explanation], None]) -> Explanations:
        each(0, one())
        raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        write_explanations(tmp_path / "many", stumbles)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    "told",
    ["assumed: shorter side to 256", "stretched to 64 × 64; assumed: mean, <b>std</b>"],
)
def test_what_was_assumed_of_the_pictures_is_told_before_all_numbers(
    told: str, tmp_path: Path
) -> None:
    known = write_explanation(tmp_path / "known", one()).read_text()
    made = {"preprocessing": told, "preprocessing is": "assumed"}
    guessed = write_explanation(tmp_path / "guessed", replace(one(), origin=made)).read_text()
    said = html.escape(told.removeprefix("assumed: "))
    assert "Is this how it was trained?" not in known
    assert 0 < guessed.index("Is this how it was trained?") < guessed.index(said)
    assert guessed.index(said) < guessed.index("What the network takes it for")
    record = replace(many(), origin={**many().origin, **made})
    page = folder(tmp_path / "many", record).read_text()
    assert 0 < page.index(said) < page.index("Findings")
