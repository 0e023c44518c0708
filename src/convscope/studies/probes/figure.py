"""Linear probes: accuracy by depth, drawn and in numbers."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from convscope.core.errors import printable
from convscope.core.text import Part, Table, percent
from convscope.drawing.tiles import TRAINING, VALIDATION, dress, shortened
from convscope.studies.base import Shown
from convscope.studies.probes import Options
from convscope.studies.probes.record import Probes
from convscope.studies.transfer.figure import CURVE, UP, chance

COLOURS = {"svm": TRAINING, "softmax": VALIDATION}
NAMES = {"svm": "linear SVM", "softmax": "softmax"}


def probes_figure(record: Probes) -> Figure:
    """Accuracy by depth; bars are one standard deviation over the folds."""
    figure = Figure(figsize=(max(5.0, 0.55 * len(record.layers) + 2), 3.8), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(record.layers))
    for column, kind in enumerate(record.kinds):
        values = 100 * record.accuracy[:, column]
        mean, spread = values.mean(1), values.std(1)
        axes.errorbar(places, mean, spread, color=COLOURS[kind], label=NAMES[kind], **CURVE)
    chance(axes, len(record.classes))
    names = [shortened(name) for name in record.layers]
    axes.set_xticks(places, names, rotation=40, ha="right", parse_math=False)
    title = f"{len(record.classes)} classes, {record.per_class} pictures a class to train"
    dress(axes, title, up=UP, grid="y", size=9)
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def probes_table(record: Probes) -> list[Part]:
    """A row a layer."""
    rows = [
        [printable(layer), f"{numbers:,}", *(percent(values) for values in row)]
        for layer, numbers, row in zip(record.layers, record.numbers, record.accuracy, strict=True)
    ]
    return [Table.of(["layer", "numbers", *record.kinds], rows)]


def show(record: Probes, _: Options) -> Shown:
    return Shown({"figure": probes_figure(record)}, {"table": probes_table(record)})
