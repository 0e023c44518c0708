"""Where are the squares that hide the same part, or a random one, in each of several pictures?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from convscope.errors import DataError
from convscope.network.preprocess import Preprocess
from convscope.pictures.annotations import Parts
from convscope.pictures.pictures import Folder
from convscope.units import Box


@dataclass(frozen=True)
class Marked:
    """One picture as the network sees it, and where its masks are."""

    name: str
    pixels: UInt8[np.ndarray, "h w 3"]
    corners: Int32[np.ndarray, "masks 2"]


def marked_pictures(
    preprocess: Preprocess,
    folder: Folder,
    parts: Parts,
    side: int,
    draws: int,
    around: float,
    seed: int,
) -> tuple[list[Marked], tuple[str, ...]]:
    """The pictures that have parts, with their masks, and the names of the parts."""
    if len(parts) < 2:
        raise DataError("D174", str(folder.root), f"{len(parts)} pictures have parts; 2 are needed")
    names = tuple(dict.fromkeys(name for marked in parts.values() for name in marked))
    chance = np.random.default_rng(seed)
    found = []
    for name, number in _numbers(folder, parts).items():
        decoded = folder.one(number)
        height, width = decoded.pixels.shape[:2]
        places = _places(preprocess, (height, width), name, parts[name], names)
        framed = folder.one(number, preprocess.framing)
        low, high = places.min(0), places.max(0)
        grown = around * max(1.0, float((high - low).max()))
        centres = chance.uniform(0, 1, (draws, 2))
        limits = np.array(preprocess.size) - 1.0
        low, high = (np.clip(edge, 0, limits) for edge in (low - grown, high + grown))
        corners = np.rint(np.concatenate([places, low + centres * (high - low)]) - side / 2)
        corners = corners.clip(0, np.array(preprocess.size) - side)
        found.append(Marked(decoded.name, framed.pixels, corners.astype(np.int32)))
    return found, names


def _numbers(folder: Folder, parts: Parts) -> dict[str, int]:
    """Each marked picture's number in the folder, by its name there or its file name alone."""
    numbers = {name.rpartition("/")[2]: number for number, name in enumerate(folder.names)}
    numbers |= {name: number for number, name in enumerate(folder.names)}
    for name in parts:
        if name not in numbers:
            step = "name the folder that the parts were marked in"
            raise DataError("D174", name, f"has parts, but is not in {folder.root}", next_step=step)
    return {name: numbers[name] for name in parts}


def _places(
    preprocess: Preprocess,
    size: tuple[int, int],
    picture: str,
    marked: Mapping[str, tuple[float, float]],
    names: Sequence[str],
) -> Float64[np.ndarray, "parts 2"]:
    """Row and column of the parts' centres in what the network sees."""
    places = []
    for name in names:
        if name not in marked:
            raise DataError(
                "D174", picture, f"has no {name}", next_step="mark it, or leave the picture out"
            )
        x, y = (round(number) for number in marked[name])
        box = preprocess.framing.box(Box(y, x, y + 1, x + 1), size)
        place = ((box.top + box.bottom) / 2, (box.left + box.right) / 2)
        rows, columns = preprocess.size
        if not (0 <= place[0] <= rows and 0 <= place[1] <= columns):
            raise DataError(
                "D174",
                picture,
                f"its {name} at ({x}, {y}) lies outside of what the network sees",
                next_step="leave the picture out, or crop it around its parts",
            )
        places.append(place)
    return np.array(places, np.float64)
