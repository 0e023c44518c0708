"""Which pictures does a layer hold for alike, and which occur twice?

Source: Krizhevsky et al. 2012, figure 4 (right): the six training pictures with the smallest
Euclidean distance to a test picture in the last hidden layer. Duplicates between two sets by
normalised correlation: Zeiler and Fergus 2014, section 5.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from convscope.core.errors import UsageError
from convscope.core.run import PLAIN, Run
from convscope.network.arguments import FolderLike, Layer, pictures_of, taking
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.pictures.framing import Framing
from convscope.pictures.opening import is_file, open_all, opened
from convscope.pictures.pictures import Pictures
from convscope.records.features import Embedding
from convscope.representations.embedding import (
    METRICS,
    PIXELS,
    Metric,
    VectorKind,
    default_layer,
    embedding,
    nearest_vectors,
)
from convscope.studies.base import Ask, Illustrated, arguments
from convscope.studies.retrieval import Options
from convscope.studies.retrieval.record import Duplicates, Neighbours

PIXELS_FROM = 0.95
FEATURES_FROM = 0.85
"""Correlation and cosine from which two pictures are flagged; see docs/similar.md for how often
the same picture, changed, and different pictures lie above them."""
PARTNERS = 5
"""Nearest pictures looked at for each: more copies of one picture than that are not all named."""


@taking(queries=pictures_of, folder=pictures_of)
@recorded
def similar(
    network: Network,
    queries: FolderLike,
    folder: FolderLike | None = None,
    layer: Layer = None,
    *,
    k: int = 6,
    metric: Metric = "euclidean",
    vector: VectorKind = "auto",
    cache: Path | str | None = None,
    run: Run = PLAIN,
) -> Neighbours:
    """The k nearest pictures of a folder to each query, by the features of one layer.

    queries: a picture's file, or a folder. folder: where to look; the queries' own by default,
    and then a picture is not its own neighbour. layer: by default the last step before the
    scores; `pixels` for small grey pictures. vector, cache: see `embedding`.

    Raises as `embedding`, and UsageError U426 (k or metric).
    """
    require_search(k, metric)
    network = whole(network)
    layer = default_layer(network) if layer is None else layer
    embedded = partial(embedding, network, layers=[layer], vector=vector, cache=cache)
    asked, base, alone = _features(embedded, queries, folder, run)
    ours, theirs = asked[layer], base[layer]
    own = np.arange(len(ours.name)) if alone else None
    nearest, distance = nearest_vectors(ours.values, theirs.values, k, metric=metric, without=own)
    return Neighbours(
        layer=layer,
        metric=metric,
        **_pictures(ours, theirs),
        nearest=nearest,
        distance=distance.astype(np.float32),
        same_folder=alone,
        origin=_origin("similar", ours, theirs),
    )


@taking(folder=pictures_of, other=pictures_of)
@recorded
def duplicates(
    network: Network,
    folder: FolderLike,
    other: FolderLike | None = None,
    layer: Layer = None,
    *,
    pixels_from: float = PIXELS_FROM,
    features_from: float = FEATURES_FROM,
    vector: VectorKind = "auto",
    cache: Path | str | None = None,
    run: Run = PLAIN,
) -> Duplicates:
    """Pictures of `folder` (a test set) that occur in `other` (a training set), or in itself.

    Flagged are equal files, small grey pictures with a correlation from `pixels_from`, and
    features of the layer with a cosine from `features_from`. Near ones are for a person to look
    at: nothing is removed. Of each picture the PARTNERS nearest are looked at.

    Raises as `embedding`, and UsageError U428 on a threshold that is no cosine.
    """
    for name, value in (("pixels_from", pixels_from), ("features_from", features_from)):
        if not -1 <= value <= 1:
            raise UsageError("U428", f"{name}={value}", "is no cosine, from -1 to 1")
    network = whole(network)
    layer = default_layer(network) if layer is None else layer
    embedded = partial(embedding, network, layers=[PIXELS, layer], vector=vector, cache=cache)
    asked, base, alone = _features(embedded, folder, other, run)
    kinds = _pairs(asked, base, layer, alone, (pixels_from, features_from))
    return _duplicates(asked, base, layer, kinds, (pixels_from, features_from), alone)


def _pictures(ours: Embedding, theirs: Embedding) -> dict[str, Any]:
    """The record's fields of the queries and of the pictures that were searched."""
    return {
        "queries": ours.name,
        "query_number": ours.number,
        "query_class": _classes(ours),
        "names": theirs.name,
        "number": theirs.number,
        "name_class": _classes(theirs),
    }


def require_search(k: int, metric: str) -> None:
    """Raise UsageError U426 before anything is computed."""
    if metric not in METRICS or k < 1:
        what = "k is at least 1, and the metric euclidean or cosine"
        raise UsageError("U426", f"k={k}, metric={metric}", what)


def _features(
    embedded: Callable[..., dict[str, Embedding]],
    queries: FolderLike,
    folder: FolderLike | None,
    run: Run,
) -> tuple[dict[str, Embedding], dict[str, Embedding], bool]:
    """Of the queries and of what is searched, and whether these are one folder."""
    with ExitStack() as stack:
        ours = stack.enter_context(opened(_named(queries)))
        asked = embedded(ours, run=run.inside("queries"))
        if folder is None:
            return asked, asked, True
        theirs = stack.enter_context(opened(folder))
        if [*ours.paths] == [*theirs.paths]:
            return asked, asked, True
        base = embedded(theirs, run=run.inside("searched"))
    return asked, base, False


def _named(given: FolderLike) -> FolderLike:
    """A file's name means a folder of one picture."""
    if isinstance(given, str | Path) and is_file(given):
        return open_all([str(given)])[0]
    return given


def _classes(result: Embedding) -> tuple[str, ...]:
    return tuple("" if label < 0 else result.classes[label] for label in result.label)


Kinds = dict[tuple[int, int], str]
"""By rows of the two embeddings."""


def _pairs(
    asked: dict[str, Embedding],
    base: dict[str, Embedding],
    layer: str,
    alone: bool,
    least: tuple[float, float],
) -> Kinds:
    result = _equal_files(asked[layer], base[layer], alone)
    own = np.arange(len(asked[layer].name)) if alone else None
    for name, kind, threshold in ((PIXELS, "pixels", least[0]), (layer, "features", least[1])):
        number, distance = nearest_vectors(
            asked[name].values, base[name].values, PARTNERS, metric="cosine", without=own
        )
        for row, place in np.argwhere(distance <= 1 - threshold).tolist():
            pair = (row, int(number[row, place]))
            pair = (min(pair), max(pair)) if alone else pair
            result.setdefault(pair, kind)
    return result


def _equal_files(ours: Embedding, theirs: Embedding, alone: bool) -> Kinds:
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in enumerate(theirs.digest):
        rows[digest.tobytes()].append(row)
    return {
        (row, other): "bytes"
        for row, digest in enumerate(ours.digest)
        for other in rows[digest.tobytes()]
        if not alone or other > row
    }


def _duplicates(
    asked: dict[str, Embedding],
    base: dict[str, Embedding],
    layer: str,
    kinds: Kinds,
    least: tuple[float, float],
    alone: bool,
) -> Duplicates:
    ours, theirs = asked[layer], base[layer]
    pairs = np.array(list(kinds), np.int64).reshape(-1, 2)
    alike = [_cosine(asked[name], base[name], pairs) for name in (PIXELS, layer)]
    rank = np.array([("bytes", "pixels", "features").index(kind) for kind in kinds.values()], int)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -np.maximum(*alike), rank))
    first, second = pairs[order].T
    own = np.arange(len(ours.name)) if alone else None
    _, distance = nearest_vectors(ours.values, theirs.values, 1, metric="cosine", without=own)
    classes = (_classes(ours), _classes(theirs))
    return Duplicates(
        first=tuple(ours.name[row] for row in first),
        second=tuple(theirs.name[row] for row in second),
        first_number=ours.number[first],
        second_number=theirs.number[second],
        kind=tuple(list(kinds.values())[place] for place in order),
        correlation=alike[0][order].astype(np.float32),
        cosine=alike[1][order].astype(np.float32),
        layer=layer,
        pixels_from=least[0],
        features_from=least[1],
        seen=(len(ours.name), len(theirs.name)),
        nearest=(1 - distance[:, 0]).astype(np.float32),
        classes=tuple((classes[0][a], classes[1][b]) for a, b in zip(first, second, strict=True)),
        origin=_origin("duplicates", ours, theirs),
    )


def _cosine(
    ours: Embedding, theirs: Embedding, pairs: Int64[np.ndarray, "n 2"]
) -> Float64[np.ndarray, "n"]:
    a = np.asarray(ours.values[pairs[:, 0]], np.float64)
    b = np.asarray(theirs.values[pairs[:, 1]], np.float64)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine: Float64[np.ndarray, "n"] = (a * b).sum(1) / np.where(length > 0, length, 1)
    return cosine


def _origin(method: str, ours: Embedding, theirs: Embedding) -> dict[str, object]:
    return {
        **ours.origin,
        "method": method,
        "searched": theirs.origin["pictures"],
        "searched_contents_sha256": theirs.origin["contents_sha256"],
        "searched_sha256": theirs.origin["pictures_sha256"],
        "vector": ours.vector,
    }


def from_command(ask: Ask, options: Options) -> Illustrated:
    """With small pictures of what its figure shows."""
    require_search(options.k, options.metric)
    asked = ask.pictures([options.queries])  # may be a single one
    base = None if options.inside is None else ask.pictures(options.inside)
    network = ask.network()
    with asked, base or asked:
        run = ask.run("looking")
        if options.twice:
            pairs = duplicates(
                network,
                asked,
                base,
                options.layer,
                pixels_from=options.pixels_from,
                features_from=options.features_from,
                vector=options.vector,
                cache=options.cache,
                run=run,
            )
            rows = pairs.rows()
            ours = _small(asked, pairs.first_number[rows])
            return Illustrated(pairs, (ours, _small(base or asked, pairs.second_number[rows])))
        result = similar(network, asked, base, **arguments(options, run))
        rows = result.rows()
        places = result.nearest[rows]
        ours = _small(asked, result.query_number[rows])
        return Illustrated(
            result, (ours, _small(base or asked, result.number[places[places >= 0]]))
        )


def _small(
    folder: Pictures, numbers: Int64[np.ndarray, "n"], side: int = 160
) -> dict[int, UInt8[np.ndarray, "side side 3"]]:
    """The middle squares of pictures, by number."""
    wanted = sorted(set(numbers.tolist()))
    return {p.number: p.pixels for p in folder.read(Framing(side, (side, side)), wanted)}
