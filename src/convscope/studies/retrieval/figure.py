"""Which pictures lie next to a query, and which pairs are the same picture twice?

Layout as in Krizhevsky et al. 2012, figure 4: a query, then its nearest from left to right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convscope.core.errors import printable
from convscope.drawing.tiles import INK, SOFT, bare
from convscope.studies.base import Illustrated, Shown
from convscope.studies.retrieval import Options
from convscope.studies.retrieval.record import Duplicates, Neighbours

Pixels = Mapping[int, UInt8[np.ndarray, "h w 3"]]
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
    result: Neighbours, rows: Sequence[int], queries: Pixels, pictures: Pixels
) -> Figure:
    """rows: of the queries to draw. A frame's colour says whether the class is the query's."""
    columns = result.nearest.shape[1] + 1
    size = (columns * TILE + 0.35, len(rows) * (TILE + 0.34) + 0.45)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, axes in zip(rows, grid, strict=True):
        _tile(axes[0], queries[int(result.query_number[row])], _title(result, row), INK)
        for place, tile in enumerate(axes[1:]):
            _neighbour(tile, result, row, place, pictures)
    way = "Euclidean distance" if result.metric == "euclidean" else "1 − cosine"
    said = f"query, then the nearest by {result.layer} ({way})"
    if result.classed:
        said += "; green frame: of the query's class"
    figure.suptitle(said, x=0.01, ha="left", fontsize=9, color=SOFT)
    return figure


def duplicate_figure(
    result: Duplicates, rows: Sequence[int], ours: Pixels, theirs: Pixels
) -> Figure:
    """Pairs side by side, three pairs a row, each with what it is flagged for."""
    across = min(PAIRS, max(1, len(rows)))
    down = -(-max(1, len(rows)) // across)
    figure = Figure(figsize=(across * (2 * TILE + 0.35), down * (TILE + 0.62)))
    cells = figure.subfigures(down, across, squeeze=False).ravel()
    for row, cell in zip(rows, cells, strict=False):
        left, right = cell.subplots(1, 2, gridspec_kw=MARGINS)
        _tile(left, ours[int(result.first_number[row])], _short(result.first[row]), INK)
        _tile(right, theirs[int(result.second_number[row])], _short(result.second[row]), INK)
        told = (
            f"{result.kind[row]}: correlation {result.correlation[row]:.3f}, "
            f"cosine {result.cosine[row]:.3f}"
        )
        cell.text(MARGINS["left"], 0.99, told, va="top", fontsize=6.5, color=SOFT)
    return figure


def _title(result: Neighbours, row: int) -> str:
    return _short(result.query_class[row] or result.queries[row])


def _short(name: str) -> str:
    """The file's own name without its ending, as wide as a tile."""
    text = printable(name.rpartition("/")[2].rpartition(".")[0] or name)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _neighbour(axes: Axes, result: Neighbours, row: int, place: int, pictures: Pixels) -> None:
    index = int(result.nearest[row, place])
    if index < 0:
        axes.set_axis_off()
        return
    title = _short(result.name_class[index] or result.names[index])
    _tile(axes, pictures[int(result.number[index])], title, SOFT)
    axes.set_xlabel(f"{result.distance[row, place]:.3g}", fontsize=6, color=SOFT, labelpad=1)
    if result.classed:
        same = result.name_class[index] == result.query_class[row] != ""
        colour = SAME if same else OTHER
        frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, color=colour, lw=3)
        axes.add_patch(frame)


def _tile(axes: Axes, pixels: UInt8[np.ndarray, "h w 3"], title: str, colour: str) -> None:
    axes.imshow(pixels)
    axes.set_axis_on()
    bare(axes)
    axes.set_title(title, fontsize=6.5, color=colour, pad=2, parse_math=False)


def show(result: Illustrated, _: Options) -> Shown:
    record = result.record
    if isinstance(record, Duplicates):
        rows = record.rows()
        figure = {"figure": duplicate_figure(record, rows, *result.pictures)} if rows else {}
        return Shown(figure, words=[*_pairs(record), record.summary()])
    assert isinstance(record, Neighbours)
    return Shown(
        {"figure": neighbour_figure(record, record.rows(), *result.pictures)},
        words=list(_nearest(record)),
    )


def _pairs(record: Duplicates) -> list[str]:
    rows = record.rows()
    words = [
        f"{record.kind[row]:<8}  {record.correlation[row]:.3f}  {record.cosine[row]:.3f}  "
        f"{printable(record.first[row])}  {printable(record.second[row])}"
        for row in rows
    ]
    if len(record.first) > len(rows):
        words.append(f"… and {len(record.first) - len(rows):,} more pairs in the record")
    return words


def _nearest(record: Neighbours) -> Iterator[str]:
    for row in record.rows():
        yield printable(record.queries[row])
        for index, distance in zip(record.nearest[row], record.distance[row], strict=True):
            if index >= 0:
                yield f"  {distance:9.4g}  {printable(record.names[index])}"
    if record.classed:
        shares = " ".join(f"{share:.1%}" for share in record.same_class)
        yield f"of the query's class, by place: {shares}; at random: {record.chance:.1%}"
