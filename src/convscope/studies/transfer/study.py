"""How well do features learned elsewhere find classes in pictures that show several?

Source: Zeiler and Fergus 2014, section 5.2 and table 6: a softmax over VOC 2012's twenty classes on
frozen features, "one exclusive prediction for each image", judged by average precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int8, Int64

from convscope.errors import DataError, UsageError
from convscope.features.embedding import Way, default_layer, embedding
from convscope.features.predict import evaluate
from convscope.features.probe import (
    TEST,
    Division,
    average_precision,
    divisions,
    enough,
    first_of_each,
    per_class_accuracy,
    require_folds,
    softmax,
    trained,
)
from convscope.network.arguments import FolderLike, Layer, pictures_of, taking
from convscope.network.load import load
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.pictures.annotations import ABSENT, HARD, SHOWN, Lists, numbers_of
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Pictures
from convscope.records.embedding import Embedding
from convscope.run import PLAIN, Progress, Run
from convscope.studies.probes.study import protocol
from convscope.studies.retrieval.record import Duplicates
from convscope.studies.transfer.record import ListTransfer, Transfer
from convscope.training.recipe import Recipe
from convscope.training.trainer import require_extra, train


@taking(folder=pictures_of)
@recorded
def transfer(
    network: Network,
    folder: FolderLike,
    layer: Layer = None,
    *,
    per_class: Sequence[int] = (1, 2, 3, 5, 7, 10, 15, 30),
    test: int = TEST,
    folds: int = 5,
    vector: Way = "auto",
    without: Duplicates | None = None,
    scratch: Recipe | None = None,
    runs: Path | str | None = None,
    cache: Path | str | None = None,
    run: Run = PLAIN,
    training: Progress | None = None,
) -> Transfer:
    """Mean per-class accuracy of a new softmax on the features of a layer, by pictures a class.

    folder: with its classes as folders. layer: by default the last step before the scores.
    In a fold all numbers of pictures share the test pictures, and fewer are some of more.
    without: what `duplicates(network, folder, …)` found; of these, the first pictures are left
    out. scratch: also train this recipe on the same pictures, in folders below `runs`; it is
    judged after its best epoch on the test pictures, which favours it. run: its progress is of the
    pass over the pictures; training: of the classifiers.

    Raises as `embedding` and `train`, and UsageError U429 (a number), U431 (scratch without
    runs), DataError D175 (no classes), D176 (too few pictures). A class too small for
    the largest number is left out, and named in `short`.
    """
    counts = tuple(sorted(set(per_class)))
    require_folds(counts, test, folds)
    if scratch is not None and runs is None:
        raise UsageError("U431", "scratch", "needs a folder for its runs", next_step="give runs")
    if scratch is not None:
        require_extra()
    network = whole(network)
    layer = default_layer(network) if layer is None else layer
    with opened(folder) as pictures:
        found = embedding(network, pictures, layer, vector=vector, cache=cache, run=run)
        features = found[layer]
        usable = _kept(features, without)
        label, short = enough(usable, features.classes, counts[-1])
        parts = list(divisions(label, counts[-1], test, folds=folds, seed=run.seed))
        tables = _tables(features, label, counts, parts, training)
        alone = np.full((len(counts), folds), np.nan)
        if scratch is not None and runs is not None:
            alone = _scratch(pictures, features, counts, parts, scratch, Path(runs))
    present = np.unique(label[label >= 0])
    return Transfer(
        layer=layer,
        vector=features.vector,
        per_class=counts,
        accuracy=np.nanmean(tables[0], 2),
        precision=np.nanmean(tables[1], 2),
        each=tables[0].mean(1),
        scratch=alone,
        test=len(parts[0][1]),
        classes=tuple(features.classes[number] for number in present),
        recipe="" if scratch is None else scratch.model,
        duplicates=-1 if without is None else without.pictures,
        left_out=int((usable != features.label).sum()),
        short=short,
        origin={**features.origin, **protocol(run.seed), "method": "transfer"},
    )


def _kept(features: Embedding, without: Duplicates | None) -> Int64[np.ndarray, "n"]:
    """The labels, -1 for pictures that are left out."""
    if without is None:
        return features.label
    return np.where(np.isin(features.number, without.first_number), -1, features.label)


def _tables(
    features: Embedding,
    label: Int64[np.ndarray, "n"],
    counts: tuple[int, ...],
    parts: list[Division],
    training: Progress | None,
) -> tuple[Float64[np.ndarray, "n folds classes"], Float64[np.ndarray, "n folds classes"]]:
    """Accuracy and average precision of each class."""
    present = np.unique(label[label >= 0])
    shape = (len(counts), len(parts), len(present))
    accuracy, precision = np.zeros(shape), np.zeros(shape)
    values, truth = np.asarray(features.values), np.searchsorted(present, label)
    for fold, (pool, check) in enumerate(parts):
        for row, count in enumerate(counts):
            train = first_of_each(pool, label, count)
            cut = trained("softmax", values[train], truth[train], len(present))
            scores = cut.scores(values[check])
            accuracy[row, fold] = per_class_accuracy(scores, truth[check])
            share = softmax(scores)
            for number in range(len(present)):
                positive = truth[check] == number
                precision[row, fold, number] = average_precision(share[:, number], positive)
            if training is not None:
                training(fold * len(counts) + row + 1, len(parts) * len(counts))
    return accuracy, precision


def _scratch(
    folder: Pictures,
    features: Embedding,
    counts: tuple[int, ...],
    parts: list[Division],
    recipe: Recipe,
    runs: Path,
) -> Float64[np.ndarray, "n folds"]:
    """One run folder for each number and fold; what is finished there is not trained again."""
    found = np.zeros((len(counts), len(parts)))
    for fold, (pool, check) in enumerate(parts):
        judging = folder.subset(sorted(features.number[check].tolist()))
        for row, count in enumerate(counts):
            rows = first_of_each(pool, features.label, count)
            teaching = folder.subset(sorted(features.number[rows].tolist()))
            run = train(recipe, teaching, judging, runs / f"{count}-fold{fold}")
            result = evaluate(load(str(run.folder)), judging)
            found[row, fold] = float(np.nanmean(result.per_class))
    return found


Truth = Int8[np.ndarray, "n classes"]


@taking(folder=pictures_of)
@recorded
def transfer_lists(
    network: Network,
    folder: FolderLike,
    teach: Lists,
    judge: Lists,
    layer: Layer = None,
    *,
    vector: Way = "auto",
    cache: Path | str | None = None,
    run: Run = PLAIN,
) -> ListTransfer:
    """Average precision of each class, of a softmax on frozen features of a layer.

    folder: holds the pictures of both lists. teach, judge: see `read_lists`. layer: by default the
    last step before the scores. A picture that shows several classes teaches each of them, as one
    copy a class; the score of a class is its softmax probability. Pictures in which a class is hard
    to see do not teach it, and are not counted when it is judged.

    Raises as `embedding` and `numbers_of`, and DataError D209 (a class without a picture to teach
    it or to judge it by).
    """
    network = whole(network)
    layer = default_layer(network) if layer is None else layer
    classes = tuple(sorted({*teach.classes, *judge.classes}))
    with opened(folder) as pictures:
        places = [numbers_of(pictures, lists) for lists in (teach, judge)]
        wanted = sorted({number for place in places for number in place.values()})
        part = pictures.subset(wanted)
        found = embedding(network, part, layer, vector=vector, cache=cache, run=run)
    features = found[layer]
    row = {wanted[number]: row for row, number in enumerate(features.number.tolist())}
    rows, truth = zip(
        *(
            _marks(lists, place, row, classes)
            for lists, place in zip((teach, judge), places, strict=True)
        ),
        strict=True,
    )
    precision = _precision(features, rows, truth, classes)
    return ListTransfer(
        layer=layer,
        vector=features.vector,
        classes=classes,
        precision=precision,
        taught=(truth[0] == SHOWN).sum(0),
        judged=(truth[1] == SHOWN).sum(0),
        pictures=(len(rows[0]), len(rows[1])),
        several=int(((truth[0] == SHOWN).sum(1) > 1).sum()),
        hard=int((truth[1] == HARD).sum()),
        origin={**features.origin, **protocol(0), "method": "transfer_lists"},
    )


def _marks(
    lists: Lists, places: dict[str, int], row: dict[int, int], classes: tuple[str, ...]
) -> tuple[Int64[np.ndarray, "n"], Truth]:
    """Rows of the list's usable pictures, and what they show."""
    usable = [(row[number], name) for name, number in places.items() if number in row]
    truth = np.full((len(usable), len(classes)), ABSENT, np.int8)
    column = {name: place for place, name in enumerate(classes)}
    for line, (_, name) in enumerate(usable):
        for key, value in lists.shown[name].items():
            truth[line, column[key]] = value
    return np.array([place for place, _ in usable], np.int64), truth


def _precision(
    features: Embedding,
    rows: tuple[Int64[np.ndarray, "n"], ...],
    truth: tuple[Truth, ...],
    classes: tuple[str, ...],
) -> Float64[np.ndarray, "classes"]:
    for what, marks in zip(("teach", "judge"), truth, strict=True):
        bare = np.flatnonzero(~(marks == SHOWN).any(0))
        if len(bare):
            said = f"no usable picture of the list to {what} by shows this class"
            raise DataError("D209", classes[int(bare[0])], said)
    values = np.asarray(features.values)
    copies, label = np.nonzero(truth[0] == SHOWN)
    cut = trained("softmax", values[rows[0][copies]], label, len(classes))
    share = softmax(cut.scores(values[rows[1]]))
    counted = truth[1] != HARD
    each = [
        average_precision(share[use, number], truth[1][use, number] == SHOWN)
        for number, use in enumerate(counted.T)
    ]
    return np.array(each)
