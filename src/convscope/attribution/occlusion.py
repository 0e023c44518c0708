"""Occlusion: how scores and maps change while a sliding mask hides a part of the picture.

`occlusion` gives all panels of the paper's figure from the same passes, in which only what the
square can change is computed (`convscope.trace.forward`). The square never leaves the picture;
where the stride does not divide, the last position lies at the border. The paper gives neither
size nor stride; measured in its figure they are 50 and 6 pixels: 30 by 30 positions on 224 pixels.

`occlusion_map` gives an attribution: for each pixel the mean fall of the score over all squares
that hide it; where the stride divides, the numbers of captum's `Occlusion`. Only the target's
score is computed, which for networks that end in a convolution saves a third of the time.
Source: Zeiler and Fergus 2014, §4.2 and figure 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError, shown
from convscope.core.run import PLAIN, Run
from convscope.lens.lens import Lens
from convscope.network.arguments import Given, Layer, Model, several, single, taking
from convscope.network.outputs import Meaning, meaning, scored
from convscope.network.provenance import recorded
from convscope.records.maps import Attribution, Occlusion
from convscope.trace.forward.engine import MEMORY, Incremental
from convscope.trace.forward.plan import Patches
from convscope.trace.layers import feature_layers, run_seen

Fill = float | tuple[float, ...] | Literal["mean", "noise", "blur"] | Tensor
"""One number, one a channel, "mean" of the picture, "noise" of its mean and spread, drawn once,
"blur" of it (Gaussian, a quarter of the square's shorter side), or a tensor: of the square's size
it moves along, of the picture's size it is seen through the square."""
NAMED = ("mean", "noise", "blur")
BLUR = 0.25
"""Standard deviation of the blur, of the rectangle's shorter side."""


def filled(
    fill: Fill, picture: Float[Tensor, "c h w"], size: tuple[int, int], seed: int
) -> Float[Tensor, "c r k"]:
    """What a rectangle of this size shows; of the picture's size: what is seen through it.

    Raises UsageError U531 if it cannot be filled with that.
    """
    channels = picture.shape[0]
    if isinstance(fill, str):
        if fill not in NAMED:
            raise UsageError("U531", fill, f"is no fill; numbers or {' or '.join(NAMED)}")
        return (
            blurred(picture, BLUR * min(size))
            if fill == "blur"
            else _noise(picture, size, seed if fill == "noise" else None)
        )
    try:
        given = fill if isinstance(fill, Tensor) else torch.as_tensor(np.atleast_1d(fill))
        given = given.to(picture)
    except (TypeError, ValueError) as fault:
        what = f"{shown(fill)} is no fill; numbers or {' or '.join(NAMED)}"
        raise UsageError("U531", "fill", what) from fault
    if given.dim() <= 1 and given.numel() in (1, channels):
        return given.expand(channels)[:, None, None].expand(channels, *size)
    if given.shape in ((channels, *size), picture.shape):
        return given
    wanted = f"one number, {channels}, or a tensor {(channels, *size)} or {tuple(picture.shape)}"
    raise UsageError("U531", named(fill), f"is not {wanted}")


def _noise(
    picture: Float[Tensor, "c h w"], size: tuple[int, int], seed: int | None
) -> Float[Tensor, "c r k"]:
    """Drawn with the picture's mean and spread; without a seed, its mean alone."""
    mean, spread = picture.mean((1, 2)), picture.std((1, 2))
    noise = torch.zeros(len(picture), *size, dtype=picture.dtype)
    if seed is not None:
        noise.normal_(generator=torch.Generator().manual_seed(seed))
    return mean[:, None, None] + spread[:, None, None] * noise.to(picture.device)


def blurred(
    picture: Float[Tensor, "c h w"],
    sigma: float,
    reach: int | None = None,
    border: Literal["nearest", "mirror"] = "nearest",
) -> Float[Tensor, "c h w"]:
    """Gaussian, in pixels, to `reach` pixels (three standard deviations); beyond the border the
    border goes on, or the picture is mirrored."""
    # Here, because few commands blur and scipy.ndimage takes long to import.
    from scipy.ndimage import gaussian_filter  # type: ignore[attr-defined]

    reach = max(1, math.ceil(3 * sigma)) if reach is None else reach
    pixels = picture.detach().cpu().double().numpy()
    soft = gaussian_filter(pixels, sigma, mode=border, radius=reach, axes=(1, 2))
    return torch.from_numpy(soft).to(picture)


def named(fill: Fill) -> Any:
    """In words or numbers, for a record's origin or a message."""
    if isinstance(fill, Tensor):
        return f"tensor {tuple(fill.shape)}"
    return fill if isinstance(fill, str) else np.atleast_1d(fill).astype(float).tolist()


Pair = int | tuple[int, int]


@dataclass(frozen=True)
class SlidingMask:
    """What is done to every picture of one size."""

    tops: list[int]
    lefts: list[int]
    size: tuple[int, int]
    stride: tuple[int, int]
    fill: Fill
    seed: int

    @classmethod
    def of(cls, images: Tensor, patch: Pair, stride: Pair, fill: Fill, seed: int) -> SlidingMask:
        """Raises UsageError U355 (no pictures), U530 (a square that does not fit)."""
        if images.dim() != 4 or not len(images):
            what = "are not (pictures, channels, height, width)"
            raise UsageError("U355", f"pictures {tuple(images.shape)}", what)
        size, step = _pair(patch), _pair(stride)
        tops, lefts = (corners(images.shape[2 + n], size[n], step[n]) for n in (0, 1))
        return cls(tops, lefts, size, step, fill, seed)

    def patches(self, image: Float[Tensor, "c h w"]) -> Patches:
        """Raises UsageError U531 (fill)."""
        show = filled(self.fill, image, self.size, self.seed)
        return Patches(self.tops, self.lefts, self.size, show)

    def origin(self, engine: Incremental) -> dict[str, Any]:
        return {
            "method": "occlusion",
            "patch": list(self.size),
            "stride": list(self.stride),
            "fill": named(self.fill),
            "seed": self.seed,
            "engine": engine.how,
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


PAPER, PLACES = 50 / 224, 7
"""The paper's square as a part of the picture's side, and its places along one."""


def covering(images: Tensor, patch: Pair | None, stride: Pair | None) -> tuple[Pair, Pair]:
    """What was not told: the paper's square, and steps in which so many places cover a side."""
    if images.dim() != 4:
        return patch or 1, stride or 1  # `SlidingMask.of` says what is wrong
    sides = (int(images.shape[2]), int(images.shape[3]))
    height, width = _pair(patch) if patch is not None else (max(1, round(n * PAPER)) for n in sides)
    if stride is None:
        left = (sides[0] - height, sides[1] - width)
        down, across = (max(1, -(-rest // (PLACES - 1))) for rest in left)
        stride = (down, across)
    return (height, width), stride


def _pair(given: Pair) -> tuple[int, int]:
    pair = given if isinstance(given, Sequence) else (given, given)
    if len(pair) != 2 or not all(isinstance(n, (int, np.integer)) for n in pair):
        what = "give one whole number of pixels, or two: rows and columns"
        raise UsageError("U530", shown(given), what)
    return int(pair[0]), int(pair[1])


def finite(scores: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    """In float32 at least. Raises ModelError M514 where a score is NaN or infinite."""
    if not bool(torch.isfinite(scores).all()):
        raise ModelError("M514", "the scores", "have a NaN or an infinity in this picture")
    return scores if scores.dtype == torch.float64 else scores.float()


def targets_of(
    target: int | Sequence[int] | None, images: Float[Tensor, "b c h w"]
) -> list[int] | None:
    """A target for each picture; None where none was named. Raises UsageError U351,
    U397 (a function)."""
    if target is None:
        return None
    if any(map(callable, target if isinstance(target, Sequence) else [target])):
        what = "what is hidden changes the probability of a class"
        raise UsageError("U397", "a function as target", what, next_step="name a class")
    several = list(target) if isinstance(target, Sequence) else [target] * len(images)
    aims = [int(one) if hasattr(one, "__index__") else one for one in several]
    if len(aims) != len(images):
        raise UsageError("U351", f"{len(aims)} targets", f"for {len(images)} pictures")
    return aims


@taking(image=single)
@recorded
def occlusion(
    model: Model,
    image: Given,
    layer: Layer = None,
    *,
    target: int | str | None = None,
    patch: Pair = 50,
    stride: Pair = 6,
    fill: Fill = 0.0,
    every_class: bool = False,
    run: Run = PLAIN,
) -> Occlusion:
    """Hide a square of the picture at every position and see what the network makes of it.

    image: preprocessed, as the network takes it. target: class whose probability is followed; by
    default the likeliest one of the whole picture. layer: whose strongest map (largest sum over
    positions in the whole picture) is followed; by default the last of `feature_layers`.
    patch, stride: in input pixels, or a pair of them, rows first. fill: of the square, in the
    network's units: a number (0 is the mean picture), one a channel, "mean", "noise" or "blur" of
    this picture, or a tensor; see `Fill`. every_class: keep the probabilities of all classes too.
    The run's memory is for windows, its seed for the noise; its progress is over positions.

    The record's origin says in `engine` what was computed: windows, or whole pictures and why.
    The numbers are those of one pass a position, but for rounding (2e-5 of the largest score).

    Raises UsageError U370 (memory), U530 (a square that does not fit), U531 (fill), ModelError
    M500, M501 (no convolution), M506 (layer), M507 (no such class), M514 (not finite), M520.
    """
    (result,) = occlusions(
        model,
        image[None],
        target=target,  # type: ignore[arg-type]  # `taking` has made a name an index
        layer=layer,
        patch=patch,
        stride=stride,
        fill=fill,
        every_class=every_class,
        run=run,
    )
    return result


@taking(images=several)
@recorded
def occlusions(
    model: Model,
    images: Given,
    layer: Layer = None,
    *,
    target: int | Sequence[int] | None = None,
    patch: Pair = 50,
    stride: Pair = 6,
    fill: Fill = 0.0,
    every_class: bool = False,
    run: Run = PLAIN,
) -> list[Occlusion]:
    """The same for several pictures of one size, which share what is prepared once.

    target: one for each picture or one for all; by default each picture's likeliest.

    Raises UsageError U351 (another number of targets), U355 (no such pictures), and the same as
    `occlusion`.
    """
    hiding = SlidingMask.of(images, patch, stride, fill, run.seed)
    aims = targets_of(target, images)
    model = scored(model, images)
    watched = layer or _last_layer(model, images[0])
    first = hiding.patches(images[0])
    engine = Incremental(model, images[0], first, [watched], memory=run.room(MEMORY))
    found = []
    for number, image in enumerate(images):
        aim = None if aims is None else aims[number]
        asked = _Asked(engine, meaning(model), hiding, watched, every_class)
        found.append(_explained(asked, image, aim, run.part(number, len(images))))
    return found


@dataclass(frozen=True)
class _Asked:
    """What is asked of every picture."""

    engine: Incremental
    read: Meaning
    hiding: SlidingMask
    layer: str
    every_class: bool


def _explained(
    asked: _Asked,
    image: Float[Tensor, "3 h w"],
    target: int | None,
    run: Run,
) -> Occlusion:
    engine, hiding, layer = asked.engine, asked.hiding, asked.layer
    whole = engine.begin(image, hiding.patches(image))
    scores = finite(whole.scores)
    base = asked.read.probabilities(scores)[0]
    target = _target(whole.scores[0], target)
    channel = int(whole.activity[layer][0].argmax())
    hidden = engine.follow({layer: channel}, run.progress)
    chances = asked.read.probabilities(finite(hidden.scores))
    shape = (len(hiding.tops), len(hiding.lefts))
    return Occlusion(
        probability=_array(chances[:, target], shape),
        likeliest=hidden.scores.argmax(1).cpu().numpy().astype(np.int32).reshape(shape),
        activity=_array(hidden.activity[layer], shape),
        tops=np.array(hiding.tops, np.int32),
        lefts=np.array(hiding.lefts, np.int32),
        patch=hiding.size[0],
        width=hiding.size[1],
        target=target,
        base_probability=float(base[target]),
        base_activity=float(whole.activity[layer][0, channel]),
        layer=layer,
        channel=channel,
        score=_array(hidden.scores[:, target], shape),
        base_score=float(whole.scores[0, target]),
        probabilities=_array(chances, (*shape, -1)) if asked.every_class else None,
        origin=hiding.origin(engine),
    )


def _array(values: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return values.float().cpu().numpy().reshape(shape)


def _target(scores: Float[Tensor, "classes"], target: int | None) -> int:
    if target is None:
        return int(scores.argmax())
    if not 0 <= target < len(scores):
        what = f"the network has {len(scores)} classes, counted from 0"
        raise ModelError("M507", f"class {target}", what)
    return target


def _last_layer(model: nn.Module, image: Float[Tensor, "3 h w"]) -> str:
    names = feature_layers(model, image[None])
    run = run_seen(model, image[None])
    reaching = run.reaching(run.output)
    names = [name for name in names if name in reaching] or names
    if not names:
        raise ModelError("M501", "the network", "has no convolution to watch")
    return names[-1]


@taking(images=several)
@recorded
def occlusion_map(
    model: Model,
    images: Given,
    *,
    target: int | Sequence[int] | None = None,
    patch: Pair | None = None,
    stride: Pair | None = None,
    fill: Fill = 0.0,
    run: Run = PLAIN,
) -> list[Attribution]:
    """For each picture a map of its size: positive where hiding lowers the target's score.

    target: a class, or one for each picture; by default each picture's likeliest. patch, stride:
    in pixels, as in `occlusion`; without them the paper's square, 50 of 224 pixels, at seven by
    seven places. `raw` has the fall at each place. Several targets of one picture, given as the
    same tensor again, cost one round. The other arguments are those of `occlusion`.

    Raises UsageError U351 (another number of targets), U355, U370, U530, U531, ModelError M507,
    M514, M520.
    """
    patch, stride = covering(images, patch, stride)
    hiding = SlidingMask.of(images, patch, stride, fill, run.seed)
    model = scored(model, images)
    aims = targets_of(target, images) or _likeliest(model, images)
    classes = sorted(set(aims))
    first = hiding.patches(images[0])
    engine = Incremental(model, images[0], first, classes=classes, memory=run.room(MEMORY))
    found: list[Attribution] = []
    base = hidden = torch.empty(0)
    for number, (image, aim) in enumerate(zip(images, aims, strict=True)):
        if not number or not torch.equal(image, images[number - 1]):
            base = finite(engine.begin(image, hiding.patches(image)).scores)[0]
            hidden = finite(engine.follow({}, run.part(number, len(images)).progress).scores)
        column = classes.index(aim)
        falls = (base[column] - hidden[:, column]).cpu().double().numpy()
        found.append(_made(hiding, falls, image, aim, float(base[column]), engine))
    return found


def _made(
    hiding: SlidingMask,
    falls: Float[np.ndarray, "positions"],
    image: Float[Tensor, "c h w"],
    aim: int,
    base: float,
    engine: Incremental,
) -> Attribution:
    return Attribution(
        values=spread(hiding, falls, image.shape[1:]),
        target=aim,
        raw=falls.reshape(len(hiding.tops), len(hiding.lefts)).astype(np.float32),
        method="Occlusion",
        variant="authors",
        layer="pixels",
        score=base,
        origin=hiding.origin(engine),
    )


def spread(
    hiding: SlidingMask, falls: Float[np.ndarray, "positions"], size: Sequence[int]
) -> Float[np.ndarray, "h w"]:
    """For each pixel the mean of the falls of all squares that hide it; 0 where none does."""
    table = falls.reshape(len(hiding.tops), len(hiding.lefts))
    down = _covers(hiding.tops, hiding.size[0], size[0])
    across = _covers(hiding.lefts, hiding.size[1], size[1])
    total, count = down.T @ table @ across, down.T @ np.ones_like(table) @ across
    mean: np.ndarray = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return mean.astype(np.float32)


def _covers(
    starts: Sequence[int], length: int, extent: int
) -> Float[np.ndarray, "positions pixels"]:
    """1 where the square at a start hides a pixel."""
    pixels, first = np.arange(extent), np.array(starts)[:, None]
    return ((pixels >= first) & (pixels < first + length)).astype(np.float64)


def _likeliest(model: nn.Module, images: Float[Tensor, "b c h w"]) -> list[int]:
    with torch.inference_mode(), Lens(model, ()) as lens:
        return [int(lens(image[None].clone()).argmax()) for image in images]
