"""Colours, heat maps and fonts that all figures share, for colour-blind readers and printers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ImageFont

from convscope.core.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAINING, VALIDATION = "#0b5cbf", "#b25400"
INK, SOFT = "#1b1d20", "#5b6067"
LONGEST = 26
"""Characters of a name in a plot."""


def shortened(name: str) -> str:
    """A name as plots show it: printable, and not too long."""
    text = printable(name)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Matplotlib's own letters, so that all figures look alike; size: pixels."""
    home = find_spec("matplotlib")
    for place in (home.submodule_search_locations or ()) if home else ():
        file = Path(place) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


DISTINCT = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (110, 110, 110),
)
"""Colours for kinds, told apart by colour-blind readers; the last one stands for all the rest.

Source: Okabe and Ito 2008, Color Universal Design.
"""


def heat(
    values: Float[np.ndarray, "h w"], low: float, high: float, *, table: str = "viridis"
) -> UInt8[np.ndarray, "h w 3"]:
    """Values from `low` to `high` in a perceptually uniform colour map; NaN is mid-grey.

    table: any of matplotlib's, e.g. viridis, magma, or jet to redraw the paper's own figures.
    """
    from matplotlib import colormaps

    span = high - low if high > low else 1.0
    place = np.nan_to_num((np.asarray(values, dtype=np.float64) - low) / span, nan=0.0)
    colours = np.asarray(colormaps[table](np.clip(place, 0.0, 1.0)))[..., :3]
    colours[np.isnan(values)] = 0.5
    whole: UInt8[np.ndarray, "h w 3"] = np.rint(colours * 255).astype(np.uint8)
    return whole


def signed(values: Float[np.ndarray, "h w"], limit: float = 0.0) -> UInt8[np.ndarray, "h w 3"]:
    """Signed values from -limit (blue) over 0 (grey) to +limit (red).

    limit: 0 means the largest absolute value, so that zero stays grey.
    """
    top = limit or float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return heat(values, -top, top, table="coolwarm")


def stretch(values: Float[np.ndarray, "..."], low: float, high: float) -> UInt8[np.ndarray, "..."]:
    """Values from `low` (black) to `high` (white), clipped; one scale for all that share it."""
    span = high - low if high > low else 1.0
    scaled: UInt8[np.ndarray, "..."] = np.rint(
        np.clip((values - low) / span, 0.0, 1.0) * 255
    ).astype(np.uint8)
    return scaled


def dress(
    axes: Axes,
    title: str = "",
    across: str = "",
    up: str = "",
    *,
    grid: Literal["", "x", "y", "both"] = "",
    size: float = 8,
    without: Sequence[str] = ("top", "right"),
) -> None:
    """Titles and pale ticks of a plot, a grid behind the data, and no frame where it is of no use.

    size: of the ticks' letters, in points; the title's are one larger.
    """
    if title:
        axes.set_title(title, loc="left", fontsize=size + 1, color=INK, parse_math=False)
    if across:
        axes.set_xlabel(across, color=SOFT, fontsize=size)
    if up:
        axes.set_ylabel(up, color=SOFT, fontsize=size)
    axes.tick_params(colors=SOFT, labelsize=size)
    if grid:
        axes.grid(axis=grid, color="#e4e4e0", linewidth=0.8)
        axes.set_axisbelow(True)
    for edge in without:
        axes.spines[edge].set_visible(False)


def bare(axes: Axes) -> None:
    """A picture alone, without frame and ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set_visible(False)
