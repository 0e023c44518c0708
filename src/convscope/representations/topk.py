"""Top-k activations: which pictures of a folder excite each feature map most, and where?

One pass over the pictures, for all layers and maps at once, in the memory of one batch. The
answer does not depend on order, chunks or processes: pictures are computed in canonical batches
(batch number = picture number // size, unusable places blank, the last one filled up), as forward
passes of other batch sizes round differently; and entries are ordered by whole-number keys that
no two pictures share, as `torch.topk` breaks ties as it likes.
Source: Zeiler and Fergus 2014, figure 2 (the nine strongest activations of a map).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError, shown
from convscope.core.run import PLAIN, Run
from convscope.lens.lens import Lens, Reached
from convscope.lens.twin import bare
from convscope.network.arguments import FolderLike, Layers, Model, pictures_of, taking
from convscope.network.network import whole
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import device_words, recorded, versions, weights_sha256
from convscope.network.tuning import Execution, Tuning, blank, require_tuning
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Picture, Pictures
from convscope.records.topk import LAST, NOBODY, TopK, strongest
from convscope.representations import fast
from convscope.scale.engine import Job, merged
from convscope.scale.segments import Arrays
from convscope.trace.layers import chosen_layers

WAITING = 64
"""Pictures that wait to be taken in together: a merge for each batch of a few costs a tenth more.
The answer does not depend on it."""


BESIDE = "beside."
Also = Callable[[Sequence[Picture]], object] | Job | None
TABLES = ("value", "image", "row", "column", "content", "active", "invalid")
Precision = Literal["float32", "fast"]


class Slots:
    """Which pictures lie in the places of a batch."""

    def __init__(self, number: Int64[Tensor, "b"], content: Int64[Tensor, "b"]) -> None:
        self.number = number
        """-1 where there is no usable picture."""
        self.content = content
        self.used: Bool[Tensor, "b"] = number >= 0

    @classmethod
    def of(
        cls,
        pictures: Sequence[Picture],
        size: int,
        device: torch.device,
    ) -> Slots:
        number, content = np.full(size, -1), np.zeros(size, np.int64)
        for picture in pictures:
            place = picture.number % size
            number[place] = picture.number
            content[place] = int.from_bytes(picture.content[:8], "big", signed=True)
        return cls(torch.from_numpy(number).to(device), torch.from_numpy(content).to(device))

    @classmethod
    def joined(cls, slots: Sequence[Slots]) -> Slots:
        return cls(torch.cat([s.number for s in slots]), torch.cat([s.content for s in slots]))

    def has_copies(self, content: Int64[Tensor, "maps k"]) -> bool:
        """May a picture here have the content of another one, or of one in this table?"""
        mine = self.content[self.used]
        return len(set(mine.tolist())) < len(mine) or bool(torch.isin(mine, content).any())


class Ranks:
    """The strongest so far of all maps."""

    def __init__(self, maps: Sequence[int], k: int, device: torch.device) -> None:
        self.k, self.device, self.layers = k, device, len(maps)
        self.starts = np.cumsum([0, *maps]).tolist()
        shape = (self.starts[-1], k)
        self.key = torch.full(shape, NOBODY, device=device)
        self.place = torch.zeros(shape, dtype=torch.int64, device=device)
        self.content = torch.zeros(shape, dtype=torch.int64, device=device)
        self.active, self.invalid = torch.zeros(2, shape[0], dtype=torch.int64, device=device)
        self._now: dict[int, tuple[Tensor, Tensor]] = {}
        self._peak, self._place, self._slots = list[Tensor](), list[Tensor](), list[Slots]()

    def begin(self, slots: Slots) -> None:
        """The next batch."""
        if sum(len(waiting.number) for waiting in self._slots) >= WAITING:
            self.settle()
        self._slots.append(slots)
        self._now = {}

    @property
    def unseen(self) -> list[int]:
        """Layers that the batch in hand has not met yet."""
        met = self._now
        return [] if len(met) == self.layers else [n for n in range(self.layers) if n not in met]

    @property
    def last(self) -> Float[Tensor, "b maps"]:
        """The largest values in the pictures of the batch in hand, when all layers were seen."""
        return self._peak[-1]

    def look(self, layer: int, output: Tensor) -> Tensor:
        self._now[layer] = peaks(output if output.dim() == 4 else output[:, :, None, None])
        if not self.unseen:
            # Of all layers at once: a call for each would take as long as small layers do.
            peak, place = zip(*(self._now[layer] for layer in range(self.layers)), strict=True)
            self._peak.append(torch.cat(peak, 1).flatten(1).float())
            self._place.append(torch.cat(place, 1).flatten(1))
            raise Reached
        return output

    def settle(self) -> None:
        """Take in the batches that wait. To be called at the end."""
        if not self._slots:
            return
        peak, where = torch.cat(self._peak), torch.cat(self._place)
        slots = Slots.joined(self._slots)
        self._peak, self._place, self._slots = [], [], []
        used, wrong = slots.used[:, None], peak.isnan()
        self.active += ((peak > 0) & used).sum(0)
        self.invalid += (wrong & used).sum(0)
        key = keys(peak, slots.number[:, None])
        better = (key > self.key[:, -1]) & used & ~wrong
        rows = better.any(0).nonzero()[:, 0]
        key = torch.where(better, key, NOBODY)[:, rows]
        content = slots.content[:, None].expand_as(key)
        self._enter(rows, key.T, where[:, rows].T, content.T, slots)

    def arrays(self, widths: Int64[np.ndarray, "layers"]) -> dict[str, np.ndarray]:
        """The tables of a TopK. widths: columns of each layer's maps."""
        key, place = self.key.cpu().numpy(), self.place.cpu().numpy()
        columns = np.repeat(widths, np.diff(self.starts))[:, None]
        used = key != NOBODY
        return {
            "value": np.where(used, values(self.key).cpu().numpy(), np.float32(-np.inf)),
            "image": np.where(used, LAST - (key & LAST), -1),
            "row": np.where(used, place // columns, 0).astype(np.int32),
            "column": np.where(used, place % columns, 0).astype(np.int32),
            "content": np.where(used, self.content.cpu().numpy(), 0),
            "active": self.active.cpu().numpy(),
            "invalid": self.invalid.cpu().numpy(),
        }

    def _enter(
        self,
        rows: Int64[Tensor, "r"],
        key: Int64[Tensor, "r b"],
        place: Int64[Tensor, "r b"],
        content: Int64[Tensor, "r b"],
        slots: Slots,
    ) -> None:
        both = torch.cat([self.key[rows], key], 1)
        tables = [
            torch.cat([table[rows], new], 1)
            for table, new in ((self.place, place), (self.content, content))
        ]
        if slots.has_copies(self.content):
            both, order = both.sort(1, descending=True)
            tables = [table.gather(1, order) for table in tables]
            # Of copies the strongest counts. Their values need not be equal: a matrix product
            # may round the same row differently in another place of the batch.
            both = torch.where(copies(both, tables[1]), NOBODY, both)
        kept = both.topk(self.k)
        self.key[rows] = kept.values
        for table, now in zip((self.place, self.content), tables, strict=True):
            table[rows] = now.gather(1, kept.indices)


def peaks(
    maps: Float[Tensor, "b c h w"],
) -> tuple[Float[Tensor, "b c 1 1"], Int64[Tensor, "b c 1 1"]]:
    """The largest value of each map and its first place, row by row.

    In channels-last memory on a CPU pooling finds both in one pass at the speed of memory, five to
    ten times as fast as `max`.
    """
    last = torch.channels_last
    if maps.is_cuda or maps.is_contiguous() or not maps.is_contiguous(memory_format=last):
        peak, place = maps.flatten(2).max(2)
        return peak[:, :, None, None], place[:, :, None, None]
    peak, place = F.max_pool2d(maps, maps.shape[2:], return_indices=True)
    return peak, place


def copies(
    key: Int64[Tensor, "maps n"], content: Int64[Tensor, "maps n"]
) -> Bool[Tensor, "maps n"]:
    """Entries with the content of an earlier one."""
    n = key.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool, device=key.device).tril(-1)
    same = content[:, :, None] == content[:, None, :]
    return (same & earlier & (key != NOBODY)[:, None, :]).any(2)


def keys(value: Float[Tensor, "b c"], number: Int64[Tensor, "b 1"]) -> Int64[Tensor, "b c"]:
    """As `records.topk.keys`."""
    bits = (value + 0.0).view(torch.int32).to(torch.int64)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32) | (LAST - number)


def values(key: Int64[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The values in keys."""
    ordered = key >> 32
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.to(torch.int32).view(torch.float32)


@taking(folder=pictures_of)
@recorded
def topk(
    model: Model,
    folder: FolderLike,
    layers: Layers = None,
    *,
    preprocess: Preprocess | None = None,
    k: int = 9,
    batch: int | None = None,
    part: tuple[int, int] = (0, 1),
    tuning: Tuning | None = None,
    precision: Precision = "float32",
    also: Also | tuple[Also, ...] = None,
    run: Run = PLAIN,
) -> TopK:
    """The k strongest distinct pictures of every feature map, with value and place.

    folder: opened, or its name. preprocess: by default that of the network, if it is one of
    `load`'s. layers: one or several; by default see `feature_layers`. batch: pictures computed
    together; by default that of `tuning`, or else `usual_batch`, the same on every machine. part:
    (i, n) looks only at every n-th batch from the i-th on; `TopK.merge` of all n parts is the
    whole. tuning: what `tune` chose for this machine; the same for all parts. precision: "fast"
    searches in bfloat16 where that is faster, and computes candidates again in float32; the
    record's origin has what came of it. also: looks at the same pictures: told those of each
    batch, framed; a Job (as `predict.Judge`) wherever the batch is computed, a function only of
    those that are computed here and now. A picture's activation is its largest over all places; a
    map's NaNs never enter, and are counted; a unit of a fully connected layer is a map of one
    place. Unusable pictures are left out (`folder.skipped`) and their number is kept.

    Raises DataError D118 (too many unusable), D161 (none usable), UsageError U221 (k, batch or
    part), U225 (precision), U376 (a module without preprocess), U377 (no folder), U401 (no
    tuning), ModelError M500, M501 (no convolution), M502, M506 (a layer without feature maps),
    M522 (it takes no such picture).
    """
    require_tuning(tuning)
    _require_precision(precision, tuning, part)
    ready = whole(model).preprocess if preprocess is None else preprocess
    with opened(folder) as pictures:
        job = TopKJob(bare(model), ready, layers, k, batch=batch, tuning=tuning, also=also)
        is_fast = precision == "fast"
        return mined_fast(job, pictures, run) if is_fast else job.mined(pictures, part, run)


def _require_precision(precision: str, tuning: Tuning | None, part: tuple[int, int]) -> None:
    if precision not in ("float32", "fast"):
        what, step = "is no precision of a search", "write float32 or fast"
        raise UsageError("U225", shown(precision), what, next_step=step)
    if precision == "fast" and (tuning is not None or part != (0, 1)):
        other = "a tuning" if tuning is not None else "one part of the pictures"
        step = f"leave out {other}, or take float32"
        raise UsageError("U225", "fast", f"does not go together with {other}", next_step=step)


def _beside(arrays: Arrays) -> Arrays:
    """Those of the other job."""
    return {
        name.removeprefix(BESIDE): array
        for name, array in arrays.items()
        if name.startswith(BESIDE)
    }


class TopKJob(Job):
    """What is looked at in every picture, and how."""

    name = "topk"

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        layers: Sequence[str] | str | None,
        k: int,
        *,
        batch: int | None = None,
        tuning: Tuning | None = None,
        also: Also | tuple[Also, ...] = None,
    ) -> None:
        black = blank(model, preprocess.shape)
        self.names = tuple(chosen_layers(model, layers, black))
        if not self.names:
            raise ModelError("M501", "the network", "has no convolution to watch")
        self.preprocess, self.k = preprocess, k
        self.shapes = _shapes(model, self.names, black)
        self.way = Execution(model, black, self.names, tuning)
        self.batch = self.way.batch if batch is None else batch
        self.framing, self.workers = preprocess.framing, self.way.workers
        self._weights, others = weights_sha256(model), also if isinstance(also, tuple) else (also,)
        self._beside = next((one for one in others if isinstance(one, Job)), None)
        self._here = [one for one in others if one is not None and not isinstance(one, Job)]
        if not (k >= 1 and self.batch >= 1):
            what = "k and batch are at least 1"
            raise UsageError("U221", f"k {k}, batch {self.batch}", what)
        self._renew()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_here": [], "ranks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._renew()

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "weights_sha256": self._weights,
            "layers": list(self.names),
            "k": self.k,
            "batch": self.batch,
            "preprocessing": self.preprocess.to_json(),
            **self.way.origin,
            **versions(),
            **({} if self._beside is None else {self._beside.name: dict(self._beside.facts)}),
        }

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.way.device

    def told(self) -> dict[str, Any]:
        return {"device": device_words(self.device)}

    @contextmanager
    def looking(self) -> Iterator[Callable[[list[Picture]], object]]:
        way, size = self.way, self.batch
        edits = {name: self._look(layer) for layer, name in enumerate(self.names)}
        with ExitStack() as stack:
            beside = [stack.enter_context(self._beside.looking())] if self._beside else []
            lens = stack.enter_context(Lens(way.model, (), edits))
            stack.enter_context(torch.inference_mode())
            stack.enter_context(way.running())

            def look(pictures: list[Picture]) -> None:
                slots = Slots.of(pictures, size, self.device)
                self.compute(lens, slots, way.laid(self.preprocess.aligned(pictures, size)))
                self.seen += len(pictures)
                for other in (*self._here, *beside):
                    other(pictures)

            yield look

    def compute(self, lens: Lens, slots: Slots, pixels: Float[Tensor, "b c h w"]) -> None:
        """Take in one batch."""
        self.ranks.begin(slots)
        lens.reach(pixels)
        if self.ranks.unseen:
            layer = self.names[self.ranks.unseen[0]]
            raise ModelError("M502", layer, "did not run on every picture")

    def turned(self, kind: type[Kind], **changes: Any) -> Kind:
        """The same of another kind, with other attributes."""
        result = kind.__new__(kind)
        result.__setstate__(self.__dict__ | changes)
        return result

    def _look(self, layer: int) -> Callable[[Tensor], Tensor]:
        return lambda output: self.ranks.look(layer, output)

    def _renew(self) -> None:
        self.seen = 0
        self.ranks = self._ranks()

    def _ranks(self) -> Ranks:
        return Ranks([shape[0] for shape in self.shapes], self.k, self.device)

    def take(self) -> Arrays:
        with torch.inference_mode():
            self.ranks.settle()
            arrays = self.ranks.arrays(np.array([shape[2] for shape in self.shapes]))
        arrays["seen"] = np.array(self.seen)
        self._renew()
        if self._beside is not None:
            arrays |= {BESIDE + name: array for name, array in self._beside.take().items()}
        return arrays

    @property
    def pending(self) -> int:
        return self._beside.pending if self._beside else 0

    def merge(self, one: Arrays, other: Arrays) -> Arrays:
        counts = {name: one[name] + other[name] for name in ("active", "invalid", "seen")}
        result = {**strongest(one, other, self.k), **counts}
        if self._beside is not None:
            both = self._beside.merge(_beside(one), _beside(other))
            result |= {BESIDE + name: array for name, array in both.items()}
        return result

    def mined(self, folder: Pictures, part: tuple[int, int], run: Run) -> TopK:
        index, parts = part
        if not 0 <= index < parts:
            raise UsageError("U221", f"part {part}", "part (i, n) counts i from 0 below n")
        numbers: Sequence[int] = range(len(folder))
        if parts > 1:
            numbers = [n for n in numbers if n // self.batch % parts == index]
            self.may_be_empty = True
        arrays, told = self.whole(folder, run, numbers)
        return self.record(arrays, told, {"parts": [list(part)]})

    def whole(
        self, folder: Pictures, run: Run, numbers: Sequence[int] | None = None
    ) -> tuple[Arrays, list[Mapping[str, Any]]]:
        """As `merged`; what was taken along gets its own."""
        arrays, told = merged(self, folder, run, numbers)
        folder.check_bad()
        if self._beside is not None:
            self._beside.received(_beside(arrays))
        return arrays, told

    @property
    def starts(self) -> Int64[np.ndarray, "layers+1"]:
        """Of the layers among all maps."""
        return np.cumsum([0, *(shape[0] for shape in self.shapes)], dtype=np.int64)

    def record(
        self, arrays: Arrays, told: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
    ) -> TopK:
        origin = {"method": "topk", "batch": self.batch, **more, **self.way.origin}
        devices = sorted({str(one["device"]) for one in told if "device" in one})
        if devices:
            origin["device"] = "; ".join(devices)
        tables = {name: arrays[name] for name in TABLES}
        seen = int(arrays["seen"])
        return TopK(layers=self.names, starts=self.starts, seen=seen, origin=origin, **tables)


Kind = TypeVar("Kind", bound=TopKJob)
ALONE: Mapping[str, Any] = {"_beside": None, "_here": [], "may_be_empty": True}
"""Nothing is taken along."""


class FastJob(TopKJob):
    """The candidates, in bfloat16; what is taken along computes as always."""

    @property
    def facts(self) -> dict[str, Any]:
        return {**super().facts, "precision": "bfloat16"}

    def compute(self, lens: Lens, slots: Slots, pixels: Float[Tensor, "b c h w"]) -> None:
        with torch.autocast(self.device.type, torch.bfloat16):
            super().compute(lens, slots, pixels)


class RescoringJob(TopKJob):
    """The candidates' batches, in float32 and some also in bfloat16: how far are the two apart?"""

    calibrating: frozenset[int]
    """Numbers of batches."""
    difference: Float[Tensor, "maps"]
    """The largest that was met."""
    compared: int
    """Pictures."""

    @property
    def facts(self) -> dict[str, Any]:
        return {**super().facts, "compared_batches": len(self.calibrating)}

    def compute(self, lens: Lens, slots: Slots, pixels: Float[Tensor, "b c h w"]) -> None:
        super().compute(lens, slots, pixels)
        if int(slots.number.max()) // self.batch not in self.calibrating:
            return
        ranks, self.ranks = self.ranks, self._ranks()
        try:
            with torch.autocast(self.device.type, torch.bfloat16):
                super().compute(lens, slots, pixels)
            apart = (ranks.last - self.ranks.last)[slots.used].abs()
        finally:
            self.ranks = ranks
        self.difference = torch.maximum(self.difference, apart.amax(0))  # keeps a NaN
        self.compared += len(apart)

    def _renew(self) -> None:
        super()._renew()
        self.difference = torch.zeros(int(self.starts[-1]), device=self.device)
        self.compared = 0

    def take(self) -> Arrays:
        difference, compared = self.difference.cpu().numpy(), np.array(self.compared)
        return {**super().take(), "difference": difference, "compared": compared}

    def merge(self, one: Arrays, other: Arrays) -> Arrays:
        return {
            **super().merge(one, other),
            "difference": np.maximum(one["difference"], other["difference"]),
            "compared": one["compared"] + other["compared"],
        }


def mined_fast(job: TopKJob, folder: Pictures, run: Run) -> TopK:
    """As `job` finds it, with fewer pictures in float32; in float32 alone where that is faster.

    Certified maps have the entries that the search in float32 has; all others are mined again.
    """
    kept = fast.kept(job.k)
    work = int(job.starts[-1]) * kept * job.batch
    why = fast.hindrance(job.device, job.way.dtype, work, len(folder))
    if why:
        result, search = job.mined(folder, (0, 1), run), {"mined_in": "float32", "why": why}
        return dataclasses.replace(result, origin={**result.origin, "search": search})
    quick, told = job.turned(FastJob, k=kept).whole(folder, run.inside("bfloat16"))
    numbers = fast.batches_again(quick["image"], folder, job.batch)
    chosen = fast.calibrating(numbers, job.batch)
    again = job.turned(RescoringJob, calibrating=chosen, **ALONE)
    exact, told_again = merged(again, folder, run.inside("candidates"), numbers)
    certificate = fast.Certificate.of(quick, exact, job.starts)
    tables = fast.tables(quick, exact)
    layers = certificate.open_layers(job.starts)
    if layers:
        rest = sorted(set(range(len(folder))) - set(numbers))
        part = {name: exact[name] for name in (*TABLES, "seen")}
        rows, mined = _mined_again(job, layers, part, folder, rest, run)
        kept_rows = certificate.certified[rows]
        for name in TABLES:
            tables[name][rows] = np.where(kept_rows, tables[name][rows].T, mined[name].T).T
    origin = {"parts": [[0, 1]], "search": certificate.origin(job.names, kept)}
    return job.record(tables, [*told, *told_again], origin)


def _mined_again(
    job: TopKJob,
    layers: Sequence[int],
    part: Arrays,
    folder: Pictures,
    rest: Sequence[int],
    run: Run,
) -> tuple[Int64[np.ndarray, "rows"], Arrays]:
    """All maps of these layers in float32, and their rows. part: all maps, over all pictures but
    the rest."""
    names, shapes = (tuple(of[layer] for layer in layers) for of in (job.names, job.shapes))
    again = job.turned(TopKJob, names=names, shapes=shapes, **ALONE)
    mined, _ = merged(again, folder, run.inside("uncertified"), rest)
    rows = np.concatenate([np.arange(*job.starts[layer : layer + 2]) for layer in layers])
    known = {name: part[name][rows] for name in TABLES}
    return rows, again.merge({**known, "seen": part["seen"]}, mined)


def _shapes(
    model: nn.Module, names: Sequence[str], blank: Float[Tensor, "1 c h w"]
) -> list[tuple[int, int, int]]:
    result = []
    with Lens(model, names) as lens, torch.inference_mode():
        lens.reach(blank)
        for name in names:
            shape = tuple(lens[name].shape[1:])
            if len(shape) not in (1, 3):
                raise ModelError("M506", name, f"puts out {shape}, which are no feature maps")
            result.append((shape[0], *(shape[1:] or (1, 1))))
    return result  # type: ignore[return-value]
