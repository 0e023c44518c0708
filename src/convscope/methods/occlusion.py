"""Occlusion: what happens to the score and to a feature map if a square hides this part?

The square is moved over the whole picture and never leaves it; where the stride does not divide,
the last position lies at the border. All panels of the paper's figure come from the same passes,
in which only what the square can change is computed (`lens/incremental.py`).
Source: Zeiler and Fergus 2014, §4.2 and figure 7. The text gives neither size nor stride; measured
in the figure they are 50 and 6 pixels, which makes 30 by 30 positions on 224 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope import __version__
from convscope.errors import ModelError, UsageError
from convscope.lens.feature_layers import feature_layers
from convscope.lens.incremental import MEMORY, Incremental
from convscope.lens.incremental_patches import Patches
from convscope.methods.fills import Fill, filled, named
from convscope.records.maps import Occlusion

Pair = int | tuple[int, int]
Progress = Callable[[int, int], None] | None


@dataclass(frozen=True)
class _Plan:
    """What is asked of every picture."""

    tops: list[int]
    lefts: list[int]
    size: tuple[int, int]
    stride: tuple[int, int]
    layer: str
    fill: Fill
    seed: int
    every_class: bool

    def patches(self, image: Float[Tensor, "3 h w"]) -> Patches:
        return Patches(
            self.tops, self.lefts, self.size, filled(self.fill, image, self.size, self.seed)
        )


def occlusion(
    model: nn.Module,
    image: Float[Tensor, "3 h w"],
    *,
    target: int | None = None,
    layer: str | None = None,
    patch: Pair = 50,
    stride: Pair = 6,
    fill: Fill = 0.0,
    seed: int = 0,
    every_class: bool = False,
    memory: float = MEMORY,
    progress: Progress = None,
) -> Occlusion:
    """Hide a square of the picture at every position and see what the network makes of it.

    image: preprocessed, as the network takes it. target: class whose probability is followed; by
    default the likeliest one of the whole picture. layer: whose strongest map (largest sum over
    positions in the whole picture) is followed; by default the last of `feature_layers`.
    patch, stride: in input pixels, or a pair of them, rows first. fill: of the square, in the
    units of the network's input: one number (0 is the preprocessing's mean), one a channel,
    "mean" of this picture, "noise" of this picture's mean and spread, drawn once with `seed`,
    "blur" of this picture (Gaussian, a quarter of the square's shorter side), or a tensor: of the
    square's size it moves along, of the picture's size it is seen through the square.
    every_class: keep the probabilities of all classes too. memory: bytes for windows.
    progress: gets positions done and all positions.

    The record's origin says in `engine` what was computed: windows, or whole pictures and why.
    The numbers are those of one pass a position, but for rounding (2e-5 of the largest score in
    float32), in the network's own precision. The network is as it was afterwards.

    Raises UsageError U370 (memory), U530 (a square that does not fit), U531 (fill), ModelError
    M500, M501 (no convolution), M506 (layer), M507 (no such class), M514 (scores that are not
    finite), M520.
    """
    (found,) = occlusions(
        model,
        image[None],
        targets=None if target is None else [target],
        layer=layer,
        patch=patch,
        stride=stride,
        fill=fill,
        seed=seed,
        every_class=every_class,
        memory=memory,
        progress=progress,
    )
    return found


def occlusions(
    model: nn.Module,
    images: Float[Tensor, "b 3 h w"],
    *,
    targets: Sequence[int] | None = None,
    layer: str | None = None,
    patch: Pair = 50,
    stride: Pair = 6,
    fill: Fill = 0.0,
    seed: int = 0,
    every_class: bool = False,
    memory: float = MEMORY,
    progress: Progress = None,
) -> list[Occlusion]:
    """The same for several pictures of one size, which share what is prepared once.

    targets: one for each picture, else each picture's likeliest. progress: over all pictures.

    Raises UsageError U351 (another number of targets), U355 (no such pictures), and the same as
    `occlusion`.
    """
    if targets is not None and len(targets) != len(images):
        raise UsageError("U351", f"{len(targets)} targets", f"for {len(images)} pictures")
    if images.dim() != 4 or not len(images):
        shape = tuple(images.shape)
        raise UsageError("U355", f"pictures {shape}", "are not (pictures, channels, height, width)")
    size, step = _pair(patch), _pair(stride)
    tops, lefts = (corners(images.shape[2 + n], size[n], step[n]) for n in (0, 1))
    watched = layer or _last_layer(model, images[0])
    plan = _Plan(tops, lefts, size, step, watched, fill, seed, every_class)
    first = plan.patches(images[0])
    engine = Incremental(model, images[0], first, [watched], memory=memory)
    aims = [None] * len(images) if targets is None else targets
    return [
        _explained(model, engine, plan, image, aim, _part(progress, number, len(images)))
        for number, (image, aim) in enumerate(zip(images, aims, strict=True))
    ]


def _part(progress: Progress, number: int, pictures: int) -> Progress:
    """Progress of one picture as a part of all."""
    if progress is None:
        return None
    return lambda done, places: progress(number * places + done, pictures * places)


def _explained(
    model: nn.Module,
    engine: Incremental,
    plan: _Plan,
    image: Float[Tensor, "3 h w"],
    target: int | None,
    progress: Progress,
) -> Occlusion:
    whole = engine.begin(image, plan.patches(image))
    base = _probabilities(whole.scores)[0]
    target = _target(base, target)
    channel = int(whole.activity[plan.layer][0].argmax())
    hidden = engine.follow({plan.layer: channel}, progress)
    chances = _probabilities(hidden.scores)
    shape = (len(plan.tops), len(plan.lefts))
    return Occlusion(
        probability=_array(chances[:, target], shape),
        likeliest=chances.argmax(1).cpu().numpy().astype(np.int32).reshape(shape),
        activity=_array(hidden.activity[plan.layer], shape),
        tops=np.array(plan.tops, np.int32),
        lefts=np.array(plan.lefts, np.int32),
        patch=plan.size[0],
        width=plan.size[1],
        target=target,
        base_probability=float(base[target]),
        base_activity=float(whole.activity[plan.layer][0, channel]),
        layer=plan.layer,
        channel=channel,
        score=_array(hidden.scores[:, target], shape),
        base_score=float(whole.scores[0, target]),
        probabilities=_array(chances, (*shape, -1)) if plan.every_class else None,
        origin=_origin(model, engine, plan),
    )


def _origin(model: nn.Module, engine: Incremental, plan: _Plan) -> dict[str, Any]:
    return {
        "method": "occlusion",
        "stride": list(plan.stride),
        "fill": named(plan.fill),
        "seed": plan.seed,
        "engine": engine.how,
        "network": type(model).__name__,
        "convscope": __version__,
    }


def corners(extent: int, patch: int, stride: int) -> list[int]:
    """First pixels of the square along one axis: 0, stride, …; the last one touches the border."""
    if not 1 <= patch <= extent or stride < 1:
        raise UsageError(
            "U530",
            f"patch {patch}, stride {stride}",
            f"the square's side lies between 1 and the picture's {extent} px, its stride above 0",
        )
    last = extent - patch
    starts = list(range(0, last + 1, stride))
    return starts if starts[-1] == last else [*starts, last]


def _pair(given: Pair) -> tuple[int, int]:
    pair = given if isinstance(given, Sequence) else (given, given)
    if len(pair) != 2 or not all(isinstance(n, (int, np.integer)) for n in pair):
        what = "give one whole number of pixels, or two: rows and columns"
        raise UsageError("U530", str(given), what)
    return int(pair[0]), int(pair[1])


def _probabilities(scores: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    if not bool(torch.isfinite(scores).all()):
        raise ModelError("M514", "the scores", "have a NaN or an infinity in this picture")
    return (scores if scores.dtype == torch.float64 else scores.float()).softmax(1)


def _array(values: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return values.float().cpu().numpy().reshape(shape)


def _target(probability: Float[Tensor, "classes"], target: int | None) -> int:
    if target is None:
        return int(probability.argmax())
    if not 0 <= target < len(probability):
        what = f"the network has {len(probability)} classes, counted from 0"
        raise ModelError("M507", f"class {target}", what)
    return target


def _last_layer(model: nn.Module, image: Float[Tensor, "3 h w"]) -> str:
    names = feature_layers(model, image[None])
    if not names:
        raise ModelError("M501", "the network", "has no convolution to watch")
    return names[-1]
