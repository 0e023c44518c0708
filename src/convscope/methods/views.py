"""Which parts of a picture does the network get to see when it is asked for the class?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from convscope.errors import UsageError
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing

Cuts = Callable[[UInt8[np.ndarray, "H W 3"]], list[UInt8[np.ndarray, "h w 3"]]]
SQUARE = 256 / 224
"""Side of the square to that of a view, where the preprocessing stretches and names none."""


def plan(preprocess: Preprocess, count: int) -> tuple[Framing, Cuts]:
    """How to frame a picture, and how to cut `count` views (1 or 10) out of what that gives.

    Ten views: four corners and the centre of the centre square, and their mirror images.
    Raises UsageError U310 for another count, or a square smaller than a view.
    Source: Krizhevsky et al. 2012, section 4.1; Zeiler and Fergus 2014, section 3.
    """
    if count == 1:
        return preprocess.framing, lambda pixels: [pixels]
    if count != 10:
        raise UsageError("U310", f"views={count}", "there are 1 (centre) or 10 views")
    height, width = preprocess.size
    resize = preprocess.framing.resize
    side = round(max(height, width) * SQUARE)
    if resize is not None:
        side = resize if isinstance(resize, int) else min(resize)
    if side < max(height, width):
        raise UsageError("U310", "views=10", f"the square of {side} pixels is smaller than a view")
    framing = Framing(resize, (side, side), preprocess.framing.interpolation)
    return framing, lambda pixels: _ten(pixels, height, width)


def _ten(
    square: UInt8[np.ndarray, "side side 3"], height: int, width: int
) -> list[UInt8[np.ndarray, "h w 3"]]:
    below, right = square.shape[0] - height, square.shape[1] - width
    # Rounded as a centre crop rounds, so that the fifth view is the single one.
    middle = (round(below / 2), round(right / 2))
    corners = [(0, 0), (0, right), (below, 0), (below, right), middle]
    cut = [square[top : top + height, left : left + width] for top, left in corners]
    return [*cut, *(one[:, ::-1] for one in cut)]
