"""Does the demo's page show both acts, open from disk and say only what was found?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope.cli.atlas import MAPS, PHOTOGRAPHS
from convscope.pages.atlas import LearningNetwork, RealNetwork, hidden_words, write_demo
from convscope.records.predictions import Prediction
from tests.pages import fake_records
from tests.pages.fake_records import HOSTILE, Atlas
from tests.studies.fake_explanations import explanation


@pytest.fixture
def page(tmp_path: Path, records: Atlas) -> Path:
    answer = Prediction(
        HOSTILE, ("<b>cup</b>", "bowl"), np.array([0, 1]), np.array([0.75, 0.25], np.float32)
    )
    seen = [(fake_records.colours(1, 1, 64)[0], answer)]
    example, layers = records.occlusion[0], records.layers[:2]
    real = RealNetwork("a network & more", seen, explanation(), "why/index.html", example, layers)
    learning = LearningNetwork("It learned.", records.evolution, "atlas/index.html")
    (tmp_path / "why").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "why" / "figure.png")
    return write_demo(tmp_path, real, learning)


def test_both_acts_stand_on_one_page_with_all_their_pictures(page: Path, records: Atlas) -> None:
    text = page.read_text(encoding="utf-8")
    assert "1. A real network" in text
    assert "2. A small network" in text
    assert "It learned." in text
    links = set(re.findall(r'(?:src|href)="([^"]+)"', text))
    own = {link for link in links if not link.startswith(("why/", "atlas/"))}
    maps = sum(len(layer.value) for layer in records.layers[:2])
    assert sum("/map-" in link for link in own) == 2 * maps
    assert all((page.parent / link).is_file() for link in own)


def test_names_are_text_and_never_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<b>cup</b>" not in text
    assert "&lt;b&gt;cup&lt;/b&gt;" in text
    assert "<script" not in text
    assert "onerror=alert(1)>" not in text


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_narrow_and_wide_windows(browser: Any, page: Path, width: int) -> None:
    window = browser.new_page(viewport={"width": width, "height": 800})
    faults: list[str] = []
    window.on("console", lambda said: faults.append(said.text))
    window.on("requestfailed", lambda asked: faults.append(asked.url))
    window.goto(page.as_uri())
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    assert faults == []
    window.close()


def test_hiding_is_told_with_the_class_that_takes_over(records: Atlas) -> None:
    example = records.occlusion[0]
    found = example.occlusion
    words = hidden_words(example)
    assert f"{found.base_probability:.0%}" in words
    assert f"{float(np.nanmin(found.probability)):.0%}" in words
    changed = (found.likeliest != found.target).mean()
    assert (f"{changed:.0%} of its places" in words) == bool(changed)


def test_the_demo_asks_for_maps_and_photographs_that_there_are() -> None:
    from convscope.network.pretrained import EfficientNetLite0
    from convscope.pictures.builtin import CAMERA, PHOTOS

    assert set(PHOTOGRAPHS) <= {photo.name for photo in (*PHOTOS, CAMERA)}
    modules = dict(EfficientNetLite0().named_modules())
    for layer, maps in MAPS.items():
        assert max(maps) < modules[layer].num_features  # type: ignore[operator]
