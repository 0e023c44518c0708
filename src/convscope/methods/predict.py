"""What does the network take a picture for, and how often is it right?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from convscope.errors import DataError, ModelError, UsageError
from convscope.images.builtin import opened
from convscope.images.folder import Folder, Picture, one_picture
from convscope.lens.lens import Lens, logits
from convscope.lens.refusal import refusing
from convscope.methods.labels import class_names, true_classes
from convscope.methods.tuning import Tuning, Way, blank, require_tuning
from convscope.methods.views import framed, plan
from convscope.models.network import Network, whole
from convscope.records.predictions import Evaluation, Prediction

TOP = 5


def predict(
    network: Network, picture: Picture | Path | str, *, top: int = TOP, views: int = 1
) -> Prediction:
    """The likeliest classes of a picture, by the mean softmax over its views.

    picture: whole, as decoded, or its file. views: 1 (the centre) or 10 (corners and centre and
    their mirror images, as the paper tests). Raises UsageError U310, U376 (a bare module), U377
    (no picture), ModelError M520 (no scores), M522 (it takes no such picture), M560 (not finite),
    and as `one_picture`.
    """
    network, picture = whole(network), _decoded(picture)
    framing, cut = plan(network.preprocess, views)
    way = Way(network.model, blank(network.model, network.preprocess.shape))
    probability = _probability(network, way, [cut(framed(framing, picture.pixels))])
    _require_finite(probability, [picture])
    value, index = _strongest(probability, top)
    names = class_names(network, probability.shape[1])
    return Prediction(
        picture.name,
        tuple(names[place] for place in index[0]),
        index[0],
        value[0],
        views,
        origin=_origin("predict", network),
    )


def evaluate(
    network: Network,
    folder: Folder | Path | str,
    *,
    views: int = 1,
    labels: Mapping[str, int] | None = None,
    tuning: Tuning | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """How often the network is right on a folder's pictures.

    labels: class index by picture name, file name or class folder; without, the class folders
    are matched to the network's classes by name (by place where the network has no names).
    Pictures that cannot be used, or have no class, are left out. tuning: what `tune` chose for this
    machine; without, `usual_batch` pictures are computed together, the same on every machine.

    Raises DataError D160 (no classes), D161 (nothing usable), UsageError U310, U311, U376 (a bare
    module), U377 (no folder), U401 (no tuning), ModelError M520 (no scores), M522 (it takes no such
    picture), M560 (scores that are not finite).
    """
    network = whole(network)
    require_tuning(tuning)
    with opened(folder) as pictures:
        return _evaluate(network, pictures, views, labels, tuning, progress)


def _evaluate(
    network: Network,
    folder: Folder,
    views: int,
    labels: Mapping[str, int] | None,
    tuning: Tuning | None,
    progress: Callable[[int, int], None] | None,
) -> Evaluation:
    framing, cut = plan(network.preprocess, views)
    truth, numbers, shares = None, [], []
    way = Way(network.model, blank(network.model, network.preprocess.shape), tuning=tuning)
    for chunk in _chunks(folder.read(framing, workers=way.workers), max(1, way.batch // views)):
        share = _probability(network, way, [cut(picture.pixels) for picture in chunk])
        _require_finite(share, chunk)
        if truth is None:  # only now is it known how many classes there are
            truth = true_classes(network, folder, share.shape[1], labels)
        numbers += [picture.number for picture in chunk]
        shares.append(share)
        if progress is not None:
            progress(chunk[-1].number + 1, len(folder))
    if truth is None:
        folder.check_bad()  # which says why
        raise DataError("D161", str(folder.root), "holds no usable picture")
    used = np.array(numbers, dtype=np.int64)
    known = truth[used] >= 0
    return _evaluation(
        network, folder, way, used[known], truth[used[known]], np.concatenate(shares)[known], views
    )


def _evaluation(
    network: Network,
    folder: Folder,
    way: Way,
    numbers: Int64[np.ndarray, "n"],
    truth: Int64[np.ndarray, "n"],
    probability: Float32[np.ndarray, "n classes"],
    views: int,
) -> Evaluation:
    outputs = probability.shape[1]
    value, index = _strongest(probability, TOP)
    hits = index == truth[:, None]
    confusion = np.zeros((outputs, outputs), np.int64)
    np.add.at(confusion, (truth, index[:, 0]), 1)
    return Evaluation(
        top1=float(hits[:, 0].mean()),
        top5=float(hits.any(1).mean()),
        names=class_names(network, outputs),
        pictures=tuple(folder.names[number] for number in numbers),
        numbers=numbers,
        labels=truth,
        likeliest=index,
        probability=value,
        confusion=confusion,
        views=views,
        skipped=len(folder) - len(numbers),
        origin=_origin("evaluate", network)
        | {"pictures": str(folder.root), "data": folder.sha256}
        | way.origin,
    )


def _decoded(given: Picture | Path | str) -> Picture:
    if isinstance(given, Picture):
        return given
    if isinstance(given, str | Path):
        return one_picture(given)
    what = f"a {type(given).__name__} is no picture of a folder"
    raise UsageError("U377", "", what, next_step="give one_picture(…), or the file's name")


def _probability(
    network: Network, way: Way, cuts: list[list[UInt8[np.ndarray, "h w 3"]]]
) -> Float32[np.ndarray, "n classes"]:
    """Mean softmax over each picture's views."""
    pixels = [view for views in cuts for view in views]
    images = way.laid(network.preprocess.batch(pixels, channels_last=True))
    with torch.inference_mode(), way.running():
        scores = _scores(network, way, images).float()
    shares = scores.softmax(1).reshape(len(cuts), -1, scores.shape[1]).mean(1)
    return np.asarray(shares.cpu().numpy(), dtype=np.float32)


def _scores(
    network: Network, way: Way, images: Float32[torch.Tensor, "b c h w"]
) -> Float32[torch.Tensor, "b classes"]:
    """In evaluation mode, whatever mode the model is in."""
    with Lens(way.model, ()) as lens, refusing(images, network.spec):
        output = lens(images)
    if isinstance(output, torch.Tensor) and output.dim() >= 2:
        return output.flatten(1)
    return logits(output)


def _strongest(
    probability: Float32[np.ndarray, "n classes"], top: int
) -> tuple[Float32[np.ndarray, "n top"], Int64[np.ndarray, "n top"]]:
    """Values and class indices, the largest first; of equals the lower index."""
    index = np.argsort(-probability, axis=1, kind="stable")[:, :top].astype(np.int64)
    return np.take_along_axis(probability, index, axis=1), index


def _require_finite(probability: Float32[np.ndarray, "n classes"], chunk: list[Picture]) -> None:
    wrong = ~np.isfinite(probability).all(1)
    if wrong.any():
        name = chunk[int(wrong.argmax())].name
        raise ModelError("M560", name, "the network's scores for it are not finite")


def _chunks(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    iterator = iter(pictures)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _origin(method: str, network: Network) -> dict[str, Any]:
    return {
        "method": method,
        "model": network.spec,
        "weights": network.weights,
        "sha256": network.sha256,
        "preprocess": network.preprocess.describe(),
    }
