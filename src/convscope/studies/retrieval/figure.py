"""Which pictures lie next to a query, and which pairs are the same picture twice?

Layout as in Krizhevsky et al. 2012, figure 4: a query, then its nearest from left to right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convscope.drawing.style import INK, SOFT
from convscope.errors import printable
from convscope.studies.retrieval.record import Duplicates, Neighbours

Shown = Mapping[int, UInt8[np.ndarray, "h w 3"]]
"""Pixels by picture number."""
SAME, OTHER = "#1a7f37", "#b42318"
TILE = 1.25
"""Inches."""
PAIRS = 3
MARGINS = {"left": 0.03, "right": 0.97, "bottom": 0.02, "top": 0.8, "wspace": 0.04}
"""Of a pair, as parts of its cell."""
LONGEST = 20
"""Characters above a tile."""


def neighbour_figure(
    found: Neighbours, rows: Sequence[int], queries: Shown, pictures: Shown
) -> Figure:
    """rows: of the queries to draw. A frame's colour says whether the class is the query's."""
    columns = found.nearest.shape[1] + 1
    size = (columns * TILE + 0.35, len(rows) * (TILE + 0.34) + 0.45)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, axes in zip(rows, grid, strict=True):
        _tile(axes[0], queries[int(found.query_number[row])], _title(found, row), INK)
        for place, tile in enumerate(axes[1:]):
            _neighbour(tile, found, row, place, pictures)
    way = "Euclidean distance" if found.metric == "euclidean" else "1 − cosine"
    said = f"query, then the nearest by {found.layer} ({way})"
    if found.classed:
        said += "; green frame: of the query's class"
    figure.suptitle(said, x=0.01, ha="left", fontsize=9, color=SOFT)
    return figure


def duplicate_figure(found: Duplicates, rows: Sequence[int], ours: Shown, theirs: Shown) -> Figure:
    """Pairs side by side, three pairs a row, each with what it is flagged for."""
    across = min(PAIRS, max(1, len(rows)))
    down = -(-max(1, len(rows)) // across)
    figure = Figure(figsize=(across * (2 * TILE + 0.35), down * (TILE + 0.62)))
    cells = figure.subfigures(down, across, squeeze=False).ravel()
    for row, cell in zip(rows, cells, strict=False):
        left, right = cell.subplots(1, 2, gridspec_kw=MARGINS)
        _tile(left, ours[int(found.first_number[row])], _short(found.first[row]), INK)
        _tile(right, theirs[int(found.second_number[row])], _short(found.second[row]), INK)
        told = (
            f"{found.kind[row]}: correlation {found.correlation[row]:.3f}, "
            f"cosine {found.cosine[row]:.3f}"
        )
        cell.text(MARGINS["left"], 0.99, told, va="top", fontsize=6.5, color=SOFT)
    return figure


def _title(found: Neighbours, row: int) -> str:
    return _short(found.query_class[row] or found.queries[row])


def _short(name: str) -> str:
    """The file's own name without its ending, as wide as a tile."""
    text = printable(name.rpartition("/")[2].rpartition(".")[0] or name)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _neighbour(axes: Axes, found: Neighbours, row: int, place: int, pictures: Shown) -> None:
    index = int(found.nearest[row, place])
    if index < 0:
        axes.set_axis_off()
        return
    title = _short(found.name_class[index] or found.names[index])
    _tile(axes, pictures[int(found.number[index])], title, SOFT)
    axes.set_xlabel(f"{found.distance[row, place]:.3g}", fontsize=6, color=SOFT, labelpad=1)
    if found.classed:
        same = found.name_class[index] == found.query_class[row] != ""
        colour = SAME if same else OTHER
        frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, color=colour, lw=3)
        axes.add_patch(frame)


def _tile(axes: Axes, pixels: UInt8[np.ndarray, "h w 3"], title: str, colour: str) -> None:
    axes.imshow(pixels)
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set_visible(False)
    axes.set_title(title, fontsize=6.5, color=colour, pad=2, parse_math=False)
