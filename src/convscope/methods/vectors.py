"""How does what a layer puts out for a picture become one vector?"""

from __future__ import annotations

from math import prod

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.errors import UsageError

Way = str | int
"""`auto`, `flat`, or the side of a grid."""
ROOM = 4608
"""Numbers that `auto` allows: half of ZFNet's layer 5 (256 maps of 6 × 6), which in our trials
cost no accuracy; the vectors of 4,000 pictures are then 74 MB."""
THUMB = 32
"""Side in pixels of the small grey picture that stands for the layer `pixels`."""


def require_way(way: Way) -> None:
    """Raise UsageError U425 unless this is a way to make a vector."""
    if way in ("auto", "flat") or (isinstance(way, int) and way >= 1):
        return
    raise UsageError(
        "U425",
        f"vector={way}",
        "is no way to a vector",
        next_step="give auto, flat, or a grid's side",
    )


def vectors(output: Float[Tensor, "b *shape"], way: Way) -> Float[Tensor, "b d"]:
    """flat: all numbers in a row, as in the paper. A grid of side g: maps are averaged over at
    most g × g equal parts, tokens over all. auto: flat where there are at most ROOM numbers, else
    the largest grid that fits (at least 1)."""
    side = _side(tuple(output.shape[1:]), way)
    if side is None:
        return output.flatten(1).float()
    if output.dim() == 3:
        return output.float().mean(1)
    height, width = output.shape[2:]
    return F.adaptive_avg_pool2d(output.float(), (min(side, height), min(side, width))).flatten(1)


def told(shape: tuple[int, ...], way: Way) -> str:
    """The way taken for a layer of this shape, for the record's origin."""
    side = _side(shape, way)
    if side is None:
        return "flattened"
    if len(shape) == 2:
        return f"mean of {shape[0]} tokens"
    return f"mean over a grid of {min(side, shape[1])} × {min(side, shape[2])}"


def _side(shape: tuple[int, ...], way: Way) -> int | None:
    """Of the grid; None where nothing is averaged."""
    if way == "flat" or len(shape) not in (2, 3) or (way == "auto" and prod(shape) <= ROOM):
        return None
    if len(shape) == 2:
        return 1
    side = int(way) if way != "auto" else max(1, int((ROOM / shape[0]) ** 0.5))
    return None if side >= max(shape[1:]) else side


def small_grey(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """Small grey pictures without their mean: the cosine of two is their normalised correlation.

    Source: Zeiler and Fergus 2014, section 5.2, who looked for duplicates by it.
    """
    grey = F.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), THUMB).flatten(1)
    return grey - grey.mean(1, keepdim=True)
