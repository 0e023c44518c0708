"""How did feature maps form? A block a layer, a row a map, a column an epoch.

Layout as in figure 4 of Zeiler and Fergus 2014: for every chosen map its strongest activation over
the pictures, projected, at each epoch. A diamond marks where another picture became the strongest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convscope.figures.pictures import block
from convscope.figures.style import INK, SOFT, shortened
from convscope.records.series import Evolution

WIDE = 7.2
LEAST = 4.2
"""Inches: both columns of a page, and what the line below needs."""
MOST, LABELS, TITLE, TICKS, FOOT = 0.5, 0.45, 0.27, 0.17, 0.36
"""Inches: a tile at most, room left of a block, above it, below it, and below all."""
T = TypeVar("T")
GAP = 2
"""Pixels between tiles of 64."""
BESIDE = 12
"""With more epochs than this, layers stand under each other, not two in a row."""
MARK = "#ffb000"


def evolution_figure(record: Evolution, *, patches: bool = False) -> Figure:
    """patches: under each row of projections the parts of the pictures that they are of."""
    layers = list(dict.fromkeys(unit.rpartition(":")[0] for unit in record.units))
    rows = [[n for n, u in enumerate(record.units) if u.rpartition(":")[0] == x] for x in layers]
    columns = 2 if len(record.epochs) <= BESIDE and len(layers) > 1 else 1
    tile = min(MOST, (WIDE / columns - LABELS) / len(record.epochs))
    across, each = len(record.epochs) * tile, 2 if patches else 1
    tall = [each * tile * max(map(len, some)) for some in _in_turn(rows, columns)]
    width = max(columns * (across + LABELS), LEAST)
    height = sum(tall) + len(tall) * (TITLE + TICKS) + FOOT
    figure = Figure(figsize=(width, height))
    top = height
    for some, names, down in zip(
        _in_turn(rows, columns), _in_turn(layers, columns), tall, strict=True
    ):
        for place, (members, layer) in enumerate(zip(some, names, strict=True)):
            own = len(members) * each * tile
            left, low = place * (across + LABELS) + LABELS - 0.05, top - TITLE - own
            axes = figure.add_axes(
                (left / width, low / height, across / width, own / height), aspect="auto"
            )
            _draw(axes, record, members, patches)
            axes.set_title(shortened(layer), loc="left", fontsize=9, color=INK, parse_math=False)
        top -= down + TITLE + TICKS
    figure.text(0.5, 0.06 / height, _told(patches), fontsize=7, color=SOFT, ha="center")
    return figure


def _in_turn(items: Sequence[T], columns: int) -> list[Sequence[T]]:
    return [items[start : start + columns] for start in range(0, len(items), columns)]


def _told(patches: bool) -> str:
    under = "; under it the part of the picture" if patches else ""
    return (
        f"columns: epochs; rows: maps, each at one scale over its epochs, zero is grey{under}\n"
        "◆: another picture became the strongest"
    ).replace("◆", "diamond")


def _draw(axes: Axes, record: Evolution, members: Sequence[int], patches: bool) -> None:
    tiles, epochs = _tiles(record, members, patches), len(record.epochs)
    pitch, side = tiles[0].shape[0] + GAP, tiles[0].shape[0]
    each = 2 if patches else 1
    sheet = block(tiles, shape=(len(members) * each, epochs), gap=GAP)
    axes.imshow(sheet, interpolation="none", aspect="auto")
    names = [record.units[member].rpartition(":")[2] for member in members]
    middle = (each * pitch - GAP) / 2
    axes.set_yticks([row * each * pitch + middle for row in range(len(members))], names)
    axes.set_xticks([n * pitch + side / 2 for n in range(epochs)], list(map(str, record.epochs)))
    every = math.ceil(epochs / 16)
    for number, label in enumerate(axes.get_xticklabels()):
        label.set_visible(number % every == 0)
    axes.tick_params(length=0, pad=2, labelsize=7, colors=SOFT)
    for edge in axes.spines.values():
        edge.set_visible(False)
    jumped = record.image[members][:, 1:] != record.image[members][:, :-1]
    row, column = np.nonzero(jumped)
    axes.plot(
        (column + 1) * pitch - GAP / 2,
        row * each * pitch + side / 6,
        "D",
        color=MARK,
        markersize=3.2,
        markeredgecolor="black",
        markeredgewidth=0.5,
        clip_on=False,
    )


def _tiles(
    record: Evolution, members: Sequence[int], patches: bool
) -> list[UInt8[np.ndarray, "s s 3"]]:
    """Row by row; with patches each row of projections is followed by that of its patches."""
    kinds = (record.projections, record.patches) if patches else (record.projections,)
    return [tile for member in members for kind in kinds for tile in kind[member]]
