"""Transfer: a new softmax on frozen features of other classes, or of lists of several classes.

Source: Zeiler and Fergus 2014, section 5.2, tables 4 and 5, figure 9.

Source: Zeiler and Fergus 2014, section 5.2 and table 6: a softmax over VOC 2012's twenty classes on
frozen features, "one exclusive prediction for each image", judged by average precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64

from convscope.core.errors import DataError, UsageError, nearest
from convscope.core.run import PLAIN, Progress, Run
from convscope.network.arguments import FolderLike, Layer, pictures_of, taking
from convscope.network.load import load
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.pictures.annotations import ABSENT, HARD, SHOWN, Lists, numbers_of, read_lists
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Pictures
from convscope.records.features import Embedding
from convscope.representations.embedding import VectorKind, default_layer, embedding
from convscope.representations.predict import evaluate
from convscope.studies.base import Ask, arguments
from convscope.studies.probes.study import (
    TEST,
    Division,
    average_precision,
    divisions,
    enough,
    first_of_each,
    per_class_accuracy,
    protocol,
    require_folds,
    say_short,
    softmax,
    trained,
)
from convscope.studies.retrieval.record import Duplicates
from convscope.studies.retrieval.study import duplicates
from convscope.studies.transfer import ListOptions, Options
from convscope.studies.transfer.record import PAPER, ListTransfer, Transfer
from convscope.training.recipe import Recipe, recipe
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
    vector: VectorKind = "auto",
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
    judged after its best epoch on the test pictures, which favours it. run: progress of the pass
    over the pictures; training: of the classifiers.

    Raises as `embedding` and `train`, and UsageError U429 (a number), U431 (scratch without
    runs), DataError D175 (no classes), D176 (too few pictures). A class too small for
    the largest number is left out, and named in `short`.
    """
    counts = tuple(sorted(set(per_class)))
    require_folds(counts, test, folds)
    _require_runs(scratch, runs)
    network = whole(network)
    layer = default_layer(network) if layer is None else layer
    with opened(folder) as pictures:
        result = embedding(network, pictures, layer, vector=vector, cache=cache, run=run)
        plan = _Folds.of(result[layer], without, counts, test=test, folds=folds, seed=run.seed)
        tables = plan.tables(training) | plan.scratch(pictures, scratch, runs)
    return plan.record(layer, tables, "" if scratch is None else scratch.model, without, run.seed)


def _require_runs(scratch: Recipe | None, runs: Path | str | None) -> None:
    """What training from scratch needs. Raises UsageError U431, EnvironmentFault R623."""
    if scratch is not None and runs is None:
        raise UsageError("U431", "scratch", "needs a folder for its runs", next_step="give runs")
    if scratch is not None:
        require_extra()


@dataclass(frozen=True)
class _Folds:
    """Features, and which of their pictures teach and which test in each fold."""

    features: Embedding
    label: Int64[np.ndarray, "n"]
    """-1 for pictures that take no part."""
    counts: tuple[int, ...]
    """Training pictures of a class."""
    parts: list[Division]
    left_out: int
    short: tuple[str, ...]
    """Classes with too few pictures."""

    @classmethod
    def of(
        cls,
        features: Embedding,
        without: Duplicates | None,
        counts: tuple[int, ...],
        *,
        test: int,
        folds: int,
        seed: int,
    ) -> _Folds:
        usable = features.label
        if without is not None:
            usable = np.where(np.isin(features.number, without.first_number), -1, usable)
        label, short = enough(usable, features.classes, counts[-1])
        parts = list(divisions(label, counts[-1], test, folds=folds, seed=seed))
        return cls(features, label, counts, parts, int((usable != features.label).sum()), short)

    def tables(self, training: Progress | None) -> dict[str, Float64[np.ndarray, "n _"]]:
        """Accuracy and average precision, as fields of the record."""
        features, label, counts, parts = self.features, self.label, self.counts, self.parts
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
        return {
            "accuracy": np.nanmean(accuracy, 2),
            "precision": np.nanmean(precision, 2),
            "each": accuracy.mean(1),
        }

    def scratch(
        self, folder: Pictures, recipe: Recipe | None, runs: Path | str | None
    ) -> dict[str, Float64[np.ndarray, "n folds"]]:
        """Accuracy of the recipe's network, NaN without one, as a field of the record.

        One run folder for each number and fold; what is finished there is not trained again.
        """
        accuracy = np.full((len(self.counts), len(self.parts)), np.nan)
        if recipe is None or runs is None:
            return {"scratch": accuracy}
        features = self.features
        for fold, (pool, check) in enumerate(self.parts):
            judging = folder.subset(sorted(features.number[check].tolist()))
            for row, count in enumerate(self.counts):
                rows = first_of_each(pool, features.label, count)
                teaching = folder.subset(sorted(features.number[rows].tolist()))
                run = train(recipe, teaching, judging, Path(runs) / f"{count}-fold{fold}")
                result = evaluate(load(str(run.folder)), judging)
                accuracy[row, fold] = float(np.nanmean(result.per_class))
        return {"scratch": accuracy}

    def record(
        self,
        layer: str,
        tables: dict[str, Float64[np.ndarray, "n _"]],
        recipe: str,
        without: Duplicates | None,
        seed: int,
    ) -> Transfer:
        features, label = self.features, self.label
        return Transfer(
            layer=layer,
            vector=features.vector,
            per_class=self.counts,
            **tables,
            test=len(self.parts[0][1]),
            classes=tuple(features.classes[number] for number in np.unique(label[label >= 0])),
            recipe=recipe,
            duplicates=-1 if without is None else without.pictures,
            left_out=self.left_out,
            short=self.short,
            origin={**features.origin, **protocol(seed), "method": "transfer"},
        )


def from_command(ask: Ask, options: Options | ListOptions) -> Transfer | ListTransfer:
    if isinstance(options, ListOptions):
        return _lists_from_command(ask, options)
    if options.beside and options.beside not in PAPER:
        what = f"the paper has no such pictures; {nearest(options.beside, PAPER)}"
        raise UsageError("U432", options.beside, what)
    plan = None if options.scratch is None else recipe(options.scratch, options.changes or ())
    folder, network = ask.pictures(), ask.network()
    with folder:
        twice = None
        if options.source is not None:
            twice = duplicates(
                network,
                folder,
                options.source,
                vector=options.vector,
                cache=options.cache,
                run=ask.run("looking"),
            )
            ask.say(twice.summary())
        result = transfer(
            network,
            folder,
            **arguments(options, ask.run("features")),
            without=twice,
            scratch=plan,
            runs=None if plan is None else ask.out.with_name(f"{ask.out.name}-runs"),
            training=ask.progress("classifiers"),
        )
    say_short(ask, result.short)
    return result


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
    vector: VectorKind = "auto",
    cache: Path | str | None = None,
    run: Run = PLAIN,
) -> ListTransfer:
    """Average precision of each class, of a softmax on frozen features of a layer.

    folder: holds the pictures of both lists. teach, judge: see `read_lists`. layer: by default the
    last step before the scores. A picture that shows several classes teaches each of them; the
    score of a class is its softmax probability. Where a class is hard to see, the picture does not
    teach it, and is not counted when it is judged.

    Raises as `embedding` and `numbers_of`, and DataError D209 (no picture of a class in a list).
    """
    network = whole(network)
    layer = default_layer(network) if layer is None else layer
    classes = tuple(sorted({*teach.classes, *judge.classes}))
    with opened(folder) as pictures:
        places = [numbers_of(pictures, lists) for lists in (teach, judge)]
        wanted = sorted({number for place in places for number in place.values()})
        part = pictures.subset(wanted)
        result = embedding(network, part, layer, vector=vector, cache=cache, run=run)
    features = result[layer]
    row = {wanted[number]: row for row, number in enumerate(features.number.tolist())}
    taught, judged = (
        _Marks.of(lists, place, row, classes)
        for lists, place in zip((teach, judge), places, strict=True)
    )
    return _record(layer, features, taught, judged, classes)


def _record(
    layer: str, features: Embedding, taught: _Marks, judged: _Marks, classes: tuple[str, ...]
) -> ListTransfer:
    return ListTransfer(
        layer=layer,
        vector=features.vector,
        classes=classes,
        precision=_precision(features, taught, judged, classes),
        taught=taught.shown.sum(0),
        judged=judged.shown.sum(0),
        pictures=(len(taught.rows), len(judged.rows)),
        several=int((taught.shown.sum(1) > 1).sum()),
        hard=int((judged.truth == HARD).sum()),
        origin={**features.origin, **protocol(0), "method": "transfer_lists"},
    )


class _Marks(NamedTuple):
    """A list's usable pictures, and what they show."""

    rows: Int64[np.ndarray, "n"]
    """Of the features."""
    truth: Truth

    @property
    def shown(self) -> Bool[np.ndarray, "n classes"]:
        return np.asarray(self.truth == SHOWN)

    @classmethod
    def of(
        cls, lists: Lists, places: dict[str, int], row: dict[int, int], classes: tuple[str, ...]
    ) -> _Marks:
        """places: numbers of the list's pictures; row: of each usable one, in the features."""
        usable = [(row[number], name) for name, number in places.items() if number in row]
        truth = np.full((len(usable), len(classes)), ABSENT, np.int8)
        column = {name: place for place, name in enumerate(classes)}
        for line, (_, name) in enumerate(usable):
            for key, value in lists.shown[name].items():
                truth[line, column[key]] = value
        return cls(np.array([place for place, _ in usable], np.int64), truth)


def _precision(
    features: Embedding, taught: _Marks, judged: _Marks, classes: tuple[str, ...]
) -> Float64[np.ndarray, "classes"]:
    for what, marks in (("teach", taught), ("judge", judged)):
        bare = np.flatnonzero(~marks.shown.any(0))
        if len(bare):
            said = f"no usable picture of the list to {what} by shows this class"
            raise DataError("D209", classes[int(bare[0])], said)
    values = np.asarray(features.values)
    copies, label = np.nonzero(taught.shown)
    cut = trained("softmax", values[taught.rows[copies]], label, len(classes))
    share = softmax(cut.scores(values[judged.rows]))
    counted = judged.truth != HARD
    each = [
        average_precision(share[use, number], judged.shown[use, number])
        for number, use in enumerate(counted.T)
    ]
    return np.array(each)


def _lists_from_command(ask: Ask, options: ListOptions) -> ListTransfer:
    lists = read_lists(options.teach), read_lists(options.judge)
    with ask.pictures() as folder:
        result = transfer_lists(
            ask.network(), folder, *lists, **arguments(options, ask.run("features"))
        )
    ask.say(
        f"{result.pictures[0]:,} pictures to teach, {result.several:,} of them several classes; "
        f"{result.pictures[1]:,} to judge, {result.hard:,} times a class too hard to see"
    )
    return result
