"""Does a network relate the same parts of different pictures to each other?

The same part is hidden in each of several pictures; the signs of the changes in a layer's features
are compared between pictures. If hiding a nose does the same everywhere, the signs agree more than
when squares at random places are hidden.
Source: Zeiler and Fergus 2014 (arXiv 1311.2901v3), §4.4, figure 8 and table 1. Size and colour of
the masks, and how random ones are drawn, are not given there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int8, Int32, Int64, UInt8
from torch import Tensor

from convscope.attribution.occlusion import Fill, filled, named
from convscope.core.errors import DataError, ModelError, UsageError, shown
from convscope.core.run import PLAIN, Run
from convscope.core.units import Box
from convscope.lens.lens import Lens
from convscope.network.arguments import FolderLike, Layers, pictures_of, taking
from convscope.network.network import Network, whole
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import recorded
from convscope.pictures.annotations import Parts, read_parts
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Pictures
from convscope.studies.correspondence.record import Correspondence
from convscope.trace.layers import ends


@dataclass(frozen=True)
class Marked:
    """One picture as the network sees it, and where its masks are."""

    name: str
    pixels: UInt8[np.ndarray, "h w 3"]
    corners: Int32[np.ndarray, "masks 2"]


def marked_pictures(
    preprocess: Preprocess,
    folder: Pictures,
    parts: Parts | Path | str,
    side: int,
    *,
    draws: int,
    around: float,
    seed: int,
) -> tuple[list[Marked], tuple[str, ...]]:
    """The pictures that have parts, with their masks, and the names of the parts."""
    parts = read_parts(parts) if isinstance(parts, str | Path) else parts
    if len(parts) < 2:
        raise DataError("D174", folder.place, f"{len(parts)} pictures have parts; 2 are needed")
    names = tuple(dict.fromkeys(name for marked in parts.values() for name in marked))
    chance = np.random.default_rng(seed)
    result = []
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
        result.append(Marked(decoded.name, framed.pixels, corners.astype(np.int32)))
    return result, names


def _numbers(folder: Pictures, parts: Parts) -> dict[str, int]:
    """Each marked picture's number in the folder, by its name there or its file name alone."""
    numbers = {name.rpartition("/")[2]: number for number, name in enumerate(folder.names)}
    numbers |= {name: number for number, name in enumerate(folder.names)}
    for name in parts:
        if name not in numbers:
            step = "name the folder that the parts were marked in"
            raise DataError(
                "D174", name, f"has parts, but is not in {folder.place}", next_step=step
            )
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


TOLERANCE = 1e-5
"""Of the picture's largest feature: a change no larger is rounding, and counts as none."""
STATES = (-1, 0, 1)


def sign_changes(
    whole: Float[Tensor, "features"],
    masked: Float[Tensor, "masks features"],
    tolerance: float = TOLERANCE,
) -> Int8[Tensor, "masks features"]:
    """Sign of original minus masked: 1 where hiding lowered the feature, −1 where it raised it."""
    change = whole - masked
    least = tolerance * float(whole.abs().max())
    return (change.sign() * (change.abs() > least)).to(torch.int8)


def distances(signs: Int8[Tensor, "n features"]) -> Float64[np.ndarray, "n n"]:
    """Share of features in which two sign vectors differ, for each two of them."""
    same = torch.zeros(len(signs), len(signs), dtype=torch.float64)
    for part in torch.split(signs, 1 << 16, dim=1):  # sums of so few ones are exact in float32
        for state in STATES:
            is_so = (part == state).float()
            same += (is_so @ is_so.T).double()
    result: Float64[np.ndarray, "n n"] = (1 - same / signs.shape[1]).numpy()
    return result


def relative(
    signs: Int8[Tensor, "n features"], table: Float64[np.ndarray, "n n"]
) -> Float64[np.ndarray, "n n"]:
    """The distances over what they would be, on average, if each vector's signs were dealt out
    to the features anew: below 1 the vectors agree on *which* features change. 1 where nothing
    can differ."""
    shares = torch.stack([(signs == state).double().mean(1) for state in STATES], 1)
    expected = (1 - shares @ shares.T).numpy()
    none = np.ones_like(table)
    result: Float64[np.ndarray, "n n"]
    result = np.divide(table, expected, out=none, where=expected > 1e-12)
    return result


def over_pairs(
    table: Float64[np.ndarray, "pictures masks pictures masks"],
    choice: Int64[np.ndarray, "pictures"],
) -> Float64[np.ndarray, "pairs"]:
    """One mask of each picture chosen: the entries of each two pictures."""
    pairs = combinations(range(len(choice)), 2)
    return np.array([table[i, choice[i], j, choice[j]] for i, j in pairs], np.float64)


def permutation_test(
    table: Float64[np.ndarray, "pictures masks pictures masks"],
    parts: int,
    *,
    permutations: int,
    seed: int,
) -> Float64[np.ndarray, "parts_and_all"]:
    """How often is chance as consistent as the parts? One p-value a part, and one of all.

    The first `parts` masks of each picture are the parts. If it did not matter which of its masks
    a picture is given under a part's name, dealing the names out anew within each picture would
    change nothing; so they are dealt out anew `permutations` times. p is the share of deals, the
    real one included, whose mean distance over pairs is as low as the real one's.
    """
    pictures, masks = table.shape[:2]
    chance = np.random.default_rng(seed)
    real = _means(table, np.broadcast_to(np.arange(parts), (1, pictures, parts)))
    dealt = chance.random((permutations, pictures, masks)).argsort(2)[:, :, :parts]
    drawn = np.concatenate(
        [_means(table, some) for some in np.array_split(dealt, 1 + permutations // 500)]
    )
    real, drawn = (np.column_stack([means, means.mean(1)]) for means in (real, drawn))
    as_low = (drawn <= real + 1e-12).sum(0)
    result: Float64[np.ndarray, "parts_and_all"] = (1 + as_low) / (1 + permutations)
    return result


def _means(
    table: Float64[np.ndarray, "pictures masks pictures masks"],
    deals: Int64[np.ndarray, "deals pictures parts"],
) -> Float64[np.ndarray, "deals parts"]:
    """Mean over pairs of pictures, for each deal and part."""
    sums = np.zeros((deals.shape[0], deals.shape[2]))
    pairs = list(combinations(range(deals.shape[1]), 2))
    for i, j in pairs:
        sums += table[i, deals[:, i], j, deals[:, j]]
    return sums / len(pairs)


PATCH = 7
"""The network's input is this many masks wide: 32 of 224 pixels, an eye with its surroundings."""
BATCH = 16


def parts_of(_: Any, given: Any) -> Any:
    """Centres of parts by picture and part, or their file. Raises UsageError U380."""
    tables = list(given.values()) if isinstance(given, Mapping) else []
    points = [point for one in tables if isinstance(one, Mapping) for point in one.values()]
    fine = isinstance(given, Mapping) and all(isinstance(one, Mapping) for one in tables)
    pairs = all(isinstance(p, Sequence | np.ndarray) and len(p) == 2 for p in points)
    if not isinstance(given, str | Path) and not (fine and pairs):
        what, step = f"{shown(given)} is no table of parts", 'give {"1.jpg": {"eye": (x, y)}}'
        raise UsageError("U380", "parts", what, next_step=f"{step}, or a file of it")
    return given


@taking(folder=pictures_of, parts=parts_of)
@recorded
def correspondence(
    network: Network,
    folder: FolderLike,
    parts: Parts | Path | str,
    *,
    layers: Layers = None,
    patch: int | None = None,
    fill: Fill = 0.0,
    draws: int = 20,
    around: float = 0.5,
    permutations: int = 10_000,
    run: Run = PLAIN,
) -> Correspondence:
    """How consistently the features change when the same part is hidden in each picture.

    parts: centres of parts by picture and part, or their file, see `read_parts`. layers: by
    default the last convolution's and what the classifier is given. patch: side of the square
    masks in pixels of the network's input; a seventh of its shorter side. fill: as of `occlusion`.
    draws: random masks a picture, centres even over the box of its parts, grown on each side by
    `around` times its longer side (`math.inf`: over the picture). All masks lie inside the picture.

    Raises DataError D173 (the file), D174 (pictures or parts are missing, or not seen), UsageError
    U376, U377, U410 (a number), U531 (fill), ModelError M500, M501, M514, M520, M522.
    """
    network = whole(network)
    side = min(network.preprocess.size) // PATCH if patch is None else patch
    _require(side, draws, around, permutations, network.preprocess)
    with opened(folder) as pictures:
        result, names = marked_pictures(
            network.preprocess, pictures, parts, side, draws=draws, around=around, seed=run.seed
        )
    wanted = _layers(network, layers)
    signs = _signs(network, result, wanted, (side, fill, run.seed), run)
    return Correspondence(
        layers=tuple(wanted),
        parts=names,
        **_of_masks(network.preprocess, result, side, fill),
        **_compared(signs, len(result), len(names), permutations, run.seed),
        origin=_origin(fill, draws, around, permutations, run.seed),
    )


def _origin(fill: Fill, draws: int, around: float, permutations: int, seed: int) -> dict[str, Any]:
    return {
        "method": "correspondence",
        "fill": named(fill),
        "random masks": f"{draws} a picture, centres in the parts' box grown by {around:g}",
        "tolerance": TOLERANCE,
        "permutations": permutations,
        "seed": seed,
    }


def _layers(network: Network, asked: Layers) -> list[str]:
    """Those asked for, or else one in the middle and the highest."""
    if asked is None:
        own = ends(network.model, network.preprocess.shape)
        return list(dict.fromkeys((own.middle, own.high)))
    return [asked] if isinstance(asked, str) else list(asked)


def _of_masks(
    preprocess: Preprocess, pictures: Sequence[Marked], side: int, fill: Fill
) -> dict[str, Any]:
    """The record's fields of the pictures, and of the masks that lie in them."""
    return {
        "pictures": tuple(one.name for one in pictures),
        "seen": np.stack([preprocess.seen(one.pixels) for one in pictures]),
        "corners": np.stack([one.corners for one in pictures]),
        "patch": side,
        "fill": _drawn(preprocess, fill),
    }


def _require(
    side: int, draws: int, around: float, permutations: int, preprocess: Preprocess
) -> None:
    wrong = {
        f"patch={side}": not 1 <= side <= min(preprocess.size),
        f"draws={draws}": draws < 1,
        f"around={around:g}": not around >= 0,
        f"permutations={permutations}": permutations < 1,
    }
    for told, is_wrong in wrong.items():
        if is_wrong:
            most = f"a side from 1 to {min(preprocess.size)} pixels, draws and permutations from 1"
            raise UsageError("U410", told, "is impossible", next_step=f"take {most}, around from 0")


@torch.inference_mode()
def _signs(
    network: Network,
    pictures: Sequence[Marked],
    layers: Sequence[str],
    mask: tuple[int, Fill, int],
    run: Run,
) -> list[Int8[Tensor, "vectors features"]]:
    """For each layer the signs of all pictures' masks, pictures first."""
    result: list[list[Tensor]] = [[] for _ in layers]
    for done, picture in enumerate(pictures, 1):
        images = _masked(network, picture, *mask)
        for signs, features in zip(result, _features(network, images, layers), strict=True):
            if not bool(features.isfinite().all()):
                raise ModelError("M514", picture.name, "a layer's features of it are not finite")
            signs.append(sign_changes(features[0], features[1:]))
        run.tick(done, len(pictures))
    return [torch.cat(signs) for signs in result]


def _masked(
    network: Network, picture: Marked, side: int, fill: Fill, seed: int
) -> Float[Tensor, "masks_and_1 c h w"]:
    """The picture whole, and with each of its masks."""
    image = network.preprocess.tensor(picture.pixels)
    hidden = filled(fill, image, (side, side), seed)
    images = image.repeat(1 + len(picture.corners), 1, 1, 1)
    for copy, (top, left) in zip(images[1:], picture.corners.tolist(), strict=True):
        window = (slice(None), slice(top, top + side), slice(left, left + side))
        copy[window] = hidden[window] if hidden.shape == image.shape else hidden
    return images


def _features(
    network: Network, images: Float[Tensor, "n c h w"], layers: Sequence[str]
) -> list[Float[Tensor, "n features"]]:
    like = next(network.model.parameters(), torch.empty(0))
    parts: list[list[Tensor]] = [[] for _ in layers]
    with Lens(network.model, layers) as lens:
        for batch in torch.split(images, BATCH):
            lens.reach(batch.to(like))
            for kept, layer in zip(parts, layers, strict=True):
                kept.append(lens[layer].flatten(1).cpu())
    return [torch.cat(kept) for kept in parts]


def _compared(
    signs: Sequence[Int8[Tensor, "vectors features"]],
    pictures: int,
    parts: int,
    permutations: int,
    seed: int,
) -> dict[str, Any]:
    """What the record holds of each layer."""
    columns: dict[str, list[np.ndarray]] = {}
    for vectors in signs:
        raw = distances(vectors)
        shape = (pictures, len(vectors) // pictures) * 2
        raw, freed = (table.reshape(shape) for table in (raw, relative(vectors, raw)))
        masks = [np.full(pictures, mask) for mask in range(shape[1])]
        pairs = np.stack([over_pairs(raw, mask) for mask in masks])
        shares = np.stack([over_pairs(freed, mask) for mask in masks]).mean(1)
        changed = (vectors != 0).double().mean(1).reshape(shape[:2]).mean(0).numpy()
        rows = {
            "pairs": pairs[:parts],
            "random_pairs": pairs[parts:],
            "changed": np.append(changed[:parts], changed[parts:].mean()),
            "relative": np.append(shares[:parts], shares[parts:].mean()),
            "p": permutation_test(raw, parts, permutations=permutations, seed=seed),
            "p_relative": permutation_test(freed, parts, permutations=permutations, seed=seed),
        }
        for name, row in rows.items():
            columns.setdefault(name, []).append(row)
    return {name: np.stack(rows) for name, rows in columns.items()}


def _drawn(preprocess: Preprocess, fill: Fill) -> tuple[int, ...]:
    """The colour of a mask for a figure; what is no one colour is drawn as the mean."""
    plain = torch.zeros(preprocess.shape)
    one = isinstance(fill, int | float | tuple)
    square = filled(fill if one else 0.0, plain, preprocess.size, 0)
    return tuple(int(v) for v in preprocess.pixels(square).mean((0, 1)).round())
