"""What does each layer know: how well do linear classifiers tell classes apart on its features?

Source: Zeiler and Fergus 2014, section 5.3 and table 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from convscope.core.errors import UsageError
from convscope.core.run import PLAIN, Progress, Run
from convscope.network.arguments import FolderLike, Layers, pictures_of, taking
from convscope.network.network import Network
from convscope.network.provenance import recorded
from convscope.records.features import Embedding
from convscope.representations.embedding import VectorKind, embedding
from convscope.representations.probe import (
    KINDS,
    STRENGTH,
    TEST,
    Division,
    divisions,
    enough,
    per_class_accuracy,
    require_folds,
    trained,
)
from convscope.studies.base import Ask, arguments
from convscope.studies.probes import Options
from convscope.studies.probes.record import Probes


@taking(folder=pictures_of)
@recorded
def probes(
    network: Network,
    folder: FolderLike,
    layers: Layers = None,
    *,
    per_class: int = 30,
    test: int = TEST,
    folds: int = 5,
    kinds: Sequence[str] = ("svm", "softmax"),
    vector: VectorKind = "auto",
    cache: Path | str | None = None,
    run: Run = PLAIN,
    training: Progress | None = None,
) -> Probes:
    """Mean per-class accuracy of linear classifiers on the features of each layer.

    folder: with its classes as folders. per_class: pictures of each class to train on. test: most
    others of each to test on; a class with none left for that is left out, and named in `short`.
    kinds: `svm`, `softmax`. layers, vector, cache: see `embedding`. run: progress of
    the pass over the pictures; training: of the classifiers.

    Raises as `embedding`, UsageError U429 (numbers), U430 (kinds), DataError D175, D176 (too few).
    """
    require_folds([per_class], test, folds)
    _require_kinds(kinds)
    result = embedding(network, folder, layers, vector=vector, cache=cache, run=run)
    first, *_ = result.values()
    label, short = enough(first.label, first.classes, per_class)
    parts = list(divisions(label, per_class, test, folds=folds, seed=run.seed))
    accuracy = _accuracies(list(result.values()), parts, kinds, run.telling(training))
    return Probes(
        **_of_layers(result),
        kinds=tuple(kinds),
        accuracy=accuracy,
        per_class=per_class,
        test=len(parts[0][1]),
        classes=tuple(first.classes[number] for number in np.unique(label[label >= 0])),
        short=short,
        origin={**first.origin, **protocol(run.seed), "method": "probes"},
    )


def _require_kinds(kinds: Sequence[str]) -> None:
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        raise UsageError("U430", ", ".join(wrong) or "kinds", "there are svm and softmax")


def _of_layers(embedded: Mapping[str, Embedding]) -> dict[str, Any]:
    """The record's fields of the layers: their names, their numbers and how these were taken."""
    return {
        "layers": tuple(embedded),
        "numbers": np.array([layer.values.shape[1] for layer in embedded.values()], np.int64),
        "vectors": tuple(layer.vector for layer in embedded.values()),
    }


def _accuracies(
    layers: Sequence[Embedding], parts: Sequence[Division], kinds: Sequence[str], run: Run
) -> Float64[np.ndarray, "layers kinds folds"]:
    accuracy = np.zeros((len(layers), len(kinds), len(parts)))
    for done, (row, fold, column) in enumerate(np.ndindex(len(layers), len(parts), len(kinds))):
        values, (train, check) = np.asarray(layers[row].values), parts[fold]
        accuracy[row, column, fold] = _accuracy(kinds[column], values, layers[row], train, check)
        run.tick(done + 1, accuracy.size)
    return accuracy


def protocol(seed: int) -> dict[str, object]:
    """What else decides the numbers."""
    return {
        "features": "length 1, less the training pictures' mean, scaled to a mean square of 1",
        "strength": dict(STRENGTH),
        "seed": seed,
    }


def _accuracy(
    kind: str, values: np.ndarray, layer: Embedding, train: np.ndarray, check: np.ndarray
) -> float:
    _, truth = np.unique(layer.label[train], return_inverse=True)
    _, asked = np.unique(layer.label[check], return_inverse=True)
    cut = trained(kind, values[train], truth, int(truth.max()) + 1)
    return float(np.nanmean(per_class_accuracy(cut.scores(values[check]), asked)))


def from_command(ask: Ask, options: Options) -> Probes:
    with ask.pictures() as folder:
        result = probes(
            ask.network(),
            folder,
            **arguments(options, ask.progress("features")),
            training=ask.progress("classifiers"),
        )
    say_short(ask, result.short)
    return result


def say_short(ask: Ask, names: Sequence[str]) -> None:
    if names:
        ask.say(f"too few pictures to test, so left out: {', '.join(names)}")
