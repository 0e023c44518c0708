"""Is a map drawn as what it is, and can everything on the figure of many maps be read?"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from convscope.attribution.registry import METHODS
from convscope.core.units import Box
from convscope.drawing.tiles import OPAQUE, drawn, legend
from convscope.studies.explain.figure import explanation_figure
from convscope.studies.explain.record import Explanation
from tests.studies.fake_explanations import (
    SIZE,
    a_map,
    explanation,
    forgotten,
    of_other,
    outcome,
    prediction,
)

PICTURE = np.full((*SIZE, 3), 100, np.uint8)
PIXELS: dict[str, Any] = {
    "pixels": np.zeros((3, *SIZE), np.float32),
    "raw": None,
    "layer": "pixels",
}


def crowded(count: int, size: tuple[int, int] = SIZE) -> Explanation:
    """Every kind of map with the longest that can be said of it."""
    noise = np.random.default_rng(0).normal(size=size)
    small = np.zeros((3, 3))
    kinds = [
        a_map(np.abs(noise) * 1e-9, layer="features.11.a.very.long.layer.name", raw=small + 1e-9),
        a_map(noise * 1e6, method="Gradient × input", **PIXELS),
        a_map(noise * 0, method="Deconvnet of a class score", **PIXELS),
        a_map(np.abs(noise), origin={"coverage": "27 of 27 rectifiers rewritten"}, **PIXELS),
    ]
    names = ("a class with an endless name, " * 9, *("b" * 99,) * 4)
    share = np.array([0.6, 0.2, 0.1, 0.05, 0.05], np.float32)
    likeliest = prediction("photo" * 99, names)
    object.__setattr__(likeliest, "probability", share)
    object.__setattr__(likeliest, "classes", np.arange(5))
    return explanation(
        [kinds[number % 4] for number in range(count)],
        [outcome(0.2, 1.0, score=1.0, blob=(0.1, 0.9))] * count,
        [*METHODS][:count],
        picture=np.zeros((*size, 3), np.uint8),
        prediction=likeliest,
        target_name=names[0],
        label=names[1],
        coverage=(1.0,) * count,
        randomised=(forgotten(1.0, 1.0),) * count,
        sensitive=(of_other(float("nan")),) * count,
    )


def texts(figure: Figure) -> list[Text]:
    """All that is written, once it is drawn."""
    FigureCanvasAgg(figure).draw()
    found: list[Text] = []
    for axes in figure.axes:
        found += [axes.title, *(part for part in axes.get_children() if isinstance(part, Text))]
        if axes.axison:
            low, high = axes.get_ylim()
            found += axes.get_xticklabels()
            found += [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
    return [text for text in dict.fromkeys(found) if text.get_text().strip()]


@pytest.mark.parametrize(("count", "size"), [(1, (30, 150)), (4, (200, 60)), (5, SIZE), (17, SIZE)])
def test_no_words_are_cut_or_lie_over_others(count: int, size: tuple[int, int]) -> None:
    figure = explanation_figure(crowded(count, size))
    whole = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    assert len(boxes) > 5 * count
    for words, box in boxes:
        assert box.x0 >= whole.x0, words
        assert box.x1 <= whole.x1, words
        assert box.y0 >= whole.y0, words
        assert box.y1 <= whole.y1, words
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.shrunk(0.99, 0.9).overlaps(b.shrunk(0.99, 0.9)), (one, other)
    images = [axes.get_window_extent() for axes in figure.axes if axes.images]
    assert len(images) == count + 1
    for words, box in boxes:
        assert not any(box.overlaps(image) for image in images), words


def test_the_panels_say_what_the_record_says() -> None:
    found = explanation(
        label="wasp", randomised=(forgotten(0.9, 0.31),), sensitive=(of_other(-0.25),)
    )
    words = "\n".join(text.get_text() for text in texts(explanation_figure(found)))
    for part in (
        "a picture.png",
        " 60.0%  ant",
        "true: wasp",
        "explained: ant, 60.0%",
        "Grad-CAM\nfeatures.12, 6×9",
        "hidden 0.20 (random 0.45)",
        "shown 0.80 (random 0.45)",
        "clear 0, yellow 4; raw peak 4",
        "half of the evidence in 10% of the picture",
        "random weights ρ 0.31 · other class ρ -0.25",
        "SUPPORTED: It marks what the network uses\nhere.",
    ):
        assert part in words


def test_boxes_are_drawn_around_their_pixels() -> None:
    figure = explanation_figure(explanation(boxes=(Box(10, 20, 30, 60),)))
    corners = {
        (part.get_x(), part.get_y(), part.get_width(), part.get_height())
        for part in figure.axes[0].patches
    }
    assert corners == {(19.5, 9.5, 40, 20)}


def test_places_are_filled_as_far_as_possible() -> None:
    for count, columns in ((1, 2), (5, 6), (6, 4), (9, 5)):
        figure = explanation_figure(crowded(count))
        lefts = {round(axes.get_position().x0, 3) for axes in figure.axes if axes.images}
        assert len(lefts) == columns, count


def test_a_coarse_map_covers_the_grey_picture_as_far_as_it_is_positive() -> None:
    values = np.zeros(SIZE)
    values[:, :30], values[:, 30:60] = 2.0, -2.0
    shown = drawn(PICTURE, a_map(values))
    assert (shown[:, 30:] == 100).all()  # nothing, and what speaks against
    yellow = np.array((253, 231, 37))  # the last colour of viridis
    assert np.abs(shown[0, 0] - (100 * (1 - OPAQUE) + yellow * OPAQUE)).max() <= 1
    assert legend(a_map(values)) == "clear 0, yellow 2"


def test_signed_pixels_are_red_for_and_blue_against() -> None:
    values = np.zeros(SIZE)
    values[:, :30], values[:, 30:60] = 3.0, -3.0
    shown = drawn(PICTURE, a_map(values, **PIXELS)).astype(int)
    assert shown[0, 0, 0] > shown[0, 0, 2] + 50
    assert shown[0, 40, 2] > shown[0, 40, 0] + 50
    assert np.ptp(shown[0, 70]) <= 3
    assert legend(a_map(values, **PIXELS)) == "red +3 for, blue −3 against"


def test_one_outlier_does_not_leave_a_map_of_pixels_black() -> None:
    values = np.full(SIZE, 0.5)
    values[0, 0] = 1e6
    shown = drawn(PICTURE, a_map(values, **PIXELS))
    assert shown[5, 5].min() > 150
    assert legend(a_map(values, **PIXELS)) == "black 0, white 0.5"


@pytest.mark.parametrize("kind", ["layer", "pixels"])
def test_nothing_is_drawn_where_nothing_speaks_for_the_class(kind: str) -> None:
    found = a_map(np.zeros(SIZE), **(PIXELS if kind == "pixels" else {}))
    assert (drawn(PICTURE, found) == 100).all()
    assert legend(found) == "no positive evidence"


def test_a_map_that_only_speaks_against_says_so() -> None:
    found = a_map(np.full(SIZE, -1.0))
    assert (drawn(PICTURE, found) == 100).all()
    assert legend(found) == "no positive evidence"
