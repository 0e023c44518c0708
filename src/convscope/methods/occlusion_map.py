"""How much does each pixel matter, by what hiding it does to the score of one class?

For each pixel the mean fall of the score over all squares that hide it; where the stride divides,
the numbers of captum's `Occlusion`. Only the target's score is computed, which for networks that
end in a convolution saves a third of the time.
Source: Zeiler and Fergus 2014, §4.2, read as a map of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.lens.lens import Lens
from convscope.methods.fills import Fill
from convscope.methods.given import Given, Model, several, taking
from convscope.methods.hiding import Hiding, Pair, aims_of, covering, finite
from convscope.network.outputs import scored
from convscope.network.provenance import recorded
from convscope.records.maps import Attribution
from convscope.run import PLAIN, Run
from convscope.trace.forward.engine import MEMORY, Incremental


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
    hiding = Hiding.of(images, patch, stride, fill, run.seed)
    model = scored(model, images)
    aims = aims_of(target, images) or _likeliest(model, images)
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
    hiding: Hiding,
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
    hiding: Hiding, falls: Float[np.ndarray, "positions"], size: Sequence[int]
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
