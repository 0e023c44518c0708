"""Does every screen of the atlas open from disk, for everybody, whatever the names in it?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from convscope.pages.atlas import write_atlas
from convscope.pages.describe import readable
from tests.pages.conftest import Window, pixels
from tests.pages.fake_records import HOSTILE, NAMES, Atlas

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
ODD = quote("co/nv <5>", safe="")
SCREENS = {
    "#/": "ZFNet (width 0.125 <script>)",
    "#/layer/conv1": "conv1",
    f"#/layer/{ODD}": "co/nv <5>",
    "#/unit/features.3/7": "features.3:7",
    "#/unit/features.3/3": "features.3:3",
    "#/unit/features.3/4": "features.3:4",
    f"#/unit/{ODD}/0": "co/nv <5>:0",
    "#/training": "Training",
    "#/evolution": "Feature evolution",
    "#/occlusion/0": "What speaks for daisy?",
    "#/picture/0": HOSTILE,
    "#/class/1": "<b>bold</b>",
    "#/nowhere": "Not here",
    "#/unit/conv1/999": "Not here",
    "#/layer/%E0%A4%A": "Not here",
}


def test_every_screen_opens_from_disk_with_its_pictures(window: Window) -> None:
    for place, title in SCREENS.items():
        page = window.open(place)
        assert page.locator("#screen h1").inner_text() == title
        window.loaded()
        assert page.locator("#screen img:not([alt])").count() == 0


def test_names_are_text_whatever_they_look_like(window: Window) -> None:
    window.open("#/")
    for place in SCREENS:
        page = window.go(place)
        assert page.locator("img[src=x], #screen b, #screen script").count() == 0
    assert window.open("#/picture/3").locator("h1").inner_text() == NAMES[1]


def test_markup_made_from_text_and_outside_pictures_are_refused(browser: Any, address: str) -> None:
    window = Window(browser, address)
    page = window.open("#/")
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<i>'; return '' } catch (e) { return e.name } }"
    )
    assert refused == "TypeError"
    page.evaluate("() => document.body.append(Object.assign(new Image(), {src: 'http://a.test/'}))")
    page.wait_for_timeout(100)
    assert any("img-src" in fault for fault in window.faults)
    window.context.close()


def test_nothing_is_wider_than_a_small_phone(browser: Any, address: str) -> None:
    window = Window(browser, address, viewport={"width": 320, "height": 640})
    window.open("#/")
    for place in SCREENS:
        wide = window.go(place).evaluate("() => document.documentElement.scrollWidth")
        assert wide <= 320, place
    window.closed()


def test_all_text_has_contrast_in_light_and_in_dark(schemed: Window) -> None:
    schemed.open("#/")
    for place in SCREENS:
        found = schemed.go(place).evaluate(CONTRAST)
        assert found["looked"] > 5, place
        assert found["faint"] == [], place
    schemed.page.keyboard.press("?")
    assert schemed.page.evaluate(CONTRAST)["faint"] == []


def test_the_system_s_choice_decides_between_light_and_dark(schemed: Window) -> None:
    ground = pixels(schemed.open("#/training").locator(".foot")).mean()
    dark = schemed.page.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches")
    assert ground < 60 if dark else ground > 200


def test_what_is_not_in_the_atlas_is_said_to_be_missing(window: Window) -> None:
    missing = window.open("#/unit/conv1/999").locator("main").inner_text()
    assert "no feature map conv1:999" in missing
    assert "To the network" in missing


def test_a_dead_map_says_so_in_words(window: Window) -> None:
    page = window.open("#/layer/features.3")
    assert "dead: never above 0 in 100 pictures" in page.locator("[data-map='3']").inner_text()
    page = window.open("#/unit/features.3/3")
    assert "never rose above 0 in 100 pictures" in page.locator(".notice").inner_text()


def test_a_map_that_saw_fewer_pictures_shows_only_those(window: Window) -> None:
    assert window.open("#/unit/features.3/4").locator(".one").count() == 2
    assert window.open("#/unit/features.3/5").locator(".one").count() == 9


def test_a_missing_part_of_the_folder_is_named(
    browser: Any, records: Atlas, tmp_path: Path
) -> None:
    page = write_atlas(tmp_path / "a", records.card, records.table, records.pictures, [])
    page = write_atlas(
        tmp_path / "b", records.card, records.table, records.pictures, records.layers[:1]
    )
    (page.parent / "data" / "layer0.js").unlink()
    window = Window(browser, page.as_uri())
    text = window.open("#/layer/conv1").locator("main").inner_text()
    assert "data/layer0.js is missing: was the whole folder copied?" in text
    window.context.close()


@pytest.mark.parametrize("layers", [0, 1])
def test_an_atlas_without_training_opens_without_its_screens(
    browser: Any, records: Atlas, tmp_path: Path, layers: int
) -> None:
    page = write_atlas(
        tmp_path / "a", records.card, records.table, records.pictures, records.layers[:layers]
    )
    window = Window(browser, page.as_uri())
    shown = window.open("#/")
    assert shown.locator("#places a").all_inner_texts() == ["Network", "conv1"][: 1 + layers]
    for place in ("training", "evolution", "occlusion/0"):
        text = window.go(f"#/{place}").locator("main").inner_text()
        assert "This atlas holds no" in text
    window.closed()


def test_a_normalisation_shows_what_its_convolution_costs(
    browser: Any, records: Atlas, tmp_path: Path
) -> None:
    table = dataclasses.replace(
        records.table,
        kernel=((7, 5), (), (2, 2), (3, 3), (), ()),
        of=("", "", "", "", "features.3", ""),
    )
    page = write_atlas(tmp_path / "a", records.card, table, records.pictures, records.layers)
    window = Window(browser, page.as_uri())
    first = window.open("#/layer/conv1").locator(".head").inner_text().split("\n")
    assert first[first.index("Kernel") + 1 :][:3] == ["7 × 5", "Parameters", "1,776"]
    normed = window.go(f"#/layer/{ODD}").locator(".head").inner_text().split("\n")
    assert "Conv2d of features.3, 1 feature map of 6 × 8" in normed
    start = normed.index("Kernel")
    assert normed[start : start + 6] == [
        *("Kernel", "3 × 3", "in features.3"),
        *("Parameters", "12,040", "in features.3"),
    ]
    assert "2.30 million" in normed[start + 7]
    rows = window.go("#/").locator(".row-words").all_inner_texts()
    assert [("of features.3" in row) for row in rows] == [False, False, True]
    window.closed()


def test_a_layer_is_found_by_the_convolution_before_it(
    browser: Any, records: Atlas, tmp_path: Path
) -> None:
    looked = dataclasses.replace(records.layers[1], layer="bn3", kind="BatchNorm2d")
    names = tuple("bn3" if name == "features.3" else name for name in records.table.name)
    of = tuple("conv3" if name == "bn3" else "" for name in names)
    table = dataclasses.replace(records.table, name=names, of=of)
    layers = (records.layers[0], looked)
    home = write_atlas(tmp_path / "at", records.card, table, records.pictures, layers)
    window = Window(browser, home.as_uri())
    assert window.open("#/layer/conv3").locator("#screen h1").inner_text() == "bn3"
    assert window.open("#/unit/conv3/7").locator("#screen h1").inner_text() == "bn3:7"
    page = window.open("#/")
    page.keyboard.press("/")
    for asked, found in (("conv3", ["bn3"]), ("conv3:7", ["bn3:7"])):
        page.locator("#find input").fill(asked)
        assert page.locator("#found a span").all_inner_texts() == found
    page.keyboard.press("Escape")
    assert window.open("#/layer/conv9").locator("#screen .there a").all_inner_texts() == [
        "conv1",
        "bn3",
    ]
    window.closed()


def test_the_first_screen_names_the_classes_and_how_many_pictures_each_has(
    window: Window, records: Atlas
) -> None:
    page = window.open("#/")
    classes = page.locator("details.classes-all")
    assert classes.locator("summary").inner_text().startswith(f"{len(records.card.classes)} class")
    shown = [line.strip() for line in classes.locator("li").all_inner_texts()]
    assert [line for line in shown if line.startswith("rösé & co")] != []
    many = int((records.pictures.label == 2).sum())
    assert f"rösé & co {many}" in shown


def test_the_pages_have_the_title_that_is_given(
    browser: Any, records: Atlas, tmp_path: Path
) -> None:
    title = "Flowers <b>&</b> leaves"
    made = (records.card, records.table, records.pictures, records.layers[:1])
    window = Window(browser, write_atlas(tmp_path / "at", *made, title=title).as_uri())
    page = window.open("#/")
    assert page.locator("#screen h1").inner_text() == title
    assert page.title() == f"{title} · convscope"
    window.closed()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("torchvision:squeezenet1_0", "SqueezeNet 1.0 (torchvision)"),
        ("torchvision:vgg16_bn", "VGG 16 bn (torchvision)"),
        ("timm:tf_efficientnet_lite0", "tf_efficientnet_lite0 (timm)"),
        ("zfnet", "ZFNet"),
        ("zfnet:width=0.25,head=compact", "ZFNet (width 0.25, head compact)"),
        ("my.package:net", "net (my.package)"),
        ("torchvision:resnet50:weights=none", "ResNet 50 (torchvision, weights none)"),
        ("MyNet", "MyNet"),
    ],
)
def test_a_network_has_a_name_that_people_can_read(spec: str, told: str) -> None:
    assert readable(spec) == told
