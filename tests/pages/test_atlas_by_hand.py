"""Do keys, links, sorting and finding do what a person expects of them?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.pages.conftest import Window
from tests.pages.fake_records import CLASSES, NAMES, SIZE, Atlas

COLUMNS = """() => getComputedStyle(document.querySelector('.wall'))
    .gridTemplateColumns.split(' ').length"""


def test_keys_walk_between_maps_and_layers_and_up(window: Window) -> None:
    window.open("#/unit/conv1/0")
    window.press("ArrowRight", "conv1:1")
    window.press("ArrowRight", "conv1:2")
    window.press("ArrowLeft", "conv1:1")
    window.press("]", "features.3:1")
    window.press("]", "co/nv <5>:0")
    window.press("[", "features.3:0")
    window.press("Escape", "features.3")
    window.press("[", "conv1")
    page = window.press("Escape", "ZFNet (width 0.125 <script>)")
    assert page.url.endswith("#/")


def test_the_first_map_has_none_before_it_and_the_last_none_after(window: Window) -> None:
    page = window.open("#/unit/conv1/0")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("[")
    assert page.url.endswith("#/unit/conv1/0")
    assert page.get_by_label("Previous feature map").count() == 0
    page = window.open("#/unit/conv1/11")
    page.keyboard.press("ArrowRight")
    assert page.url.endswith("#/unit/conv1/11")


def test_arrows_move_between_the_cards_of_a_layer(window: Window) -> None:
    page = window.open("#/layer/features.3")
    columns = page.evaluate(COLUMNS)
    assert columns >= 3
    chosen = "document.activeElement.dataset.map"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(chosen) == "0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(chosen) == str(1 + columns)
    window.press("Enter", f"features.3:{1 + columns}")


def test_question_mark_shows_the_keys_and_escape_closes_them(window: Window) -> None:
    page = window.open("#/layer/conv1")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    assert "copy the link" in page.locator("#keys").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()
    assert page.locator("h1").inner_text() == "conv1"


@pytest.mark.parametrize(
    ("typed", "title"),
    [
        ("features.3 39", "features.3:39"),
        ("conv1:11", "conv1:11"),
        ("<5>", "co/nv <5>"),
        ("rösé", "rösé & co"),
        ("füße", NAMES[2]),
    ],
)
def test_slash_finds_layers_maps_classes_and_files(window: Window, typed: str, title: str) -> None:
    page = window.open("#/")
    page.keyboard.press("/")
    page.keyboard.type(typed)
    window.press("Enter", title)
    assert not page.locator("#find").is_visible()


def test_what_cannot_be_found_is_said_back_as_it_was_typed(window: Window) -> None:
    page = window.open("#/")
    page.keyboard.press("/")
    page.keyboard.type("<u>zebra")
    assert page.locator("#found").inner_text() == "Nothing here is called <u>zebra."


def test_back_returns_to_the_same_place_and_order(window: Window) -> None:
    page = window.open("#/layer/features.3")
    page.get_by_role("button", name="peak").click()
    page.evaluate("() => scrollTo(0, 900)")
    page.wait_for_function("() => scrollY === 900")
    page.locator(".card").nth(20).click()
    page.wait_for_function("() => location.hash.startsWith('#/unit/')")
    window.shown()
    page.go_back()
    window.shown("features.3")
    assert "sort=peak" in page.url
    page.wait_for_function("() => Math.abs(scrollY - 900) < 3")


@pytest.mark.parametrize("key", ["peak", "activity"])
def test_cards_are_sorted_as_the_record_says(window: Window, records: Atlas, key: str) -> None:
    record = records.layers[1]
    page = window.open(f"#/layer/features.3?sort={key}")
    order = page.eval_on_selector_all(".card", "all => all.map(c => Number(c.dataset.map))")
    values = record.value[:, 0] if key == "peak" else record.active
    assert order == sorted(range(40), key=lambda m: (-max(0, values[m]), m))


def test_a_jump_is_marked_where_another_picture_became_the_strongest(window: Window) -> None:
    page = window.open("#/evolution")
    assert page.locator(".jump").count() == 1 + 0 + 4
    assert "another picture" in page.locator(".jump").first.get_attribute("title")
    assert page.locator("th.chosen").inner_text() == "20"


def test_the_slider_chooses_an_epoch(window: Window) -> None:
    page = window.open("#/evolution")
    page.locator("#epoch").fill("1")
    assert page.locator("th.chosen").inner_text() == "2"
    assert page.locator("output").inner_text() == "epoch 2"
    assert page.locator(".now").nth(1).inner_text() == "activation 6"


def test_curves_tell_their_numbers_and_are_told_apart_without_colour(window: Window) -> None:
    page = window.open("#/training")
    page.wait_for_selector(".plot svg")
    words = page.locator(".plot svg").first.get_attribute("aria-label")
    assert words.startswith("Loss over 8 epochs. validation: from 1.4 at epoch 1")
    dashes = page.eval_on_selector_all(
        ".chart:first-child .plot .line", "all => all.map(l => getComputedStyle(l).strokeDasharray)"
    )
    assert len(set(dashes)) == 2
    page.locator("summary", has_text="table").click()
    assert page.locator(".scroller tbody tr").count() == 8
    assert "none" in page.locator(".scroller tbody tr").nth(2).inner_text()


def test_the_occluding_square_follows_arrows_and_pointer(window: Window, records: Atlas) -> None:
    page = window.open("#/occlusion/0")
    o = records.occlusion[0].occlusion
    row, column = np.unravel_index(int(np.argmin(o.probability)), o.probability.shape)
    note = page.locator(".panel-note").first
    assert f"row {o.tops[row]}, column {o.lefts[column]} px" in note.inner_text()
    assert f"{100 * o.probability[row, column]:.1f} %" in note.inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert f"row {o.tops[row + 1]}, column {o.lefts[column - 1]} px" in note.inner_text()
    pale = page.locator(".pale").nth(1).bounding_box()
    page.mouse.move(pale["x"] + 1, pale["y"] + 1)
    assert f"row {o.tops[0]}, column {o.lefts[0]} px" in note.inner_text()
    square = page.locator(".occluder").bounding_box()
    view = page.locator(".view").first.bounding_box()
    assert square["width"] / view["width"] == pytest.approx(32 / SIZE[1], abs=0.02)


def test_the_likeliest_classes_are_counted_and_lettered(window: Window, records: Atlas) -> None:
    page = window.open("#/occlusion/0")
    likeliest = records.occlusion[0].occlusion.likeliest
    texts = page.locator(".kinds li").all_inner_texts()
    assert len(texts) >= 3
    wins = int((likeliest == 0).sum())
    assert texts[0].split("\n") == ["A", CLASSES[0], f"{wins} of {likeliest.size}"]
    assert page.locator(".letter").count() == len(texts)


def test_what_made_the_pictures_is_said_under_them(window: Window) -> None:
    page = window.open("#/unit/conv1/0")
    page.locator("summary").click()
    text = page.locator(".honest").inner_text()
    assert "Made with: rule deconvnet; overlap add; <i> </script>." in text
    assert "5 of 5 rectifiers" in text


def test_copy_link_copies_the_address(browser: Any, address: str) -> None:
    window = Window(browser, address, permissions=["clipboard-read", "clipboard-write"])
    page = window.open("#/unit/conv1/5")
    page.get_by_role("button", name="Copy link").click()
    page.wait_for_selector("#said.shown")
    assert page.locator("#said").inner_text() == "Link copied"
    assert page.evaluate("() => navigator.clipboard.readText()").endswith("#/unit/conv1/5")
    window.closed()


def test_a_picture_lists_the_maps_it_excites_most(window: Window, records: Atlas) -> None:
    page = window.open("#/picture/30")
    among = [(r.image == 30).any(axis=1) & (r.active > 0) for r in records.layers]
    expected = int(sum(found.sum() for found in among))
    assert expected > 5
    assert f"among the strongest of {expected} feature maps" in page.locator(".lead").inner_text()
    assert page.locator(".card").count() == expected
