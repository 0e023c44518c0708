"""Does the page for print show every map once, whole, and where it belongs?"""

from __future__ import annotations

import dataclasses
import io
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from convscope.records.features import LayerFeatures
from convscope.studies.features.figure import PAGE, _scaled, features_figure, features_table
from tests.drawing.test_pictures import layer

PAPER = (9, 16, 12, 10, 10)


def records(counts: tuple[int, ...] = PAPER) -> list[LayerFeatures]:
    return [dataclasses.replace(layer(count), layer=f"l{n}") for n, count in enumerate(counts)]


def drawn(figure: Figure) -> np.ndarray:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    return np.asarray(Image.open(out).convert("RGB"))


@pytest.mark.parametrize("counts", [PAPER, (3,), (1, 1), (24, 2), (5,) * 26])
def test_all_maps_lie_inside_of_the_page_and_none_on_another(counts: tuple[int, ...]) -> None:
    figure = features_figure(records(counts))
    (axes,) = figure.axes
    boxes = [image.get_extent() for image in axes.get_images()]
    assert len(boxes) == 2 * sum(counts)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for x0, x1, y1, y0 in boxes:
        assert left < x0 < x1 <= right + 1e-6
        assert top < y0 < y1 < bottom
    for one, a in enumerate(boxes):
        for b in boxes[one + 1 :]:
            apart = a[1] < b[0] or b[1] < a[0] or a[2] < b[3] or b[2] < a[3]
            assert apart
    across, down = figure.get_size_inches()
    assert across <= PAGE[0] + 1e-6
    if len(counts) <= 5:
        assert down <= PAGE[1] + 1e-6


def test_words_are_large_enough_and_do_not_cover_each_other() -> None:
    figure = features_figure(records())
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.texts]
    assert [name for name in names if name.startswith("l")] == ["l0", "l1", "l2", "l3", "l4"]
    assert len(names) == 5 + sum(PAPER)
    figure.draw_without_rendering()
    assert all(text.get_fontsize() >= 7 for text in [*axes.texts, *figure.texts])
    spans = sorted(
        (round(e.y0), e.x0, e.x1) for e in (text.get_window_extent() for text in axes.texts)
    )
    for one, other in pairwise(spans):
        assert one[0] != other[0] or one[2] < other[1]


@pytest.mark.parametrize("counts", [(1,), (2, 1)])
def test_a_narrow_page_holds_its_caption_and_stands_in_the_middle(counts: tuple[int, ...]) -> None:
    figure = features_figure(records(counts))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    for text in [*axes.texts, *figure.texts]:
        extent = text.get_window_extent()
        assert figure.bbox.x0 <= extent.x0 < extent.x1 <= figure.bbox.x1, text.get_text()
    images = [image.get_window_extent() for image in axes.get_images()]
    left, right = min(box.x0 for box in images), max(box.x1 for box in images)
    assert (left + right) / 2 == pytest.approx(figure.bbox.width / 2, rel=0.05)


def test_projections_stand_left_of_the_parts_of_the_pictures() -> None:
    one = layer(1)
    pixels = drawn(features_figure([one]))
    grey = pixels[:, :, 0].astype(int)
    middle = grey.shape[1] // 2
    # Patches are 0 to 8 in grey, projections 255 less: white paper aside, dark is right.
    assert (grey[:, middle:] < 9).sum() > 20 * (grey[:, :middle] < 9).sum()


def test_below_all_rectifiers_a_filter_is_drawn_once() -> None:
    filters = dataclasses.replace(layer(2), rectifiers=0, rewritten=0)
    (axes,) = features_figure([filters]).axes
    shown = [np.asarray(image.get_array()) for image in axes.get_images()]
    once = [pixels for pixels in shown if len(np.unique(pixels)) == 1]
    assert [int(pixels[0, 0, 0]) for pixels in once] == [255, 245]


def test_numbers_of_chosen_maps_are_written() -> None:
    chosen = dataclasses.replace(layer(3), channels=(41, 7, 300))
    (axes,) = features_figure([chosen]).axes
    assert [text.get_text() for text in axes.texts] == ["conv5", "41", "7", "300"]


def test_one_scale_for_a_layer_is_that_of_its_median_map() -> None:
    given = dataclasses.replace(
        layer(3), high=np.array([1, 2, 8], np.float32), low=-np.array([1, 2, 8], np.float32)
    )
    given = given.shown[0]
    assert np.array_equal(_scaled(given, "map"), given.projections)
    half, same, four = _scaled(given, "layer").astype(float)
    assert half == pytest.approx(127.5 + (given.projections[0] - 127.5) / 2, abs=0.51)
    assert np.array_equal(same, given.projections[1])
    assert four == pytest.approx((127.5 + (given.projections[2] - 127.5) * 4).clip(0, 255), abs=1)


def test_the_page_says_by_which_rule_and_which_maps_would_look_the_same_for_anything() -> None:
    one, other = records((2, 3))
    one = dataclasses.replace(
        one,
        similarity=np.array([0.97, 0.2], np.float32),
        patch_similarity=np.array([0.1, 0.1], np.float32),
        grids=(("stem", 3, 2, 4, 0.3),),
    )
    other = dataclasses.replace(
        other, rule="guided", similarity=np.array([0.9, np.nan, 0.9], np.float32),
        patch_similarity=np.array([0.85, np.nan, np.nan], np.float32),
    )  # fmt: skip
    figure = features_figure([one, other])
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names == ["l0", "0*", "1", "l1°", "0", "1", "2*"]
    (foot,) = (text.get_text() for text in figure.texts)
    assert "deconvnet, in layers marked ° guided backpropagation" in foot
    assert "* nearly the same for any picture" in foot
    alone = features_figure([dataclasses.replace(other, similarity=other.patch_similarity)])
    assert [text.get_text() for text in alone.axes[0].texts] == ["l1", "0", "1", "2"]
    assert "projections: guided backpropagation; zero" in alone.texts[0].get_text()
    table, *_, last = features_table([one, other])
    assert list(table.rows[0]) == [
        "l0", "0", "deconvnet", "0.97", "0.10", "nearly the same for any picture",
    ]  # fmt: skip
    assert last.endswith("grid of period 4 px from stride 2 of stem (kernel 3 is no multiple)")


def test_the_other_rule_s_projections_are_drawn_when_asked_for() -> None:
    (record,) = records((2,))
    both = dataclasses.replace(
        record, beside="guided", beside_projections=255 - record.projections,
        beside_low=record.low, beside_high=record.high,
        beside_similarity=np.zeros(2, np.float32),
    )  # fmt: skip
    own, other = features_figure([both]), features_figure([both], beside=True)
    assert not np.array_equal(drawn(own), drawn(other))
    assert "guided backpropagation" in other.texts[0].get_text()
