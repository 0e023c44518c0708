"""Linear probes: how well a linear classifier on each layer's features tells classes apart.

Features have length 1, the training pictures' mean is taken away, and one number scales what is
left to a mean square of 1 a picture, so that one strength serves all layers: the pictures' features
in an early layer differ little from their mean. The paper says of none of it whether it was done.
The strengths were chosen once, on one division of Caltech-101 with SqueezeNet's last features.

Source: Zeiler and Fergus 2014, section 5.3 and table 7.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.optimize import minimize

from convscope.core.errors import DataError, UsageError
from convscope.core.run import PLAIN, Progress, Run
from convscope.network.arguments import FolderLike, Layers, pictures_of, taking
from convscope.network.network import Network
from convscope.network.provenance import recorded
from convscope.records.features import Embedding
from convscope.representations.embedding import VectorKind, embedding
from convscope.studies.base import Ask, arguments
from convscope.studies.probes import Options
from convscope.studies.probes.record import Probes

TEST = 50
"""Most test pictures a class. Source: Zeiler and Fergus 2014, section 5.2 (Caltech-101)."""

Division = tuple[Int64[np.ndarray, "training"], Int64[np.ndarray, "testing"]]
"""Rows; the training rows in an order in which the first n of each class can be taken."""


def require_folds(per_class: Sequence[int], test: int, folds: int) -> None:
    """Raise UsageError U429 on numbers of pictures or folds that cannot be."""
    if not per_class or min(per_class) < 1 or test < 1 or folds < 1:
        given = f"per class {list(per_class)}, test {test}, folds {folds}"
        raise UsageError("U429", given, "all of them are at least 1")


def divisions(
    label: Int64[np.ndarray, "n"],
    most: int,
    test: int = TEST,
    *,
    folds: int = 5,
    seed: int = 0,
) -> Iterator[Division]:
    """Random training rows, `most` of each class, and up to `test` of the others, fold by fold.

    label: -1 for rows that do not count. Give it what `enough` returns.
    """
    rows = [np.flatnonzero(label == number) for number in np.unique(label[label >= 0])]
    for fold in range(folds):
        draw = np.random.default_rng([seed, fold])
        mixed = [draw.permutation(members) for members in rows]
        yield (
            np.concatenate([members[:most] for members in mixed]),
            np.concatenate([members[most : most + test] for members in mixed]),
        )


def enough(
    label: Int64[np.ndarray, "n"], classes: Sequence[str], most: int
) -> tuple[Int64[np.ndarray, "n"], tuple[str, ...]]:
    """The labels with -1 in classes of which `most` rows leave none to test, and their names.

    Raises DataError D175 (no two classes) or D176 (no two with enough pictures).
    """
    present, many = np.unique(label[label >= 0], return_counts=True)
    if len(present) < 2:
        raise DataError(
            "D175",
            "",
            "the pictures have no two classes, so there is nothing to tell apart",
            next_step="put each class's pictures into a folder with the class's name",
        )
    if (many > most).sum() < 2:
        second = int(np.sort(many)[-2])
        raise DataError(
            "D176",
            "",
            f"only {int((many > most).sum())} of {len(many)} classes have more than {most} usable "
            "pictures, so none are left to test",
            next_step=f"take at most {second - 1} a class" if second > 1 else "add pictures",
        )
    short = present[many <= most]
    names = tuple(classes[int(number)] for number in short)
    return np.where(np.isin(label, short), -1, label), names


def first_of_each(
    training: Int64[np.ndarray, "training"], label: Int64[np.ndarray, "n"], count: int
) -> Int64[np.ndarray, "some"]:
    """The first `count` rows of each class."""
    truth = label[training]
    chosen = [training[truth == number][:count] for number in np.unique(truth)]
    return np.concatenate(chosen)


STRENGTH = {"softmax": 10.0, "svm": 1.0}
"""Weight of the loss against the squared weights (scikit-learn's C)."""
STEPS = 300
SLOPE = 1e-4
"""Largest slope of the mean loss at which the softmax is done; at 1e-3 it may not even begin."""
LOSS_STEP = 1e-7
"""Relative change of the loss at which the support vector machine is done."""


@dataclass(frozen=True)
class Cut:
    """A linear classifier; `scores` are larger for likelier classes."""

    mean: Float32[np.ndarray, "d"]
    weight: Float32[np.ndarray, "d classes"]
    bias: Float32[np.ndarray, "classes"]

    def scores(self, features: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n classes"]:
        result: Float32[np.ndarray, "n classes"]
        result = (_unit(features) - self.mean) @ self.weight + self.bias
        return result


Fit = Callable[[np.ndarray, np.ndarray, int, float], tuple[np.ndarray, np.ndarray]]


def trained(
    kind: str,
    features: Float32[np.ndarray, "n d"],
    label: Int64[np.ndarray, "n"],
    classes: int,
    strength: float | None = None,
) -> Cut:
    """kind: `softmax` or `svm`. label: 0 … classes - 1, each there at least once."""
    unit = _unit(features)
    mean = unit.mean(0)
    spread = np.float32(np.sqrt(((unit - mean) ** 2).sum(1).mean()) or 1)
    least = STRENGTH[kind] if strength is None else strength
    weight, bias = KINDS[kind]((unit - mean) / spread, label, classes, least)
    return Cut(mean, (weight / spread).astype(np.float32), bias.astype(np.float32))


def _softmax(
    features: np.ndarray, label: np.ndarray, classes: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression by scikit-learn."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # here: it takes a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # STEPS are enough for the classes
        # With one picture a class it asks whether this is a regression.
        warnings.filterwarnings("ignore", message="The number of unique classes")
        fit = LogisticRegression(C=strength, max_iter=STEPS, tol=SLOPE).fit(features, label)
    if classes == 2:  # of two, scikit-learn keeps the difference
        zero = np.zeros_like(fit.coef_[0])
        return np.stack([zero, fit.coef_[0]], 1), np.array([0, fit.intercept_[0]])
    return fit.coef_.T, fit.intercept_


def _svm(
    features: np.ndarray, label: np.ndarray, classes: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """One class against all others, squared hinge loss, all classes at once.

    The problem that scikit-learn's LinearSVC solves, the bias among the weights; that one takes
    ten times as long with 101 classes.
    """
    wide = np.concatenate([features, np.ones((len(features), 1), np.float32)], 1)
    sign = np.where(label[:, None] == np.arange(classes), 1, -1).astype(np.float32)

    def loss(flat: Float64[np.ndarray, "w"]) -> tuple[float, Float64[np.ndarray, "w"]]:
        weight = flat.reshape(-1, classes).astype(np.float32)
        short = np.maximum(0, 1 - sign * (wide @ weight))
        slope = weight - 2 * strength * (wide.T @ (short * sign))
        value = (flat**2).sum() / 2 + strength * (short.astype(np.float64) ** 2).sum()
        return float(value), slope.ravel().astype(np.float64)

    start = np.zeros(wide.shape[1] * classes)
    limits = {"maxiter": STEPS, "ftol": LOSS_STEP}
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options=limits).x
    weight = best.reshape(-1, classes)
    return weight[:-1], weight[-1]


KINDS: dict[str, Fit] = {"softmax": _softmax, "svm": _svm}


def per_class_accuracy(
    scores: Float32[np.ndarray, "n classes"], label: Int64[np.ndarray, "n"]
) -> Float64[np.ndarray, "classes"]:
    """Part of each class's pictures with the class's score largest; NaN for a class without."""
    right = scores.argmax(1) == label
    total = np.bincount(label, minlength=scores.shape[1])
    hits = np.bincount(label, weights=right, minlength=scores.shape[1])
    return np.where(total > 0, hits / np.maximum(total, 1), np.nan)


def softmax(
    scores: Float32[np.ndarray, "n classes"],
) -> Float64[np.ndarray, "n classes"]:
    """Probabilities of the classes."""
    raised = np.exp(scores.astype(np.float64) - scores.max(1, keepdims=True))
    share: Float64[np.ndarray, "n classes"] = raised / raised.sum(1, keepdims=True)
    return share


def average_precision(score: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float:
    """Area under precision over recall, precision made to fall only; NaN without positives.

    Of equal scores all are taken at once. Source: the PASCAL VOC development kit from 2010 on.
    """
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits, sorted_score = np.cumsum(positive[order]), score[order]
    last = np.append(sorted_score[1:] != sorted_score[:-1], True)
    recall = hits[last] / hits[-1]
    precision = hits[last] / (np.flatnonzero(last) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * falling).sum())


def _unit(features: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Float32[np.ndarray, "n d"] = features / np.where(length > 0, length, 1)
    return unit.astype(np.float32)


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
            **arguments(options, ask.run("features")),
            training=ask.progress("classifiers"),
        )
    say_short(ask, result.short)
    return result


def say_short(ask: Ask, names: Sequence[str]) -> None:
    if names:
        ask.say(f"too few pictures to test, so left out: {', '.join(names)}")
