"""Does a click mark the pixel that was clicked, and does what is saved read as it should?"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope.cli.app import run
from convscope.core.errors import DataError, UsageError
from convscope.core.text import one_line
from convscope.core.units import Box
from convscope.pages.mark import write_marking
from convscope.pictures.annotations import read_boxes, read_parts
from convscope.pictures.pictures import Pictures
from tests.pages.conftest import Window

PARTS = ("left eye", "nose", "<b>tail</b>")
NAMES = ("<img src=x onerror=alert(1)>.png", "__proto__.png", "größe & 'quotes'.png", "tall\n.png")
SIZES = ((300, 200), (2000, 1000), (123, 77), (90, 400))
"""Width and height; the second is shown smaller than it is."""
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
FITS = "() => document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures # 1 %")
    draw = np.random.default_rng(0)
    for name, (width, height) in zip(NAMES, SIZES, strict=True):
        pixels = draw.integers(90, 170, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture(scope="module")
def page_file(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with Pictures(pictures, max_bad=1) as folder:
        return write_marking(tmp_path_factory.mktemp("mark # 1 %") / "größe", folder, PARTS)


@pytest.fixture
def window(browser: Any, page_file: Path) -> Iterator[Window]:
    opened = Window(browser, page_file.as_uri(), accept_downloads=True)
    yield opened
    opened.closed()


def shown(window: Window, number: int) -> Any:
    """The page with that picture, by its place in byte order, loaded."""
    if window.page.url == "about:blank":
        window.page.goto(window.address)
    window.page.locator("#pictures button").nth(number).click()
    window.page.wait_for_function(
        "() => (i => i.complete && i.naturalWidth)(document.querySelector('#picture'))"
    )
    return window.page


def at(page: Any, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
    """Where the middle of that pixel of the picture is on the screen."""
    page.locator("#stage").scroll_into_view_if_needed()
    frame = page.locator("#picture").bounding_box()
    return (
        frame["x"] + (x + 0.5) / size[0] * frame["width"],
        frame["y"] + (y + 0.5) / size[1] * frame["height"],
    )


def click(page: Any, x: int, y: int, size: tuple[int, int]) -> None:
    page.mouse.click(*at(page, x, y, size))


def drag(page: Any, start: tuple[int, int], end: tuple[int, int], size: tuple[int, int]) -> None:
    page.mouse.move(*at(page, *start, size))
    page.mouse.down()
    page.mouse.move(*at(page, *end, size), steps=4)
    page.mouse.up()


def saved(page: Any, button: str, place: Path) -> Path:
    with page.expect_download() as coming:
        page.locator(button).click()
    assert coming.value.suggested_filename == f"{button.removeprefix('#save-')}.json"
    coming.value.save_as(place)
    return place


def order() -> list[int]:
    """The pictures' numbers in NAMES, in the page's order."""
    return sorted(range(len(NAMES)), key=lambda n: NAMES[n].encode())


def test_clicks_and_drags_come_back_as_pixels_of_the_picture(
    window: Window, tmp_path: Path
) -> None:
    draw = np.random.default_rng(1)
    points, boxes = {}, {}
    for place, number in enumerate(order()):
        size = SIZES[number]
        page = shown(window, place)
        frame = page.locator("#picture").bounding_box()
        finest = max(1.0, size[0] / frame["width"])  # pixels that one click may miss
        marked = {}
        for part in PARTS:
            x, y = (int(draw.integers(side)) for side in size)
            click(page, x, y, size)
            marked[part] = (x, y, finest)
        points[one_line(NAMES[number])] = marked
        if number in (0, 1):
            drag(page, (60, 20), (20, 45), size)
            boxes[NAMES[number]] = Box(20, 20, 46, 61)
    assert page.locator("#state").inner_text() == "4 of 4 done, 0 skipped."
    found = read_parts(saved(page, "#save-parts", tmp_path / "parts.json"))
    assert set(found) == set(map(one_line, NAMES))
    for name, marked in points.items():
        for part, (x, y, finest) in marked.items():
            assert abs(found[name][part][0] - x) <= finest - 1
            assert abs(found[name][part][1] - y) <= finest - 1
    told = read_boxes(saved(page, "#save-boxes", tmp_path / "boxes.json"))
    assert set(told) == set(boxes)
    assert told[NAMES[0]] == (boxes[NAMES[0]],)
    assert np.abs(np.array(told[NAMES[1]][0]) - np.array(boxes[NAMES[1]])).max() <= 3
    names = window.page.evaluate(
        "() => [...document.querySelectorAll('.part-name')].map(n => n.innerText)"
    )
    assert tuple(names) == PARTS


def test_undo_skip_and_taking_away_do_what_they_say(window: Window, tmp_path: Path) -> None:
    numbers = order()
    page = shown(window, 0)
    size = SIZES[numbers[0]]
    for step in range(3):
        click(page, 20 + step, 30, size)
    where = page.locator(".at")
    assert where.nth(2).inner_text() == "22, 30"
    page.keyboard.press("u")
    assert where.nth(2).inner_text() == "not marked"
    page.get_by_role("button", name="Take away left eye").click()
    assert where.nth(0).inner_text() == "not marked"
    page.keyboard.press("Control+z")
    assert where.nth(0).inner_text() == "20, 30"
    drag(page, (10, 10), (40, 50), size)
    assert page.locator(".boxes li").count() == 1
    page.get_by_role("button", name="Take away box 1").click()
    assert page.locator(".boxes li").count() == 0
    page.keyboard.press("s")
    assert page.locator("#skip").get_attribute("aria-pressed") == "true"
    page.keyboard.press("n")
    assert page.title().startswith("2 of 4")
    click(page, 5, 6, SIZES[numbers[1]])
    said = page.locator("#state").inner_text()
    assert said == "0 of 4 done, 1 skipped. 1 lacks parts and stays out of parts.json."
    assert json.loads(saved(page, "#save-parts", tmp_path / "p.json").read_text())["images"] == {}
    assert read_boxes(saved(page, "#save-boxes", tmp_path / "b.json")) == {}
    for _ in range(9):
        page.keyboard.press("u")
    assert page.locator("#state").inner_text() == "0 of 4 done, 0 skipped."
    assert page.title().startswith("1 of 4")  # undone where it was done


def test_all_can_be_done_by_keys(window: Window) -> None:
    page = shown(window, order().index(0))
    page.locator("#stage").focus()
    page.keyboard.press("2")
    for key, times in (("Alt+ArrowRight", 3), ("Alt+ArrowUp", 2)):
        for _ in range(times):
            page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert page.locator(".at").nth(1).inner_text() == "153, 98"
    assert page.locator(".part").nth(2).get_attribute("aria-pressed") == "true"
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.keyboard.press("Alt+ArrowLeft")
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator(".boxes li span").inner_text() == "152, 98 to 154, 100"
    page.keyboard.press("2")
    page.keyboard.press("Delete")
    assert page.locator(".at").nth(1).inner_text() == "not marked"
    focused = "() => document.activeElement.id"
    assert page.evaluate(focused) == "stage"


def test_a_finger_marks_too_and_a_drag_of_a_finger_scrolls(browser: Any, page_file: Path) -> None:
    window = Window(
        browser, page_file.as_uri(), has_touch=True, viewport={"width": 390, "height": 800}
    )
    number = order().index(0)
    page = shown(window, number)
    page.touchscreen.tap(*at(page, 150, 100, SIZES[0]))
    x, y = map(int, page.locator(".at").nth(0).inner_text().split(", "))
    assert abs(x - 150) <= 1
    assert abs(y - 100) <= 1
    page.locator("#boxing").tap()
    for corner in ((20, 30), (90, 120)):
        page.touchscreen.tap(*at(page, *corner, SIZES[0]))
    assert page.locator(".boxes li").count() == 1
    touch = "() => getComputedStyle(document.querySelector('#stage')).touchAction"
    assert page.evaluate(touch) == "none"
    page.locator("#boxing").tap()
    assert page.evaluate(touch) == "pan-y pinch-zoom"
    window.closed()


def test_marks_survive_a_reload_and_a_browser_that_keeps_nothing_says_so(
    window: Window, browser: Any, page_file: Path
) -> None:
    page = shown(window, 2)
    click(page, 7, 8, SIZES[order()[2]])
    page.reload()
    assert page.title().startswith("3 of 4")
    assert page.locator(".at").nth(0).inner_text() == "7, 8"
    assert "stay in this browser" in page.locator("#keeps").inner_text()
    forgetful = Window(browser, page_file.as_uri())
    forgetful.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied') } })"
    )
    forgetful.page.goto(forgetful.address)
    assert "keeps nothing" in forgetful.page.locator("#keeps").inner_text()
    forgetful.closed()


def test_what_was_marked_before_is_there_to_be_corrected(
    browser: Any, pictures: Path, tmp_path: Path
) -> None:
    marked = {NAMES[0]: {"nose": (11.0, 12.0)}}
    boxes = {NAMES[0]: [Box(1, 2, 30, 40)]}
    with Pictures(pictures, max_bad=1) as folder:
        page = write_marking(tmp_path / "on", folder, ["nose"], marked=marked, boxes=boxes)
    window = Window(browser, page.as_uri(), accept_downloads=True)
    shown(window, order().index(0))
    assert read_parts(saved(window.page, "#save-parts", tmp_path / "p.json")) == marked
    assert read_boxes(saved(window.page, "#save-boxes", tmp_path / "b.json")) == {
        NAMES[0]: (Box(1, 2, 30, 40),)
    }
    window.closed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_is_legible_in_light_and_dark_wide_and_narrow(
    browser: Any, page_file: Path, scheme: str, width: int
) -> None:
    window = Window(
        browser, page_file.as_uri(), color_scheme=scheme, viewport={"width": width, "height": 800}
    )
    page = shown(window, 0)
    click(page, 60, 30, SIZES[order()[0]])
    page.mouse.move(0, 0)
    page.wait_for_timeout(50)
    found = page.evaluate(CONTRAST)
    assert found["faint"] == []
    assert found["looked"] > 20
    assert page.evaluate(FITS)
    frame = page.locator("#picture").bounding_box()
    assert frame["width"] > 0.5 * min(width, 300)
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('button')].filter(b => !b.innerText.trim() "
        "&& !b.getAttribute('aria-label')).length"
    )
    assert unnamed == 0
    window.closed()


def test_no_name_becomes_markup_and_nothing_is_asked_of_a_network(page_file: Path) -> None:
    page = page_file.read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "default-src 'none'" in html.unescape(page)
    assert "http" not in page.replace("http-equiv", "")
    assert {p.name for p in page_file.parent.iterdir()} == {
        "data", "index.html", "pictures", "static",
    }  # fmt: skip
    assert len(list((page_file.parent / "pictures").iterdir())) == 4


@pytest.mark.parametrize("parts", [["nose", "nose"], ["nose", " "], ["nose", "", ""]])
def test_parts_without_a_name_of_their_own_are_refused(
    parts: list[str], pictures: Path, tmp_path: Path
) -> None:
    with Pictures(pictures) as folder, pytest.raises(UsageError) as fault:
        write_marking(tmp_path / "out", folder, parts)
    assert fault.value.code == "U371"


def test_nothing_is_written_where_no_picture_can_be_used(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with Pictures(folder, max_bad=1) as pictures, pytest.raises(DataError) as fault:
        write_marking(tmp_path / "out", pictures, ["nose"])
    assert fault.value.code == "D118"
    assert not (tmp_path / "out").exists()


def test_what_was_marked_is_what_the_correspondence_study_takes(
    browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "dogs"
    pictures.mkdir()
    draw = np.random.default_rng(5)
    for number in range(3):
        pixels = draw.integers(0, 255, (240, 260, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    out = tmp_path / "marking"
    assert run(["mark", str(pictures), "--parts", "left_eye, nose", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip().endswith("marking/index.html")
    window = Window(browser, (out / "index.html").as_uri(), accept_downloads=True)
    for number in range(3):
        page = shown(window, number)
        click(page, 90 + number, 100, (260, 240))
        click(page, 120, 130 + number, (260, 240))
    path = saved(page, "#save-parts", tmp_path / "parts.json")
    window.closed()
    assert read_parts(path)["2.png"] == {"left_eye": (92, 100), "nose": (120, 132)}
    spec = "zfnet:width=0.0625,head=compact"
    arguments = ["correspondence", spec, str(pictures), "--parts", str(path), "--draws", "2"]
    assert run([*arguments, "--permutations", "50", "--out", str(tmp_path / "c")]) == 0
    assert "left_eye" in (tmp_path / "c" / "table.md").read_text()
