"""Occlusion: what happens to the score and to a feature map if a square hides this part?

The square is moved over the whole picture and never leaves it; where the stride does not divide,
the last position lies at the border. All panels of the paper's figure come from the same passes.
Source: Zeiler and Fergus 2014, §4.2 and figure 7. The text gives neither size nor stride; measured
in the figure they are 50 and 6 pixels, which makes 30 by 30 positions on 224 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from convscope import __version__
from convscope.errors import ModelError, UsageError
from convscope.lens.feature_layers import feature_layers
from convscope.lens.lens import Lens, logits
from convscope.records.maps import Occlusion

Fill = float | tuple[float, float, float] | Literal["mean", "noise"]
FILLS = ("mean", "noise")
BATCH = 32
"""Occluded pictures computed together; fixed, as other batches round differently."""


@dataclass(frozen=True)
class _Answers:
    """What the network says to a batch of occluded pictures."""

    probability: Float[Tensor, "b classes"]
    activity: Float[Tensor, "b maps"]


def occlusion(
    model: nn.Module,
    image: Float[Tensor, "3 h w"],
    *,
    target: int | None = None,
    layer: str | None = None,
    patch: int = 50,
    stride: int = 6,
    fill: Fill = 0.0,
    seed: int = 0,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Occlusion:
    """Hide a square of the picture at every position and see what the network makes of it.

    image: preprocessed, as the network takes it. target: class whose probability is followed; by
    default the likeliest one of the whole picture. layer: whose strongest map (largest sum over
    positions in the whole picture) is followed; by default the last of `feature_layers`.
    patch, stride: in input pixels. fill: of the square, in the units of the network's input: one
    number (0 is the preprocessing's mean), one a channel, "mean" of this picture, or "noise" of
    this picture's mean and spread, drawn once with `seed`.

    Raises UsageError U530 (a square that does not fit), U531 (fill), ModelError M500, M501
    (no convolution), M507 (no such class), M514 (scores that are not finite), M520.
    """
    height, width = image.shape[-2:]
    tops, lefts = corners(height, patch, stride), corners(width, patch, stride)
    square = _square(image, fill, patch, seed)
    watched = layer or _last_layer(model, image)
    with Lens(model, [watched]) as lens, torch.inference_mode():
        whole = _answers(lens, watched, image[None])
        target = _target(whole.probability[0], target)
        channel = int(whole.activity[0].argmax())
        found = [
            (a.probability[:, target], a.probability.argmax(1), a.activity[:, channel])
            for a in (
                _answers(lens, watched, hidden)
                for hidden in _hidden(image, square, tops, lefts, batch, progress)
            )
        ]
    shape = (len(tops), len(lefts))
    probability, likeliest, activity = (
        torch.cat(part).cpu().numpy().reshape(shape) for part in zip(*found, strict=True)
    )
    return Occlusion(
        probability=probability.astype(np.float32),
        likeliest=likeliest.astype(np.int32),
        activity=activity.astype(np.float32),
        tops=np.array(tops, np.int32),
        lefts=np.array(lefts, np.int32),
        patch=patch,
        target=target,
        base_probability=float(whole.probability[0, target]),
        base_activity=float(whole.activity[0, channel]),
        layer=watched,
        channel=channel,
        origin={
            "method": "occlusion",
            "stride": stride,
            "fill": fill if isinstance(fill, str) else list(np.atleast_1d(fill).astype(float)),
            "seed": seed,
            "batch": batch,
            "network": type(model).__name__,
            "convscope": __version__,
        },
    )


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


def _hidden(
    image: Float[Tensor, "3 h w"],
    square: Float[Tensor, "3 p p"],
    tops: list[int],
    lefts: list[int],
    batch: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """Batches of the picture with the square at every position, row after row."""
    places = [(top, left) for top in tops for left in lefts]
    patch = square.shape[-1]
    for start in range(0, len(places), batch):
        chosen = places[start : start + batch]
        hidden = image.expand(len(chosen), *image.shape).clone()
        for picture, (top, left) in zip(hidden, chosen, strict=True):
            picture[:, top : top + patch, left : left + patch] = square
        yield hidden
        if progress is not None:
            progress(start + len(chosen), len(places))


def _answers(lens: Lens, layer: str, images: Float[Tensor, "b 3 h w"]) -> _Answers:
    scores = logits(lens(images)).float()
    if not bool(torch.isfinite(scores).all()):
        raise ModelError("M514", "the scores", "have a NaN or an infinity in this picture")
    maps = lens[layer].float()
    if maps.dim() != 4:
        raise ModelError("M506", layer, f"puts out {tuple(maps.shape)}, which are no feature maps")
    # Before its rectifier a map's silent places are negative; only what is active counts.
    return _Answers(scores.softmax(1), maps.relu().sum((2, 3)))


def _target(probability: Float[Tensor, "classes"], target: int | None) -> int:
    if target is None:
        return int(probability.argmax())
    if not 0 <= target < len(probability):
        what = f"the network has {len(probability)} classes, counted from 0"
        raise ModelError("M507", f"class {target}", what)
    return target


def _square(
    image: Float[Tensor, "3 h w"], fill: Fill, patch: int, seed: int
) -> Float[Tensor, "3 p p"]:
    channels = image.shape[0]
    if isinstance(fill, str):
        if fill not in FILLS:
            raise UsageError("U531", fill, f"is no fill; numbers or {' or '.join(FILLS)}")
        mean, spread = image.mean((1, 2)), image.std((1, 2))
        noise = torch.zeros(channels, patch, patch, dtype=image.dtype)
        if fill == "noise":
            noise.normal_(generator=torch.Generator().manual_seed(seed))
        return mean[:, None, None] + spread[:, None, None] * noise.to(image.device)
    values: Int[Tensor, "c"] = image.new_tensor(np.atleast_1d(fill))
    if len(values) not in (1, channels):
        raise UsageError("U531", str(fill), f"is not one number or {channels}")
    return values.expand(channels)[:, None, None].expand(channels, patch, patch)


def _last_layer(model: nn.Module, image: Float[Tensor, "3 h w"]) -> str:
    names = feature_layers(model, image[None])
    if not names:
        raise ModelError("M501", "the network", "has no convolution to watch")
    return names[-1]
