"""What does the network say with the marked things hidden, or as much beside them?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from convscope.methods.fills import Fill, filled
from convscope.methods.pointing import inside
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.records.maps import Occlusion
from convscope.records.occlusion import ROOMS, lowest
from convscope.studies.explain import probabilities
from convscope.units import Box


def covered(
    image: Float[Tensor, "c h w"], areas: Sequence[Box], fill: Fill, seed: int
) -> Float[Tensor, "c h w"]:
    """The picture with these areas hidden, each by a fill of its own size."""
    hidden = image.clone()
    for area in areas:
        box = area.clipped(*image.shape[-2:])
        if box.height <= 0 or box.width <= 0:
            continue
        window = (slice(None), slice(box.top, box.bottom), slice(box.left, box.right))
        show = filled(fill, image, (box.height, box.width), seed)
        hidden[window] = show[window] if show.shape == image.shape else show
    return hidden


def rooms(boxes: Sequence[Box], size: tuple[int, int]) -> list[Box | None]:
    """Rectangles as large as all boxes together: above, below, left and right of them, in the
    middle of the room there, in the boxes' own height or width as far as it allows; None without
    room. Their area is the least number of pixels not below the boxes' (of whole rows)."""
    height, width = size
    area = int(inside(size, boxes).sum())
    seen = [box.clipped(height, width) for box in boxes]
    top, left = min(box.top for box in seen), min(box.left for box in seen)
    bottom, right = max(box.bottom for box in seen), max(box.right for box in seen)
    strips = (
        Box(0, 0, top, width),
        Box(bottom, 0, height, width),
        Box(0, 0, height, left),
        Box(0, right, height, width),
    )
    return [_fitted(strip, area, bottom - top) for strip in strips]


def _fitted(strip: Box, area: int, high: int) -> Box | None:
    if area < 1 or strip.height * strip.width < area:
        return None
    rows = min(strip.height, high)
    columns = -(-area // rows)
    if columns > strip.width:
        columns = strip.width
        rows = -(-area // columns)
    if rows > strip.height:
        return None
    top = strip.top + (strip.height - rows) // 2
    left = strip.left + (strip.width - columns) // 2
    return Box(top, left, top + rows, left + columns)


def without(
    network: Network,
    image: Float[Tensor, "c h w"],
    target: int,
    boxes: Sequence[Box],
    fill: Fill,
    seed: int,
) -> dict[str, Any]:
    """The record's fields of one picture with its boxes hidden, and as much beside them."""
    probability = np.full(1 + ROOMS, np.nan, np.float32)
    likeliest = np.full(1 + ROOMS, -1, np.int32)
    size = (int(image.shape[1]), int(image.shape[2]))
    areas = [boxes, *([room] if room else [] for room in rooms(boxes, size))] if boxes else []
    for place, area in enumerate(areas):
        if area:
            share = probabilities(network, covered(image, area, fill, seed))
            probability[place], likeliest[place] = share[target], share.argmax()
    return {
        "boxes": (tuple((b.top, b.left, b.bottom, b.right) for b in boxes),),
        "box_probability": probability[:1],
        "box_likeliest": likeliest[:1],
        "other_probability": probability[None, 1:],
        "other_likeliest": likeliest[None, 1:],
    }


def drawn_square(
    preprocess: Preprocess, image: Float[Tensor, "c h w"], found: Occlusion, fill: Fill, seed: int
) -> UInt8[np.ndarray, "height width 3"]:
    """What the square shows where the probability is lowest."""
    row, column = lowest(found.probability)
    top, left = int(found.tops[row]), int(found.lefts[column])
    box = Box(top, left, top + found.sides[0], left + found.sides[1])
    pixels = preprocess.pixels(covered(image, [box], fill, seed))
    return pixels[box.top : box.bottom, box.left : box.right]
