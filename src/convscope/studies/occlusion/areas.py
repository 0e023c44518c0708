"""Areas of strongest maps under occlusion, and objects against background (hidden objects).

All squares have the same area, so their falls can be compared as they are. That things lie in the
middle, where networks look most, is told apart by dealing the boxes out among the pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from convscope.attribution.occlusion import Fill, filled
from convscope.core.errors import ModelError
from convscope.core.run import PLAIN, Run
from convscope.core.units import Box, Unit
from convscope.metrics.localisation import inside
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import recorded
from convscope.network.tuning import blank
from convscope.pictures.pictures import Pictures
from convscope.records.maps import Occlusion, lowest
from convscope.records.topk import TopK
from convscope.representations.deconvnet import GREY, cut, deconvnet, limit, quantised
from convscope.representations.projections import backward_paths
from convscope.representations.topk import topk
from convscope.studies.explain.study import probabilities
from convscope.studies.occlusion.record import ROOMS, HiddenObjects, Occlusions
from convscope.trace.backward_rule import Rule


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
    preprocess: Preprocess, image: Float[Tensor, "c h w"], result: Occlusion, fill: Fill, seed: int
) -> UInt8[np.ndarray, "height width 3"]:
    """What the square shows where the probability is lowest."""
    row, column = lowest(result.probability)
    top, left = int(result.tops[row]), int(result.lefts[column])
    box = Box(top, left, top + result.sides[0], left + result.sides[1])
    pixels = preprocess.pixels(covered(image, [box], fill, seed))
    return pixels[box.top : box.bottom, box.left : box.right]


OTHERS = 3
"""Pictures beside the one itself, as in the paper's montage of two by two."""
SIDE = 160
"""Of a projection as it is kept, at most."""


@dataclass(frozen=True)
class Projecting:
    """A network's layer, and the pictures that excite each of its maps most."""

    network: Network
    layer: str
    source: Pictures
    strongest: TopK | None
    """None where there are no other pictures."""
    rule: Rule = "deconvnet"
    """The one that fits the layer."""
    why_not: str = ""
    """Why this network has no projections."""

    @classmethod
    def of(
        cls,
        network: Network,
        layer: str,
        source: Pictures,
        pictures: int,
        run: Run,
    ) -> Projecting:
        """pictures: in the folder that is explained. Raises as `topk`."""
        black = blank(network.model, network.preprocess.shape)
        try:
            (rule,) = backward_paths(network.model, black, [layer])[layer].rules
            deconvnet(network.model, black, [Unit(layer, 0)], rule=rule)
        except ModelError as fault:
            if not fault.code.startswith("M53") and fault.code != "M540":
                raise
            return cls(network, layer, source, None, why_not=str(fault))
        alone = len(source) < 2 and pictures < 2
        strongest = None
        if not alone:
            strongest = topk(network, source, layers=[layer], k=OTHERS + 1, run=run)
        return cls(network, layer, source, strongest, rule)

    @property
    def digest(self) -> str:
        """Of those pictures."""
        if self.strongest is None:
            return self.why_not
        told = (self.strongest.image.tobytes(), self.strongest.content.tobytes())
        return hashlib.sha256(b"".join(told)).hexdigest()

    def of_map(
        self, image: Float[Tensor, "c h w"], channel: int, number: int, folder: Pictures
    ) -> dict[str, Any]:
        """The record's fields for one picture, whose number in `folder` this is."""
        height, width = self.network.preprocess.size
        side = min(SIDE, max(height, width))
        tiles = np.full((1 + OTHERS, side, side, 3), GREY, np.uint8)
        scale = np.full((1 + OTHERS, 2), np.nan, np.float32)
        if self.why_not:
            return {"projections": tiles[None], "scale": scale[None], "others": ((),)}
        shown, names = [image], []
        for other in self._others(channel, folder.digest(number)):
            picture = self.source.one(other, self.network.preprocess.framing)
            shown.append(self.network.preprocess.tensor(picture.pixels).to(image))
            names.append(picture.name)
        unit = Unit(self.layer, channel)
        for place, each in enumerate(shown):
            square = self._projected(each, unit, side)
            high = limit(square)
            tiles[place], scale[place] = quantised(square, -high, high), (-high, high)
        return {"projections": tiles[None], "scale": scale[None], "others": (tuple(names),)}

    def _others(self, channel: int, own: bytes) -> list[int]:
        """Pictures of other content in which the map has its strongest neurons."""
        if self.strongest is None:
            return []
        units = self.strongest.units(self.layer, channel)
        result = [number for _, number, value in units if value > 0]
        return [number for number in result if self.source.digest(number) != own][:OTHERS]

    def _projected(
        self, image: Float[Tensor, "c h w"], unit: Unit, side: int
    ) -> Float[np.ndarray, "side side 3"]:
        (result,) = deconvnet(
            self.network.model, image[None], [unit], rule=self.rule, whole_map=True
        )
        height, width = image.shape[-2:]
        pixels = torch.from_numpy(np.array(result.pixels))
        square = cut(pixels, Box(0, 0, height, width), side, 0.0)
        return square.expand(3, -1, -1).permute(1, 2, 0).numpy()


ON, OFF = 0.5, 0.1
"""A square lies on the object if it shares this much with it, or beside it if it shares less."""
LEAST = 1e-30
"""Of a probability before the logarithm."""


@recorded
def hidden_objects(
    record: Occlusions, *, permutations: int = 10_000, run: Run = PLAIN
) -> HiddenObjects:
    """Falls on the object and beside it, picture by picture, and whether that is chance.

    What a square shares with the boxes is taken over its own area, or over theirs where that is
    smaller: a square that swallows a small object lies on it.
    """
    marked = [number for number, boxes in enumerate(record.boxes) if boxes]
    kept = np.array(marked, np.int64)
    shares = np.stack([_shared(record, number) for number in marked])
    on, off = shares >= ON, shares <= OFF
    before, after = record.base_probability[kept], record.probability[kept].reshape(len(kept), -1)
    falls, points = _falls(before, after), before[:, None] - after
    table = _means(falls, on) - _means(falls, off)
    box = _falls(before, record.box_probability[kept, None])[:, 0]
    beside_mean = _known_mean(_falls(before, record.other_probability[kept]))
    return HiddenObjects(
        pictures=tuple(record.pictures[number] for number in marked),
        recognised=record.base_likeliest[kept] == record.target[kept],
        on=_own(falls, on),
        off=_own(falls, off),
        on_points=_own(points, on),
        off_points=_own(points, off),
        on_squares=on.sum(1),
        off_squares=off.sum(1),
        elsewhere=_off_diagonal(table),
        box=box,
        beside=beside_mean,
        box_turned=record.box_likeliest[kept] != record.base_likeliest[kept],
        beside_turned=_turned(record, kept),
        p_sign=sign_test(np.diag(table), permutations, run.seed),
        p_dealt=deal_test(table, permutations, run.seed),
        p_box=sign_test(box - beside_mean, permutations, run.seed),
        least_on=ON,
        most_off=OFF,
        permutations=permutations,
        unmarked=tuple(n for n, b in zip(record.pictures, record.boxes, strict=True) if not b),
        origin={**record.origin, "method": "hidden objects", "permutation seed": run.seed},
    )


def shared(
    tops: Sequence[int],
    lefts: Sequence[int],
    sides: tuple[int, int],
    boxes: Sequence[Box],
    size: tuple[int, int],
) -> Float64[np.ndarray, "rows columns"]:
    """Pixels that the square at each place has in common with the boxes, over the smaller of
    both areas."""
    marked = inside(size, boxes)
    sums = np.pad(marked.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    top, left = np.asarray(tops)[:, None], np.asarray(lefts)[None]
    bottom, right = top + sides[0], left + sides[1]
    common = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    share: Float64[np.ndarray, "rows columns"] = common / max(
        1, min(sides[0] * sides[1], int(marked.sum()))
    )
    return share


def sign_test(values: Float64[np.ndarray, "pictures"], permutations: int, seed: int) -> float:
    """How often the mean is as large with signs at random; the real one counts too. NaN are left
    out; 1 where nothing is left."""
    known = values[~np.isnan(values)]
    chance = np.random.default_rng(seed)
    signs = chance.integers(0, 2, (permutations, len(known))) * 2 - 1
    as_large = int(((signs * known).sum(1) >= known.sum() - 1e-12).sum())
    return (1 + as_large) / (1 + permutations)


def deal_test(table: Float64[np.ndarray, "pictures boxes"], permutations: int, seed: int) -> float:
    """How often the mean is as large with the boxes dealt out among the pictures. Pairs that have
    no squares of one kind are NaN and left out."""
    chance, rows = np.random.default_rng(seed), np.arange(len(table))
    real = _known_mean(np.diag(table)[None])[0]
    deals = np.stack([chance.permutation(len(table)) for _ in range(permutations)])
    means = _known_mean(table[rows[None], deals])
    return float((1 + (means >= real - 1e-12).sum()) / (1 + permutations))


def _shared(record: Occlusions, number: int) -> Float64[np.ndarray, "places"]:
    size = (int(record.seen.shape[1]), int(record.seen.shape[2]))
    boxes = [Box(*box) for box in record.boxes[number]]
    tops, lefts = record.tops.tolist(), record.lefts.tolist()
    return shared(tops, lefts, record.sides, boxes, size).ravel()


def _falls(
    before: np.ndarray, after: Float64[np.ndarray, "pictures n"]
) -> Float64[np.ndarray, "pictures n"]:
    logs = [np.log(np.maximum(v.astype(np.float64), LEAST)) for v in (before[:, None], after)]
    fall: Float64[np.ndarray, "pictures n"] = logs[0] - logs[1]
    return fall


def _means(
    falls: Float64[np.ndarray, "pictures places"], chosen: Bool[np.ndarray, "boxes places"]
) -> Float64[np.ndarray, "pictures boxes"]:
    """Each picture's mean over the squares that each one's boxes choose; NaN where none is."""
    count = chosen.sum(1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Float64[np.ndarray, "pictures boxes"] = (falls @ chosen.T.astype(np.float64)) / count
    return mean


def _own(
    falls: Float64[np.ndarray, "pictures places"], chosen: Bool[np.ndarray, "pictures places"]
) -> Float64[np.ndarray, "pictures"]:
    return np.diag(_means(falls, chosen)).copy()


def _off_diagonal(
    table: Float64[np.ndarray, "pictures boxes"],
) -> Float64[np.ndarray, "pictures"]:
    others = table.copy()
    np.fill_diagonal(others, np.nan)
    return _known_mean(others)


def _known_mean(values: Float64[np.ndarray, "n m"]) -> Float64[np.ndarray, "n"]:
    """Of each row without its NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Float64[np.ndarray, "n"] = np.where(known, values, 0).sum(1) / known.sum(1)
    return mean


def _turned(record: Occlusions, kept: np.ndarray) -> Float64[np.ndarray, "pictures"]:
    result = record.other_likeliest[kept]
    other = (result != record.base_likeliest[kept, None]).astype(np.float64)
    return _known_mean(np.where(result < 0, np.nan, other))
