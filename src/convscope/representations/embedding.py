"""Embeddings (feature vectors) of a folder's pictures, their cache, exact nearest neighbours.

One pass for all layers asked for, in the memory of one part; rows go to disk as they come.
Batches are canonical (batch number = picture number // BATCH, unusable places blank), as forward
passes of other batch sizes round differently.

No index and no approximation: every distance is computed, in chunks, in double precision, and
those of the nearest once more from the differences, so that equal vectors are at exactly 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from convscope import __version__
from convscope.core.errors import DataError, ModelError, OutputError, UsageError
from convscope.core.publish import publish_folder
from convscope.core.run import PLAIN, Run
from convscope.lens.lens import Lens
from convscope.lens.twin import bare
from convscope.network.arguments import FolderLike, Layers, pictures_of, taking
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded, versions, weights_sha256
from convscope.network.tuning import blank
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Picture, Pictures, contents
from convscope.records.features import Embedding
from convscope.scale.engine import Job, passed
from convscope.scale.segments import Arrays
from convscope.trace.layers import stages

VectorKind = str | int
"""`auto`, `flat`, or the side of a grid."""
ROOM = 4608
"""Numbers that `auto` allows: half of ZFNet's layer 5 (256 maps of 6 × 6), which in our trials
cost no accuracy; the vectors of 4,000 pictures are then 74 MB."""
THUMB = 32
"""Side in pixels of the small grey picture that stands for the layer `pixels`."""


def require_way(way: VectorKind) -> None:
    """Raise UsageError U425 unless this is a way to make a vector."""
    if way in ("auto", "flat") or (isinstance(way, int) and way >= 1):
        return
    step = "give auto, flat, or a grid's side"
    raise UsageError("U425", f"vector={way}", "is no way to a vector", next_step=step)


def vectors(output: Float[Tensor, "b *shape"], way: VectorKind) -> Float[Tensor, "b d"]:
    """flat: all numbers in a row, as in the paper. A grid of side g: maps are averaged over at
    most g × g equal parts, tokens over all. auto: flat where there are at most ROOM numbers, else
    the largest grid that fits (at least 1)."""
    side = _side(tuple(output.shape[1:]), way)
    if side is None:
        return output.flatten(1).float()
    if output.dim() == 3:
        return output.float().mean(1)
    height, width = output.shape[2:]
    return F.adaptive_avg_pool2d(output.float(), (min(side, height), min(side, width))).flatten(1)


def vector_words(shape: tuple[int, ...], way: VectorKind) -> str:
    """The way taken for a layer of this shape, for the record's origin."""
    side = _side(shape, way)
    if side is None:
        return "flattened"
    if len(shape) == 2:
        return f"mean of {shape[0]} tokens"
    return f"mean over a grid of {min(side, shape[1])} × {min(side, shape[2])}"


def _side(shape: tuple[int, ...], way: VectorKind) -> int | None:
    """Of the grid; None where nothing is averaged."""
    if way == "flat" or len(shape) not in (2, 3) or (way == "auto" and prod(shape) <= ROOM):
        return None
    if len(shape) == 2:
        return 1
    side = int(way) if way != "auto" else max(1, int((ROOM / shape[0]) ** 0.5))
    return None if side >= max(shape[1:]) else side


def small_grey(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """Small grey pictures without their mean: the cosine of two is their normalised correlation.

    Source: Zeiler and Fergus 2014, section 5.2, who looked for duplicates by it.
    """
    grey = F.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), THUMB).flatten(1)
    return grey - grey.mean(1, keepdim=True)


FILE = "values.npy"


class Rows:
    """An array that grows by rows: in a folder's `values.npy`, or in memory.

    Written, never mapped: where the disk is full, a write says so, and a mapped page kills Python.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file: BinaryIO | None = None if folder is None else (folder / FILE).open("xb")
        self._parts: list[Float32[np.ndarray, "_ d"]] = []
        self._count, self._wide = 0, 0

    def add(self, rows: Float32[np.ndarray, "_ d"]) -> None:
        if not len(rows):
            return
        if self._file is None:
            self._parts.append(rows)
            return
        if not self._count:
            self._wide = rows.shape[1]
            self._header()
        self._file.write(np.ascontiguousarray(rows, np.float32).tobytes())
        self._count += len(rows)

    def array(self) -> Float32[np.ndarray, "n d"]:
        """All rows; none can be added after that."""
        if self._file is None:
            return np.concatenate(self._parts)
        self._file.seek(0)
        self._header()  # of the same length: NumPy leaves room for the digits of the first axis
        self._file.close()
        result: Float32[np.ndarray, "n d"] = np.load(self._file.name, mmap_mode="r")
        return result

    def _header(self) -> None:
        assert self._file is not None
        shape = (self._count, self._wide)
        facts = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, facts)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def key_of(network: Network, folder: Pictures, layer: str, vector: Any, batch: int) -> str:
    """A folder's name that is another one if anything that decides the features is another."""
    facts = {
        "weights": weights_sha256(bare(network.model)),
        "model": [network.spec, repr(bare(network.model))],
        "preprocess": network.preprocess.to_json(),
        "layer": layer,
        "vector": vector,
        "pictures": folder.sha256,
        "times": _times(folder),
        "batch": batch,
        "version": __version__,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9.]', '_', layer)}-{digest[:16]}"


def _times(folder: Pictures) -> str:
    """Hash of the files' times of change, which a folder's own hash leaves out."""
    digest = hashlib.sha256(folder.stamp.encode())
    for source in folder.sources:
        path = source if isinstance(source, bytes) else getattr(source, "archive", b"")
        with suppress(OSError):
            digest.update(str(os.stat(path).st_mtime_ns).encode())  # noqa: PTH116
    return digest.hexdigest()


def kept(place: Path, plans: Sequence[_Plan]) -> dict[str, Embedding]:
    """Those of the features that are in the store, and whole; damaged ones are removed."""
    result = {}
    for folder, layer in ((place / plan.key, plan.layer) for plan in plans):
        if folder.is_dir():
            try:
                result[layer] = Embedding.load(folder, whole=True)
            except DataError as fault:
                cause = fault.__cause__
                if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError):
                    shutil.rmtree(folder, ignore_errors=True)
    return result


def keeping(
    targets: Sequence[Path], begun: Sequence[Path], fill: Callable[[Sequence[Path]], None]
) -> None:
    """Let `fill` write into new folders, which then get these names, each as a whole.

    begun: those that wait for the rest. Raises EnvironmentFault R602 (disk full) or R603; another
    process that wrote the same is fine.
    """
    if not targets:
        fill(begun)
        return
    first, *rest = targets
    try:
        publish_folder(first, lambda folder: keeping(rest, [*begun, folder], fill))
    except OutputError:
        if not (first / FILE).exists():
            raise


BATCH = 16
"""Pictures computed together: the largest output of a VGG for them is 205 MB."""
PIXELS = "pixels"
"""The layer below the first: the picture itself, small and grey."""


@taking(folder=pictures_of)
@recorded
def embedding(
    network: Network,
    folder: FolderLike,
    layers: Layers = None,
    *,
    vector: VectorKind = "auto",
    cache: Path | str | None = None,
    run: Run = PLAIN,
) -> dict[str, Embedding]:
    """The features of layers for all usable pictures of a folder, by layer.

    layers: module names, or `pixels`; by default all `stages`. vector: how an output becomes a
    vector, see `vectors`. cache: a folder in which features are kept; those of the same weights,
    layer, pictures (names, sizes, times of change) and vector are read from there, not computed
    again. Without it all is in memory.

    Raises UsageError U376 (a bare module), U377 (no folder), U425 (vector), DataError D118 (too
    many unusable), D161 (none usable), ModelError M500, M502, M503, M520, M522 (as `Lens`), M600
    (features not finite), M601 (no features of single pictures), EnvironmentFault R602, R603.
    """
    require_way(vector)
    network = whole(network)
    with opened(folder) as pictures:
        names = chosen(network, layers)
        shapes = _shapes(network, names)
        plans = [
            _Plan(name, key_of(network, pictures, name, vector, BATCH), shapes[name], vector)
            for name in names
        ]
        place = None if cache is None else Path(cache)
        result = {} if place is None else kept(place, plans)
        missing = [plan for plan in plans if plan.layer not in result]
        if missing:
            result |= _computed(network, pictures, missing, place, run)
    return {name: result[name] for name in names}


def chosen(network: Network, layers: Sequence[str] | str | None) -> list[str]:
    """The layers named, each once; by default all `stages`."""
    if layers is None:
        return stages(network.model, blank(network.model, network.preprocess.shape))
    return list(dict.fromkeys([layers] if isinstance(layers, str) else layers))


def default_layer(network: Network) -> str:
    """The last step before the one that gives the scores: the paper's layer 7."""
    names = chosen(whole(network), None)
    return names[-2] if len(names) > 1 else names[-1]


@dataclass(frozen=True)
class _Plan:
    """One layer that is to be computed."""

    layer: str
    key: str
    shape: tuple[int, ...]
    way: VectorKind

    def of(self, output: Tensor) -> Float[Tensor, "b d"]:
        return small_grey(output) if self.layer == PIXELS else vectors(output, self.way)

    @property
    def vector(self) -> str:
        if self.layer == PIXELS:
            return f"grey, {THUMB} × {THUMB}, less its mean"
        return vector_words(self.shape, self.way)


def _shapes(network: Network, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Of each layer's output for one picture; here unknown layers are refused."""
    two = blank(network.model, network.preprocess.shape).expand(2, -1, -1, -1)
    taps = [name for name in names if name != PIXELS]
    result: dict[str, tuple[int, ...]] = {PIXELS: network.preprocess.shape}
    with Lens(network.model, taps) as lens, torch.inference_mode():
        if taps:
            lens(two)
        for name in taps:
            shape = tuple(lens[name].shape)
            if len(shape) < 2 or shape[0] != 2:
                what = f"puts out {shape} for 2 pictures, which are no features of single pictures"
                raise ModelError("M601", name, what)
            result[name] = shape[1:]
    return result


def _computed(
    network: Network,
    folder: Pictures,
    plans: list[_Plan],
    place: Path | None,
    run: Run,
) -> dict[str, Embedding]:
    made: dict[str, Embedding] = {}

    def fill(places: Sequence[Path | None]) -> None:
        with ExitStack() as stack:
            rows = [stack.enter_context(closing(Rows(where))) for where in places]
            used = list[int]()
            for part in passed(EmbeddingJob(network, plans), folder, run):
                used += part.arrays["used"].tolist()
                for plan, sink in zip(plans, rows, strict=True):
                    sink.add(part.arrays[plan.layer])
            folder.check_bad()
            for plan, sink, where in zip(plans, rows, places, strict=True):
                made[plan.layer] = _record(folder, plan, used, sink.array())
                if where is not None:
                    made[plan.layer].write(where)

    if place is None:
        fill([None] * len(plans))
        return made
    keeping([place / plan.key for plan in plans], [], fill)
    return made | kept(place, plans)


class EmbeddingJob(Job):
    """The features of several layers for all pictures of a folder."""

    name, batch = "embedding", BATCH

    def __init__(self, network: Network, plans: Sequence[_Plan]) -> None:
        self.network, self.plans = network, plans
        self.model, self.framing = network.model, network.preprocess.framing
        self._rows: list[list[Float32[np.ndarray, "_ d"]]] = [[] for _ in plans]
        self._used = list[int]()

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "weights_sha256": weights_sha256(bare(self.network.model)),
            "model": self.network.spec,
            "preprocessing": self.network.preprocess.to_json(),
            "layers": [[plan.layer, plan.vector] for plan in self.plans],
            **versions(),
        }

    @contextmanager
    def looking(self) -> Iterator[Callable[[list[Picture]], object]]:
        seen: dict[str, Tensor] = {}
        edits = {plan.layer: _look(plan, seen) for plan in self.plans if plan.layer != PIXELS}
        preprocess = self.network.preprocess
        like = blank(self.network.model, preprocess.shape)
        with Lens(self.network.model, (), edits) as lens, torch.inference_mode():

            def look(pictures: list[Picture]) -> None:
                images = preprocess.aligned(pictures, BATCH).to(like)
                if edits:
                    lens(images)
                here = [picture.number % BATCH for picture in pictures]
                for plan, rows in zip(self.plans, self._rows, strict=True):
                    values = plan.of(images) if plan.layer == PIXELS else seen[plan.layer]
                    rows.append(_finite(values[here].cpu().numpy(), plan.layer, pictures))
                self._used += [picture.number for picture in pictures]

            yield look

    @property
    def pending(self) -> int:
        return sum(values.nbytes for rows in self._rows for values in rows)

    def take(self) -> Arrays:
        arrays = {"used": np.array(self._used, np.int64)}
        for plan, rows in zip(self.plans, self._rows, strict=True):
            wide = rows[0].shape[1] if rows else 0
            arrays[plan.layer] = np.concatenate([np.zeros((0, wide), np.float32), *rows])
        self._rows, self._used = [[] for _ in self.plans], []
        return arrays

    def merge(self, one: Arrays, other: Arrays) -> Arrays:
        if not (len(one["used"]) and len(other["used"])):  # one has no width
            return one if len(one["used"]) else other
        return super().merge(one, other)


def _look(plan: _Plan, seen: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Take the vectors while the output is in hand; a later layer may work in place on it."""

    def look(output: Tensor) -> Tensor:
        made = plan.of(output)
        seen[plan.layer] = made.clone() if made.data_ptr() == output.data_ptr() else made
        return output

    return look


def _finite(
    values: Float32[np.ndarray, "b d"], layer: str, pictures: list[Picture]
) -> Float32[np.ndarray, "b d"]:
    wrong = ~np.isfinite(values).all(1)
    if wrong.any():
        name = pictures[int(wrong.argmax())].name
        raise ModelError("M600", layer, f"its features of {name} are not finite")
    return values


def _record(
    folder: Pictures,
    plan: _Plan,
    used: list[int],
    values: Float32[np.ndarray, "n d"],
) -> Embedding:
    labels = [folder.labels[number] for number in used]
    digests = [np.frombuffer(folder.digest(number), np.uint8) for number in used]
    return Embedding(
        layer=plan.layer,
        values=values,
        shape=plan.shape,
        vector=plan.vector,
        number=np.array(used, np.int64),
        name=tuple(folder.names[number] for number in used),
        label=np.array([-1 if label is None else label for label in labels], np.int64),
        classes=folder.classes,
        digest=np.stack(digests),
        origin={
            "method": "embedding",
            "pictures": folder.place,
            "contents_sha256": contents({number: folder.digest(number) for number in used}),
            "batch": BATCH,
        },
    )


Metric = Literal["euclidean", "cosine"]
METRICS: tuple[Metric, ...] = ("euclidean", "cosine")
CHUNK = 8192
"""Vectors compared at a time: 34 MB in double precision at 512 numbers each."""
QUERIES = 256
SPARE = 8
"""Candidates beyond k, as the rounding of dot products may change places."""


def nearest_vectors(
    queries: Float32[np.ndarray, "q d"],
    base: Float32[np.ndarray, "n d"],
    k: int = 6,
    *,
    metric: Metric = "euclidean",
    without: Int64[np.ndarray, "q"] | None = None,
    run: Run = PLAIN,
) -> tuple[Int64[np.ndarray, "q k"], Float64[np.ndarray, "q k"]]:
    """Row numbers in `base` and distances, the nearest first; of equals the lower number.

    base: may stay on disk (mapped): it is read once, in chunks. metric: cosine is 1 − cos, and 1
    where a vector is 0. without: for each query a row that does not count (itself), or -1. Where
    there are fewer than k rows, the rest is -1 at infinity.

    Raises UsageError U426 on k or metric that cannot be, U427 where the lengths differ.
    """
    _require(queries, base, k, metric)
    asked = _ready(np.asarray(queries, np.float64), metric)
    best = np.full((len(asked), 0), -1, np.int64), np.zeros((len(asked), 0))
    for start in range(0, len(base), CHUNK):
        chunk = _ready(np.asarray(base[start : start + CHUNK], np.float64), metric)
        squares, parts = (chunk**2).sum(1), list[Best]()
        for first in range(0, len(asked), QUERIES):
            part = slice(first, first + QUERIES)
            near = squares - 2 * (asked[part] @ chunk.T)  # the query's own square changes no order
            if without is not None:
                own = without[part] - start
                inside = np.flatnonzero((own >= 0) & (own < len(chunk)))
                near[inside, own[inside]] = np.inf
            parts.append(_merged((best[0][part], best[1][part]), near, start, k + SPARE))
        best = _joined(parts)
        run.tick(min(start + CHUNK, len(base)), len(base))
    return _decided(asked, base, best, k, metric)


Best = tuple[Int64[np.ndarray, "q m"], Float64[np.ndarray, "q m"]]


def _ready(rows: Float64[np.ndarray, "n d"], metric: Metric) -> Float64[np.ndarray, "n d"]:
    if metric == "euclidean":
        return rows
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Float64[np.ndarray, "n d"] = rows / np.where(length > 0, length, 1)
    return unit


def _merged(best: Best, near: Float64[np.ndarray, "q c"], start: int, most: int) -> Best:
    """The best so far and the chunk's, whose rows begin at `start`: the nearest, in no order."""
    count = min(most, near.shape[1])
    take = np.argpartition(near, count - 1, axis=1)[:, :count]
    number = np.concatenate([best[0], take + start], axis=1)
    value = np.concatenate([best[1], np.take_along_axis(near, take, axis=1)], axis=1)
    order = np.lexsort((number, value), axis=1)[:, :most]
    return np.take_along_axis(number, order, axis=1), np.take_along_axis(value, order, axis=1)


def _joined(parts: list[Best]) -> Best:
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _decided(
    asked: Float64[np.ndarray, "q d"],
    base: Float32[np.ndarray, "n d"],
    best: Best,
    k: int,
    metric: Metric,
) -> Best:
    """The candidates' distances from the differences, and their final order."""
    result = np.full((len(asked), k), -1, np.int64), np.full((len(asked), k), np.inf)
    for row, query in enumerate(asked):
        number = best[0][row][np.isfinite(best[1][row])]
        rows = _ready(np.asarray(base[number], np.float64), metric)
        square = ((rows - query) ** 2).sum(1)
        if metric == "cosine":  # of unit vectors; to a zero vector it is 1
            distance = np.where(rows.any(1) & query.any(), square / 2, 1.0)
        else:
            distance = np.sqrt(square)
        order = np.lexsort((number, distance))[:k]
        result[0][row, : len(order)] = number[order]
        result[1][row, : len(order)] = distance[order]
    return result


def _require(
    queries: Float32[np.ndarray, "q d"], base: Float32[np.ndarray, "n d"], k: int, metric: str
) -> None:
    if metric not in METRICS or k < 1:
        said = f"k={k}, metric={metric}"
        what = "k is at least 1, and the metric euclidean or cosine"
        raise UsageError("U426", said, what)
    if queries.ndim != 2 or base.ndim != 2 or queries.shape[1] != base.shape[1]:
        what = f"vectors of {queries.shape} and {base.shape} cannot be compared"
        raise UsageError("U427", "", what, next_step="take both from one layer, as one vector")
