"""Occlusion: what happens to the score and to a feature map if a square hides this part?

The square is moved over the whole picture and never leaves it; where the stride does not divide,
the last position lies at the border. All panels of the paper's figure come from the same passes,
in which only what the square can change is computed (`lens/incremental.py`).
Source: Zeiler and Fergus 2014, §4.2 and figure 7. The text gives neither size nor stride; measured
in the figure they are 50 and 6 pixels, which makes 30 by 30 positions on 224 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.methods.fills import Fill
from convscope.methods.given import Given, Layer, Model, several, single, taking
from convscope.methods.hiding import Hiding, Pair, aims_of, finite
from convscope.network.outputs import Meaning, meaning, scored
from convscope.network.provenance import recorded
from convscope.records.maps import Occlusion
from convscope.run import PLAIN, Run
from convscope.trace.forward.engine import MEMORY, Incremental
from convscope.trace.layers import feature_layers
from convscope.trace.origins import run_seen


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
    units of the network's input: one number (0 is the preprocessing's mean), one a channel,
    "mean" of this picture, "noise" of this picture's mean and spread, drawn once,
    "blur" of this picture (Gaussian, a quarter of the square's shorter side), or a tensor: of the
    square's size it moves along, of the picture's size it is seen through the square.
    every_class: keep the probabilities of all classes too. The run's memory
    is for windows, its seed for the noise; its progress gets positions done and all positions.

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
        target=target,  # type: ignore[arg-type]  # `taking` has made a name an index
        layer=layer,
        patch=patch,
        stride=stride,
        fill=fill,
        every_class=every_class,
        run=run,
    )
    return found


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
    hiding = Hiding.of(images, patch, stride, fill, run.seed)
    aims = aims_of(target, images)
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
    hiding: Hiding
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
