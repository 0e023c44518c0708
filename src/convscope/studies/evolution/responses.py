"""Responses of every map of some layers at the same places of the same pictures.

So that two states of one network can be compared map by map, whatever its strongest pictures are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.lens.lens import Lens
from convscope.metrics.agreement import ranks
from convscope.network.preprocess import Preprocess
from convscope.network.tuning import blank
from convscope.pictures.pictures import Pictures
from convscope.trace.batch_size import usual_batch


def responses(
    model: nn.Module,
    folder: Pictures,
    preprocess: Preprocess,
    layers: Sequence[str],
    numbers: Sequence[int],
    *,
    places: int = 1,
    seed: int = 0,
) -> dict[str, Float32[np.ndarray, "maps samples"]]:
    """What the layers put out at `places` random places of each of these pictures.

    A place is a share of the layer's height and width, so that all layers are asked about the same
    part of a picture; it depends on seed and on the picture's number alone. A unit of a fully
    connected layer has one place. Unusable pictures are left out.

    Raises DataError D118 or D161 (no usable picture), ModelError M500, M502, M506 (no feature
    maps), M514 (not finite), M522.
    """
    result: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    black = blank(model, preprocess.shape)
    batches = folder.batches(usual_batch(model, black), preprocess.framing, numbers)
    with Lens(model, layers) as lens, torch.inference_mode():
        for pictures in batches:
            images = preprocess.batch([p.pixels for p in pictures], channels_last=True)
            lens.reach(images.to(black.device))
            where = [_places(picture.number, places, seed) for picture in pictures]
            for layer in layers:
                result[layer].append(_at(lens[layer], layer, np.stack(where)))
    return {layer: np.concatenate(parts, axis=1) for layer, parts in result.items()}


def ranked(values: Float[np.ndarray, "maps samples"]) -> Float32[np.ndarray, "maps samples"]:
    """Ranks along each row, less their mean and at length 1, so that the product of two rows is
    their rank correlation; NaN in a row that is the same everywhere."""
    result: Float64[np.ndarray, "maps samples"] = ranks(values)
    result -= result.mean(axis=1, keepdims=True)
    size = np.linalg.norm(result, axis=1, keepdims=True)
    return (result / np.where(size > 0, size, np.nan)).astype(np.float32)


def _places(number: int, places: int, seed: int) -> Float64[np.ndarray, "places 2"]:
    return np.random.default_rng((seed, number)).random((places, 2))


def _at(
    output: Tensor, layer: str, where: Float64[np.ndarray, "b places 2"]
) -> Float32[np.ndarray, "maps b*places"]:
    maps = output[:, :, None, None] if output.dim() == 2 else output
    if maps.dim() != 4:
        raise ModelError("M506", layer, "puts out no feature maps")
    if not bool(maps.isfinite().all()):
        raise ModelError("M514", layer, "its feature maps are not finite")
    size = np.array(maps.shape[2:])
    rows, columns = torch.from_numpy((where * size).astype(np.int64)).unbind(-1)
    pictures = torch.arange(len(maps))[:, None]
    taken = maps[pictures, :, rows.to(maps.device), columns.to(maps.device)]
    return taken.flatten(0, 1).T.float().cpu().contiguous().numpy()
