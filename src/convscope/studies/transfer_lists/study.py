"""Transfer to lists: a new softmax on frozen features, for pictures that show several classes.

Source: Zeiler and Fergus 2014, section 5.2 and table 6: a softmax over VOC 2012's twenty classes on
frozen features, "one exclusive prediction for each image", judged by average precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64

from convscope.core.errors import DataError
from convscope.core.run import PLAIN, Run
from convscope.network.arguments import FolderLike, Layer, pictures_of, taking
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.pictures.annotations import ABSENT, HARD, SHOWN, Lists, numbers_of, read_lists
from convscope.pictures.opening import opened
from convscope.records.features import Embedding
from convscope.representations.embedding import VectorKind, default_layer, embedding
from convscope.representations.probe import average_precision, softmax, trained
from convscope.studies.base import Ask, arguments
from convscope.studies.probes.study import protocol
from convscope.studies.transfer_lists import Options
from convscope.studies.transfer_lists.record import ListTransfer

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


def from_command(ask: Ask, options: Options) -> ListTransfer:
    lists = read_lists(options.teach), read_lists(options.judge)
    with ask.pictures() as folder:
        result = transfer_lists(
            ask.network(), folder, *lists, **arguments(options, ask.progress("features"))
        )
    ask.say(
        f"{result.pictures[0]:,} pictures to teach, {result.several:,} of them several classes; "
        f"{result.pictures[1]:,} to judge, {result.hard:,} times a class too hard to see"
    )
    return result
