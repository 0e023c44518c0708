"""How far a picture's features move if it is shifted, scaled or rotated (figure 5).

Moving happens on the whole picture at the network's scale (the canvas), and only then is the
middle cut out: what moves in at a border is the picture itself as far as there is any.

The Euclidean distance between the feature vectors of the picture and of the transformed picture,
at a low and at a high layer, and the probability of its class.
Source: Zeiler and Fergus 2014 (arXiv 1311.2901v3), figure 5: vertical translation, scale and
rotation of five pictures, layers 1 and 7. Steps, borders and normalisation are not given there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64, UInt8
from PIL import Image
from torch import Tensor

from convscope.core.errors import DataError, ModelError, UsageError, nearest
from convscope.core.run import PLAIN, Run
from convscope.lens.lens import Lens
from convscope.network.arguments import FolderLike, Layers, pictures_of, taking
from convscope.network.network import Network, whole
from convscope.network.outputs import meaning, understood
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import recorded
from convscope.pictures.framing import Framing
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Picture, Pictures
from convscope.representations.predict import class_names, true_classes
from convscope.scale.engine import merged
from convscope.scale.rows import RowJob, digest
from convscope.scale.segments import Arrays
from convscope.studies.explain.study import class_count
from convscope.studies.invariance.record import Invariance
from convscope.trace.layers import ends

Colour = tuple[int, int, int]
Border = Literal["edge", "mirror"] | Colour
"""What lies beyond the canvas: its outermost pixels again and again, its mirror image, or one
colour."""
MODES: dict[str, Literal["edge", "symmetric"]] = {"edge": "edge", "mirror": "symmetric"}
CHANGES = {
    "vertical": "pixels down",
    "horizontal": "pixels to the right",
    "scale": "ratio",
    "rotation": "degrees to the left",
}
"""What can be done to a picture, and in which unit."""
UNTOUCHED = {"vertical": 0.0, "horizontal": 0.0, "scale": 1.0, "rotation": 0.0}
Pixels = UInt8[np.ndarray, "h w 3"]


def canvas(picture: Image.Image, framing: Framing) -> Pixels:
    """The whole picture at the scale at which `framing` cuts out its middle, and at least as
    large as that; the middle itself where the framing stretches the picture."""
    if framing.resize is None:
        return framing(picture)
    wide, high = framing.whole(picture.size)
    size = (max(high, framing.crop[0]), max(wide, framing.crop[1]))
    return Framing(framing.resize, size, framing.interpolation)(picture)


def middle(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """What a framing to this size would show of the canvas."""
    top, left = _start(pixels, size)
    return pixels[top : top + size[0], left : left + size[1]]


def warp(
    pixels: Pixels, size: tuple[int, int], change: str, amount: float, border: Border
) -> tuple[Pixels, float]:
    """The middle of a canvas after one of CHANGES, and the share of it that is made up (border).

    size: height and width of the middle. amount: whole pixels, a ratio above 0 (2 enlarges
    twofold, about the middle), or degrees to the left. Shifts and quarter turns move pixels as
    they are; otherwise they are interpolated linearly, and averaged where the picture shrinks.

    Raises UsageError U411 on anything else.
    """
    _require(pixels, size, change, amount, border)
    inside = np.full_like(pixels, 255)
    shown = _warped(pixels, size, change, amount, border)
    kept = _warped(inside, size, change, amount, (0, 0, 0))
    return shown, float((kept[..., 0] < 128).mean())


def _warped(
    pixels: Pixels, size: tuple[int, int], change: str, amount: float, border: Border
) -> Pixels:
    if change == "scale":
        return _scaled(pixels, size, amount, border)
    if change == "rotation":
        return _turned(pixels, size, amount, border)
    down, across = (round(amount), 0) if change == "vertical" else (0, round(amount))
    margin = abs(down) + abs(across)
    top, left = _start(pixels, size)
    wide = _padded(pixels, margin, border)
    top, left = top + margin - down, left + margin - across
    return np.ascontiguousarray(wide[top : top + size[0], left : left + size[1]])


def _scaled(pixels: Pixels, size: tuple[int, int], ratio: float, border: Border) -> Pixels:
    height, width = size[0] / ratio, size[1] / ratio
    margin = max(0, math.ceil(max(height - pixels.shape[0], width - pixels.shape[1]) / 2)) + 2
    top, left = _start(pixels, size)
    y, x = top + margin + (size[0] - height) / 2, left + margin + (size[1] - width) / 2
    whole = Image.fromarray(_padded(pixels, margin, border))
    how = Image.Resampling.BILINEAR
    return np.asarray(whole.resize(size[::-1], how, box=(x, y, x + width, y + height)))


def _turned(pixels: Pixels, size: tuple[int, int], degrees: float, border: Border) -> Pixels:
    cosine, sine = _exact(math.cos, degrees), _exact(math.sin, degrees)
    margin = max(0, math.ceil((math.hypot(*size) - min(pixels.shape[:2])) / 2)) + 2
    top, left = _start(pixels, size)
    y, x = top + margin + size[0] / 2, left + margin + size[1] / 2
    half_y, half_x = size[0] / 2, size[1] / 2
    # From a place in the result to its place in the canvas; rows count downwards.
    across = (cosine, -sine, x - cosine * half_x + sine * half_y)
    down = (sine, cosine, y - sine * half_x - cosine * half_y)
    whole = Image.fromarray(_padded(pixels, margin, border))
    how = Image.Resampling.BILINEAR
    return np.asarray(whole.transform(size[::-1], Image.Transform.AFFINE, across + down, how))


def _exact(function: object, degrees: float) -> float:
    """Sine or cosine without the rounding that would blur quarter turns."""
    value = float(function(math.radians(degrees)))  # type: ignore[operator]
    return float(round(value)) if abs(value - round(value)) < 1e-12 else value


def _padded(pixels: Pixels, margin: int, border: Border) -> Pixels:
    sides = ((margin, margin), (margin, margin), (0, 0))
    if isinstance(border, str):
        return np.pad(pixels, sides, mode=MODES[border])
    wide = np.pad(pixels, sides)
    wide[...] = border
    wide[margin : margin + pixels.shape[0], margin : margin + pixels.shape[1]] = pixels
    return wide


def _start(pixels: Pixels, size: tuple[int, int]) -> tuple[int, int]:
    """First row and column of the middle, as a Framing rounds them."""
    return round((pixels.shape[0] - size[0]) / 2), round((pixels.shape[1] - size[1]) / 2)


def _require(
    pixels: Pixels, size: tuple[int, int], change: str, amount: float, border: Border
) -> None:
    if change not in CHANGES:
        raise UsageError("U411", change, f"no such change of a picture; {nearest(change, CHANGES)}")
    whole = change in ("vertical", "horizontal")
    possible = {"scale": 1 / 64 <= amount <= 64}.get(change, abs(amount) <= 1 << 16)
    if not possible or (whole and amount != round(amount)):
        told = "whole pixels" if whole else "a ratio from 1/64 to 64, or finite degrees"
        raise UsageError("U411", f"{change}={amount:g}", "is impossible", next_step=f"take {told}")
    if isinstance(border, str) and border not in MODES:
        raise UsageError("U411", border, f"no such border; {nearest(border, MODES)}")
    if min(pixels.shape[0] - size[0], pixels.shape[1] - size[1]) < 0:
        raise UsageError("U411", "", f"a canvas of {pixels.shape[:2]} is smaller than {size}")


BATCH = 32
SHOWN, SIDE = 5, 72
"""Pictures kept for the figure, and their side in pixels."""
PAPER_SIDE = 224
"""Of the paper's input, to whose side shifts are relative."""
Changes = Mapping[str, Sequence[float]]


def paper_changes(size: tuple[int, int]) -> dict[str, list[float]]:
    """The paper's ranges: shifts of up to 60 of 224 pixels, ratios 1 to 1.8, 0 to 350 degrees;
    its steps are not given. size: height and width of the network's input."""
    down, across = (max(1, round(4 * side / PAPER_SIDE)) for side in size)
    return {
        "vertical": [float(down * step) for step in range(-15, 16)],
        "horizontal": [float(across * step) for step in range(-15, 16)],
        "scale": [round(1 + 0.05 * step, 2) for step in range(17)],
        "rotation": [10.0 * step for step in range(36)],
    }


@taking(folder=pictures_of)
@recorded
def invariance(
    network: Network,
    folder: FolderLike,
    layers: Layers = None,
    *,
    changes: Changes | None = None,
    border: Border | str = "mean",
    beyond: bool = True,
    labels: Mapping[str, int] | None = None,
    run: Run = PLAIN,
) -> Invariance:
    """Move, enlarge and turn each picture of a folder, and see what the network makes of it.

    layers: from low to high; by default the first convolution's layer and what the classifier is
    given, as `layers.ends` has them. changes: amounts by name (`images.warp.CHANGES`); by default
    `paper_changes`. border: what is shown where the picture ends: "mean" (what the preprocessing
    subtracts), "edge", "mirror" or a colour. beyond: show what of the picture lies outside of the
    network's crop before the border; without it the border begins at the crop. labels: as of
    `evaluate`; where the true class is not known, the likeliest is followed. run: its progress is
    over pictures.

    Raises DataError D161 (no usable picture), UsageError U311, U376, U377, U411 (a change or a
    border), ModelError M500, M514 (not finite), M520, M522.
    """
    network = understood(whole(network))
    preprocess = network.preprocess
    steps = _steps(paper_changes(preprocess.size) if changes is None else changes)
    wanted = _layers(network, layers)
    with opened(folder) as pictures:
        truth = _truth(network, pictures, labels)
        job = InvarianceJob(network, wanted, steps, truth, border=border, beyond=beyond)
        arrays, _ = merged(job, pictures, run)
        return Invariance(
            **_of_pictures(network, pictures, list(job.rows_in(arrays))),
            **_of_steps(steps),
            examples=arrays["examples"],
            layers=tuple(wanted),
            border=_in_words(preprocess, border, beyond),
            origin={"method": "invariance", "pictures": pictures.place},
        )


def _truth(
    network: Network, folder: Pictures, labels: Mapping[str, int] | None
) -> Int64[np.ndarray, "pictures"]:
    """The class of each picture, -1 where it is not known."""
    try:
        return true_classes(network, folder, class_count(network), labels)
    except DataError:
        if labels is not None:
            raise
    return np.full(len(folder), -1, np.int64)


def _steps(changes: Changes) -> list[tuple[str, float]]:
    """Each change with each of its amounts. Raises UsageError U411 where there are none."""
    if not changes or not all(len(amounts) for amounts in changes.values()):
        raise UsageError(
            "U411", "changes", "name no amounts", next_step="give some, or none at all"
        )
    return [(name, float(amount)) for name, amounts in changes.items() for amount in amounts]


def _layers(network: Network, asked: Layers) -> list[str]:
    """Those asked for, or else the lowest and the highest."""
    if asked is None:
        own = ends(network.model, network.preprocess.shape)
        return list(dict.fromkeys((own.low, own.high)))
    return [asked] if isinstance(asked, str) else list(asked)


def _of_steps(steps: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """The record's fields of the steps."""
    names = list(dict.fromkeys(name for name, _ in steps))
    return {
        "changes": tuple(names),
        "units": tuple(CHANGES[name] for name in names),
        "change": np.array([names.index(name) for name, _ in steps], np.int32),
        "amount": np.array([amount for _, amount in steps], np.float64),
    }


def _of_pictures(network: Network, folder: Pictures, rows: Sequence[_Row]) -> dict[str, Any]:
    """The record's fields of the pictures, from what is kept of each."""
    names = class_names(network, class_count(network))
    probability = np.stack([row.probability for row in rows])
    likeliest = np.stack([row.likeliest for row in rows])
    return {
        "pictures": tuple(folder.names[row.number] for row in rows),
        "target": np.array([row.target for row in rows], np.int64),
        "known": np.array([row.known for row in rows]),
        "names": tuple(names[row.target] for row in rows),
        "probability": probability[:, 1:],
        "base_probability": probability[:, 0],
        "likeliest": likeliest[:, 1:],
        "base_likeliest": likeliest[:, 0],
        "distance": np.stack([row.distance for row in rows]),
        "normalised": np.stack([row.normalised for row in rows]),
        "filled": np.stack([row.filled for row in rows]),
    }


@dataclass(frozen=True)
class _Row:
    """What is kept of one picture; first as it is, then after each step."""

    number: int
    target: int
    known: bool
    """Whether the target is its true class, or else the likeliest."""
    probability: Float32[np.ndarray, "steps_and_1"]
    """Of the target."""
    likeliest: Int32[np.ndarray, "steps_and_1"]
    distance: Float64[np.ndarray, "steps layers"]
    normalised: Float64[np.ndarray, "steps layers"]
    filled: Float32[np.ndarray, "steps"]


class InvarianceJob(RowJob[_Row]):
    """Each picture after every step, and what the first few look like then."""

    name, kind = "invariance", _Row

    def __init__(
        self,
        network: Network,
        layers: Sequence[str],
        steps: Sequence[tuple[str, float]],
        truth: Int64[np.ndarray, "pictures"],
        *,
        border: Border | str,
        beyond: bool,
    ) -> None:
        facts = {
            **network.facts,
            "layers": list(layers),
            "steps": digest(steps),
            "true classes": digest(truth.tolist()),
            "border": border if isinstance(border, str) else list(border),
            "beyond": beyond,
        }
        super().__init__(facts)
        self.framing = partial(_canvas, preprocess=network.preprocess, beyond=beyond)
        self.network, self.layers, self.steps, self.truth = network, layers, steps, truth
        self.fill: Any = _mean_colour(network.preprocess) if border == "mean" else border
        self.examples: list[np.ndarray] = []

    def row(self, picture: Picture) -> _Row:
        size = self.network.preprocess.size
        plain = middle(picture.pixels, size)
        warped = [warp(picture.pixels, size, *step, self.fill) for step in self.steps]
        if len(self.examples) < SHOWN:
            self.examples.append(_examples(warped, self.steps))
        moved = [plain, *(pixels for pixels, _ in warped)]
        distance, normalised, shares = _answers(self.network, picture.name, moved, self.layers)
        likeliest = shares.argmax(1).astype(np.int32)
        label = int(self.truth[picture.number])
        target = label if label >= 0 else int(likeliest[0])
        return _Row(
            number=picture.number,
            target=target,
            known=label >= 0,
            probability=shares[:, target].astype(np.float32),
            likeliest=likeliest,
            distance=distance,
            normalised=normalised,
            filled=np.array([share for _, share in warped], np.float32),
        )

    def take(self) -> dict[str, np.ndarray]:
        changes = len({name for name, _ in self.steps})
        none = np.zeros((0, changes, 3, SIDE, SIDE, 3), np.uint8)
        shown, self.examples = self.examples, []
        return {**super().take(), "examples": np.stack(shown) if shown else none}

    def merge(self, one: Arrays, other: Arrays) -> dict[str, np.ndarray]:
        both = dict(super().merge(one, other))
        return {**both, "examples": both["examples"][:SHOWN]}


def _canvas(image: Any, preprocess: Preprocess, beyond: bool) -> UInt8[np.ndarray, "h w 3"]:
    return canvas(image, preprocess.framing) if beyond else preprocess.framing(image)


@torch.inference_mode()
def _answers(
    network: Network, name: str, pixels: Sequence[UInt8[np.ndarray, "h w 3"]], layers: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one picture, which comes first, and its transformed ones: distances at each layer, also
    of features at length 1, and each class's probability."""
    like = next(network.model.parameters(), torch.empty(0))
    first: list[Tensor] = []
    read = meaning(network)
    columns: list[list[list[Tensor]]] = [[] for _ in range(3)]
    with Lens(network.model, layers) as lens:
        for start in range(0, len(pixels), BATCH):
            images = network.preprocess.batch(pixels[start : start + BATCH]).to(like)
            scores = lens(images)
            features = [lens[layer].flatten(1).cpu().double() for layer in layers]
            first = first or [each[:1] for each in features]
            pairs = list(zip(features, first, strict=True))
            columns[0].append([_apart(each, one) for each, one in pairs])
            columns[1].append([_apart(_unit(each), _unit(one)) for each, one in pairs])
            columns[2].append([read.probabilities(scores.double()).cpu()])
    distance, normalised = (
        torch.stack([torch.cat(parts) for parts in zip(*column, strict=True)])[:, 1:].numpy()
        for column in columns[:2]
    )
    shares = torch.cat([batch[0] for batch in columns[2]]).numpy()
    if not (np.isfinite(distance).all() and np.isfinite(shares).all()):
        raise ModelError("M514", name, "features or scores of it are not finite")
    return distance, normalised, shares


def _apart(
    features: Float[Tensor, "n features"], one: Float[Tensor, "1 features"]
) -> Float[Tensor, "n"]:
    return (features - one).square().sum(1).sqrt()


def _unit(features: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
    """At length 1; a vector of zeros stays one."""
    return features / features.square().sum(1, keepdim=True).sqrt().clamp_min(1e-150)


def _mean_colour(preprocess: Preprocess) -> tuple[int, ...]:
    """What becomes 0 in the network's input, to the nearest whole colour."""
    zero = preprocess.pixels(torch.zeros(preprocess.shape))
    return tuple(int(value) for value in zero.mean((0, 1)).round())


def _in_words(preprocess: Preprocess, border: Border | str, beyond: bool) -> str:
    colour = _mean_colour(preprocess) if border == "mean" else border
    last = {"edge": "the outermost pixels repeated", "mirror": "the picture mirrored"}
    told = last.get(str(border)) or f"the colour {colour}"
    told += " (the mean)" if border == "mean" else ""
    resize = preprocess.framing.resize
    if not beyond or resize is None:
        return f"{told}, from the network's crop on"
    size = f"shorter side {resize}" if isinstance(resize, int) else f"{resize[0]} × {resize[1]}"
    return f"the picture itself beyond the crop ({size}), then {told}"


def _examples(
    warped: Sequence[tuple[UInt8[np.ndarray, "h w 3"], float]],
    steps: Sequence[tuple[str, float]],
) -> UInt8[np.ndarray, "changes 3 s s 3"]:
    rows = []
    for name in dict.fromkeys(name for name, _ in steps):
        own = [place for place, (change, _) in enumerate(steps) if change == name]
        own.sort(key=lambda place: steps[place][1])
        three = [warped[own[place]][0] for place in (0, len(own) // 2, -1)]
        small = [Image.fromarray(np.ascontiguousarray(one)).resize((SIDE, SIDE)) for one in three]
        rows.append(np.stack([np.asarray(one) for one in small]))
    return np.stack(rows)
