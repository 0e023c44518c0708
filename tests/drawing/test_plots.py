"""Do plots show the record's numbers, and names as they are?"""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from convscope.cli.results import drawn
from convscope.core.errors import UsageError
from convscope.drawing.plots import confusion, png, training_curves
from convscope.drawing.tiles import prediction_figure, prediction_png, shortened
from convscope.records.predictions import Evaluation, Prediction, Series

COLUMNS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")


def series(epochs: int) -> Series:
    values = np.random.default_rng(0).random((epochs, 5))
    return Series(COLUMNS, np.arange(1, epochs + 1), values)


def evaluation(names: tuple[str, ...], counts: np.ndarray) -> Evaluation:
    many = int(counts.sum())
    return Evaluation(
        top1=float(np.trace(counts) / many),
        top5=1.0,
        names=names,
        pictures=("x",) * many,
        numbers=np.arange(many),
        labels=np.zeros(many, np.int64),
        likeliest=np.zeros((many, 5), np.int64),
        probability=np.zeros((many, 5), np.float32),
        confusion=counts,
    )


@pytest.mark.parametrize("epochs", [1, 7, 40])
def test_curves_are_the_columns_and_the_best_epoch_is_marked(epochs: int) -> None:
    record = series(epochs)
    figure = training_curves(record)
    left, right = figure.axes
    drawn = [line.get_ydata() for axes in (left, right) for line in axes.lines[:2]]
    for line, column in zip(drawn, ("train_loss", "val_loss", *COLUMNS[1:4:2]), strict=True):
        assert np.array_equal(line, record.values[:, COLUMNS.index(column)])
    accuracy = record.values[:, 3]
    marked = right.texts[0].get_text()
    assert marked == f"{accuracy.max():.1%} at epoch {accuracy.argmax() + 1}"


def test_a_series_without_accuracy_is_refused_with_what_there_is() -> None:
    bare = Series(("val_loss",), np.arange(1, 3), np.zeros((2, 1)))
    with pytest.raises(UsageError, match="val_accuracy: no such column; there are val_loss"):
        training_curves(bare)


def test_the_confusion_has_its_numbers_at_their_places_and_only_classes_that_occur() -> None:
    counts = np.array([[7, 0, 2], [0, 0, 0], [1, 0, 30]])
    figure = confusion(evaluation(("rose", "never", "tulip"), counts))
    axes = figure.axes[0]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "7", (1, 0): "2", (0, 1): "1", (1, 1): "30"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rose", "tulip"]
    shown = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shown, [[7 / 9, 2 / 9], [1 / 31, 30 / 31]])


def test_many_classes_are_drawn_without_names_or_numbers() -> None:
    many = confusion(evaluation(tuple(map(str, range(70))), np.eye(70, dtype=np.int64)))
    assert not many.axes[0].texts
    assert not many.axes[0].get_yticklabels()


def test_names_that_a_plot_could_trip_over_are_drawn() -> None:
    names = ("a$b$", "\x1b[31mred", "漢字", "n" * 90)
    figure = confusion(evaluation(names, np.eye(4, dtype=np.int64)))
    with Image.open(io.BytesIO(png(figure, dots_per_inch=60))) as drawn:
        assert drawn.size[0] > 200
    assert shortened(names[1]) == "\\x1b[31mred"
    assert len(shortened(names[3])) == 26


def test_a_prediction_is_drawn_beside_its_picture() -> None:
    found = Prediction(
        "cat.jpg", ("cat", "dog"), np.array([3, 1]), np.array([0.75, 0.25], np.float32)
    )
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    figure = np.asarray(prediction_figure(pixels, found)).astype(int)
    blue = np.abs(figure - (11, 92, 191)).max(-1) < 3
    runs = sorted({int(count) for count in blue.sum(1)} - {0})
    assert runs[-1] == pytest.approx(3 * runs[0], abs=6), "a bar is as long as its probability"
    middle = figure[figure.shape[0] // 2, 12:762]
    shown = np.array(Image.fromarray(pixels).resize((750, 500), Image.Resampling.BICUBIC))
    assert np.array_equal(middle, shown[250])


def test_pictures_and_classes_of_any_number_and_kind_are_drawn() -> None:
    for side, names in (((1, 90), ("漢字", "a$b$")), ((90, 1), ("n" * 90,) * 60), ((9, 9), ())):
        chances = np.full(len(names), 1 / max(1, len(names)), np.float32)
        found = Prediction("x.jpg", names, np.arange(len(names)), chances)
        with Image.open(io.BytesIO(prediction_png(np.zeros((*side, 3), np.uint8), found))) as drawn:
            assert drawn.height == 540
            assert 900 < drawn.width < 1500


NO_FORMULA = "price $\\frac{a$ and $b_"


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_a_name_with_dollars_is_letters_wherever_it_stands(kind: str) -> None:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2], label=f"{NO_FORMULA}$")
    axes.set_title(f"{NO_FORMULA}$")
    axes.text(1, 1, f"{NO_FORMULA}$")
    axes.set_xticks([1, 2], [f"{NO_FORMULA}$", "$x_$"])
    axes.set_ylabel("$\\nothing$")
    axes.legend()
    drawn(figure, kind)
    if kind == "svg":
        assert NO_FORMULA in drawn(figure, kind).decode()


def test_powers_along_a_logarithmic_axis_stay_powers() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 1e6], [1, 1e6])
    axes.set_xscale("log")
    axes.set_title("$100")
    told = drawn(figure, "svg").decode()
    assert "mathdefault{10" not in re.sub(r"<!--.*?-->", "", told, flags=re.DOTALL)
    assert "$100" in told
