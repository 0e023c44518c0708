"""What do some maps of some layers see? A page for print, laid out as figure 2 of the paper.

For each layer a block of projections at the left and, in the same order, a block of the parts of
the pictures at the right; of each map its nine strongest. Below any rectifier a projection is the
filter itself, whatever the picture, and is drawn once, as the paper draws its first layer.
Source: Zeiler and Fergus 2014, figure 2. There one scale seems to serve a whole layer (its zero is
one grey): `scale="layer"`. Weak maps are then faint, so that by default each map has its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convscope.core.text import Part, Table
from convscope.drawing.tiles import INK, SOFT, block, enlarged, grid, shortened
from convscope.records.features import LayerFeatures, Shown, grid_words
from convscope.studies import base
from convscope.studies.features import Options

Scale = Literal["map", "layer"]
RULES = {"deconvnet": "deconvnet", "guided": "guided backpropagation"}
GUIDED, ALIKE = "°", "*"
"""Mark layers of that rule where there are both, and maps whose projections look alike."""
PAGE = (7.2, 9.6)
"""Inches at most, across and down."""
COLUMNS = {9: 3, 16: 4, 12: 4, 10: 2}
"""Of maps, by their number, as in the paper."""
LABEL, TITLE, GAP = 0.13, 0.26, 0.35
"""Inches above a row of maps and above a layer; tiles between blocks."""
MARGIN, FOOT = 0.12, 0.62
NARROWEST = 4.4
"""Inches that the words below the pictures take."""
MOST, SMALL = 0.28, 0.11
"""Inches that a tile is wide: of few maps, and where many layers have to share a page."""
LEAST = 48
"""Smaller tiles are enlarged, in whole pixels, so that no program smooths them."""


def features_figure(
    records: Sequence[LayerFeatures], *, scale: Scale = "map", beside: bool = False
) -> Figure:
    """scale: of the projections, joint for each map's nine, or for all maps of the layer. beside:
    draw the projections of the other rule, of layers that have two."""
    shown = [record.shown[-1 if beside else 0] for record in records]
    mark = GUIDED if len({each.rule for each in shown}) > 1 else ""
    panels = [
        _Panel(record, scale, each, mark if each.rule == "guided" else "")
        for record, each in zip(records, shown, strict=True)
    ]
    shelves = _best(panels)
    filled = max(_wide(shelf) * tile for tile, shelf in shelves) + 2 * MARGIN
    width = max(NARROWEST, filled)
    aside = MARGIN + (width - filled) / 2
    height = sum(_tall(shelf, tile) for tile, shelf in shelves) + MARGIN + FOOT
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    top = 0.0
    for tile, shelf in shelves:
        left = 0.0
        for panel in shelf:
            panel.draw(axes, left, top, tile)
            left += (panel.wide + 2 * GAP) * tile
        top += _tall(shelf, tile)
    # Inches from the first layer's corner; pictures have moved the limits.
    axes.set_xlim(-aside, width - aside)
    axes.set_ylim(height - MARGIN, -MARGIN)
    figure.text(0.5, 0.1 / height, _footnote(panels, scale), fontsize=7, color=SOFT, ha="center")
    return figure


def features_table(records: Sequence[LayerFeatures]) -> list[Part]:
    """Of each map and rule how alike the projections are; and the grids in them."""
    rows, grids = list[list[str]](), list[Part]()
    for record in records:
        for shown in record.shown:
            flags = record.alike(shown.similarity)
            for row, channel in enumerate(record.maps):
                numbers = (shown.similarity[row], record.patch_similarity[row])
                cells = ["" if math.isnan(number) else f"{number:.2f}" for number in numbers]
                note = "nearly the same for any picture" if flags[row] else ""
                rows.append([record.layer, str(channel), shown.rule, *cells, note])
            grids += [f"{record.layer}, {shown.rule}: {grid_words(each)}" for each in shown.grids]
    head = ["layer", "map", "rule", "correlation of projections", "of patches", "note"]
    return [Table.of(head, rows, "How alike projections are"), *([""] if grids else []), *grids]


def _footnote(panels: Sequence[_Panel], scale: Scale) -> str:
    records = [panel.record for panel in panels]
    k = max((record.value.shape[1] for record in records), default=0)
    joint = (
        "each map has one scale"
        if scale == "map"
        else "a layer has one scale, that of its median map"
    )
    return (
        f"of each map the {k} strongest of {max((r.seen for r in records), default=0):,} pictures: "
        f"left projected, right as seen\nprojections: {_ruled(panels)}; zero is grey, {joint}"
        + (f"\n{ALIKE} nearly the same for any picture" if any(p.alike for p in panels) else "")
    )


def _ruled(panels: Sequence[_Panel]) -> str:
    rules = {panel.shown.rule for panel in panels}
    if len(rules) < 2:
        return "".join(RULES.get(rule, rule) for rule in rules)
    return f"deconvnet, in layers marked {GUIDED} {RULES['guided']}"


@dataclass(frozen=True)
class _Panel:
    """One layer."""

    record: LayerFeatures
    scale: Scale
    shown: Shown
    mark: str
    """Of the layer's rule."""

    @property
    def alike(self) -> set[int]:
        """Numbers of the maps whose projections would look nearly the same for any picture."""
        flags = self.record.alike(self.shown.similarity)
        return {channel for channel, flag in zip(self.record.maps, flags, strict=True) if flag}

    @property
    def columns(self) -> int:
        maps = len(self.record.value)
        return COLUMNS.get(maps, math.ceil(math.sqrt(maps)))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a map's tiles."""
        return grid(self.record.value.shape[1])

    @property
    def wide(self) -> float:
        """In tiles."""
        return 2 * self.columns * (self.shape[1] + GAP) + GAP

    @property
    def tiles(self) -> int:
        return 2 * self.record.image.size

    def tall(self, tile: float) -> float:
        """In inches."""
        rows = math.ceil(len(self.record.value) / self.columns)
        return TITLE + rows * (self.shape[0] * tile + LABEL)

    def draw(self, axes: Axes, left: float, top: float, tile: float) -> None:
        record = self.record
        name = shortened(record.layer) + self.mark
        axes.text(left, top + TITLE - 0.07, name, fontsize=9, color=INK, parse_math=False)
        shown, alike = _scaled(self.shown, self.scale), self.alike
        across = (self.shape[1] + GAP) * tile
        half = (self.columns * (self.shape[1] + GAP) + GAP) * tile
        for number, channel in enumerate(record.maps):
            row, column = divmod(number, self.columns)
            x = left + column * across
            y = top + TITLE + row * (self.shape[0] * tile + LABEL)
            label = f"{channel}{ALIKE if channel in alike else ''}"
            axes.text(x, y + LABEL - 0.03, label, fontsize=7, color=SOFT)
            self._place(axes, self._projections(shown[number]), x, y + LABEL, tile)
            self._place(axes, _block(record.patches[number]), x + half, y + LABEL, tile)

    def _projections(self, tiles: UInt8[np.ndarray, "k s s 3"]) -> UInt8[np.ndarray, "h w 3"]:
        if self.record.rectifiers:
            return _block(tiles)
        once: UInt8[np.ndarray, "h w 3"]
        once = enlarged(tiles[:1], _whole(tiles.shape[1], 3 * LEAST))[0]
        return once

    def _place(
        self, axes: Axes, pixels: UInt8[np.ndarray, "h w 3"], x: float, y: float, tile: float
    ) -> None:
        rows, columns = self.shape
        extent = (x, x + columns * tile, y + rows * tile, y)
        axes.imshow(pixels, extent=extent, interpolation="none", aspect="auto")


def _best(panels: Sequence[_Panel]) -> list[tuple[float, list[_Panel]]]:
    """The layers in rows, each with the width of a tile in inches: as wide as the page, and less
    where that is too tall; so that tiles are, in their geometric mean, as wide as can be."""
    runs = [panels[a:b] for a in range(len(panels)) for b in range(a + 1, len(panels) + 1)]
    widest = max(panel.wide for panel in panels)
    result = []
    for wide in sorted({_wide(run) for run in runs if _wide(run) >= widest}):
        shelves = _shelves(panels, wide)
        tiles = [min(MOST, (PAGE[0] - 2 * MARGIN) / _wide(shelf)) for shelf in shelves]
        spare = sum(_tall(shelf, 0.0) for shelf in shelves) + MARGIN + FOOT
        pairs = list(zip(tiles, shelves, strict=True))
        needed = sum(_tall(shelf, tile) - _tall(shelf, 0.0) for tile, shelf in pairs)
        # Very many layers do not fit onto one page: then it is a long one.
        less = min(1.0, max((PAGE[1] - spare) / needed, SMALL / min(tiles)))
        seen = sum(math.log(less * tile) * panel.tiles for tile, shelf in pairs for panel in shelf)
        result.append((seen, [(less * tile, shelf) for tile, shelf in pairs]))
    return max(result, key=lambda entry: entry[0])[1]


def _shelves(panels: Sequence[_Panel], wide: float) -> list[list[_Panel]]:
    """In their order, in rows at most so wide, and together as low as possible."""
    best: list[tuple[float, list[list[_Panel]]]] = [(0.0, [])]
    for end in range(1, len(panels) + 1):
        ways = []
        for start in range(end):
            shelf = list(panels[start:end])
            if _wide(shelf) <= wide + 1e-9:
                height, before = best[start]
                ways.append((height + _tall(shelf, 1.0), [*before, shelf]))
        best.append(min(ways, key=lambda way: way[0]))
    return best[-1][1]


def _wide(shelf: Sequence[_Panel]) -> float:
    """In tiles."""
    return sum(panel.wide for panel in shelf) + 2 * GAP * (len(shelf) - 1)


def _tall(shelf: Sequence[_Panel], tile: float) -> float:
    """In inches."""
    return max(panel.tall(tile) for panel in shelf)


def _block(tiles: UInt8[np.ndarray, "k s s 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Tiles with a white line between."""
    side = _whole(tiles.shape[1], LEAST)
    return block(enlarged(tiles, side), gap=max(1, side // 32))


def _whole(side: int, least: int) -> int:
    """A whole multiple of a side, at least so long."""
    return side * max(1, math.ceil(least / side))


def _scaled(record: Shown, scale: Scale) -> UInt8[np.ndarray, "maps k s s 3"]:
    """The projections; if one scale is wanted for the layer, that of its map in the middle."""
    if scale == "map" or not record.high.max() > 0:
        return record.projections
    share = record.high / np.median(record.high[record.high > 0])
    wide = 127.5 + (record.projections - 127.5) * share[:, None, None, None, None]
    joint: UInt8[np.ndarray, "maps k s s 3"] = np.rint(wide).clip(0, 255).astype(np.uint8)
    return joint


def show(result: Mapping[str, LayerFeatures], options: Options) -> base.Shown:
    records, scale = list(result.values()), cast("Scale", options.scale)
    figures = {"figure": features_figure(records, scale=scale)}
    if any(record.beside for record in records):
        figures["figure-other-rule"] = features_figure(records, scale=scale, beside=True)
    return base.Shown(figures, {"table": features_table(records)}, printed=False)
