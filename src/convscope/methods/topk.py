"""Which pictures of a folder excite each feature map of a network most, and where?

One pass over the pictures, for all layers and maps at once, in the memory of one batch. The
answer does not depend on order, chunks or processes: pictures are computed in canonical batches
(batch number = picture number // size, unusable places blank, the last one filled up), as forward
passes of other batch sizes round differently; and entries are ordered by whole-number keys that
no two pictures share, as `torch.topk` breaks ties as it likes.
Source: Zeiler and Fergus 2014, figure 2 (the nine strongest activations of a map).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from convscope import __version__
from convscope.errors import DataError, ModelError, UsageError
from convscope.images.folder import Folder, Picture
from convscope.lens.feature_layers import feature_layers
from convscope.lens.lens import Lens
from convscope.models.preprocess import Preprocess
from convscope.records.topk import LAST, NOBODY, TopK

LARGEST = 24_000_000
"""Bytes of the largest activation of a batch. Above some 30 MB the allocator maps, faults and
clears new pages at every call: SqueezeNet then takes 2.6 times as long."""
MOST = 64


def topk(
    model: nn.Module,
    folder: Folder,
    preprocess: Preprocess,
    layers: Sequence[str] | None = None,
    *,
    k: int = 9,
    batch: int | None = None,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> TopK:
    """The k strongest distinct pictures of every feature map, with value and place.

    layers: by default see `feature_layers`. batch: pictures computed together; by default chosen
    from the sizes of the layers' outputs. part: (i, n) looks only at every n-th batch from the
    i-th on; `TopK.merge` of all n parts is the whole. A picture's activation is its largest over
    all places; a map's NaNs never enter, and are counted; a unit of a fully connected layer is a
    map of one place. Unusable pictures are left out (`folder.skipped`) and their number is kept.

    Raises DataError D118 (too many unusable), D161 (none usable), UsageError U221 (k, batch or
    part), ModelError M501, M502, M506 (a layer without feature maps).
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    blank = torch.zeros(1, 3, *preprocess.size, device=device)
    names = tuple(layers) if layers is not None else tuple(feature_layers(model, blank))
    shapes = _shapes(model, names, blank)
    size = _batch(shapes) if batch is None else batch
    _require(k >= 1 and size >= 1 and 0 <= part[0] < part[1], f"k {k}, batch {size}, part {part}")
    ranks = [_Rank(shape[0], k, device) for shape in shapes]
    edits = {name: rank.look for name, rank in zip(names, ranks, strict=True)}
    seen = 0
    with Lens(model, (), edits) as lens, torch.inference_mode():
        for start, pictures in _batches(folder, preprocess, size, part):
            now = _Slots.of(pictures, folder, start, size, device)
            for rank in ranks:
                rank.slots = now
            lens(_pixels(pictures, preprocess, start, size).to(device))
            seen += len(pictures)
            if progress is not None:
                progress(min(start + size, len(folder)), len(folder))
    folder.check_bad()
    if not seen:
        raise DataError("D161", str(folder.root), "no picture here could be used")
    origin = {
        "method": "topk",
        "network": type(model).__name__,
        "preprocessing": preprocess.describe(),
        "pictures_sha256": folder.sha256,
        "batch": size,
        "parts": [list(part)],
        "convscope": __version__,
    }
    return _record(names, shapes, ranks, seen, origin)


class _Slots:
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
        folder: Folder,
        start: int,
        size: int,
        device: torch.device,
    ) -> _Slots:
        number, content = np.full(size, -1), np.zeros(size, np.int64)
        for picture in pictures:
            place = picture.number - start
            number[place] = picture.number
            digest = folder.digest(picture.number)
            content[place] = int.from_bytes(digest[:8], "big", signed=True)
        return cls(torch.from_numpy(number).to(device), torch.from_numpy(content).to(device))


class _Rank:
    """The strongest so far of one layer's maps; `look` is called with each of its outputs."""

    def __init__(self, maps: int, k: int, device: torch.device) -> None:
        self.k = k
        self.key = torch.full((maps, k), NOBODY, device=device)
        self.place = torch.zeros(maps, k, dtype=torch.int64, device=device)
        self.content = torch.zeros(maps, k, dtype=torch.int64, device=device)
        self.active = torch.zeros(maps, dtype=torch.int64, device=device)
        self.invalid = torch.zeros(maps, dtype=torch.int64, device=device)
        self.slots = _Slots(*torch.zeros(2, 0, dtype=torch.int64, device=device))

    def look(self, output: Tensor) -> Tensor:
        """Take in a batch of the layer's output; give it back unchanged."""
        maps = output if output.dim() == 4 else output[:, :, None, None]
        peak = maps.amax((2, 3)).float()
        wrong = peak.isnan()
        used = self.slots.used[:, None]
        self.active += ((peak > 0) & used).sum(0)
        self.invalid += (wrong & used).sum(0)
        key = torch.where(
            wrong | ~self.slots.used[:, None], NOBODY, _keys(peak, self.slots.number[:, None])
        )
        better = key > self.key[:, -1]
        if bool(better.any()):
            self._enter(maps, torch.where(better, key, NOBODY), better)
        return output

    def _enter(
        self, maps: Float[Tensor, "b c h w"], key: Int64[Tensor, "b c"], better: Bool[Tensor, "b c"]
    ) -> None:
        # argmax only of the few maps that enter: over all it is ten times as slow as amax.
        place = torch.zeros_like(key)
        place[better] = maps[better].flatten(1).argmax(1)
        rows = better.any(0)
        content = self.slots.content[:, None].expand_as(key)
        keys, order = torch.cat([self.key[rows], key.T[rows]], 1).sort(1, descending=True)
        tables = [
            torch.cat([table[rows], new.T[rows]], 1).gather(1, order)
            for table, new in ((self.place, place), (self.content, content))
        ]
        # Of copies the strongest counts. Their values need not be equal: a matrix product may
        # round the same row differently in another place of the batch.
        kept = torch.where(_copies(keys, tables[1]), NOBODY, keys).topk(self.k)
        self.key[rows] = kept.values
        for table, now in zip((self.place, self.content), tables, strict=True):
            table[rows] = now.gather(1, kept.indices)


def _copies(
    key: Int64[Tensor, "maps n"], content: Int64[Tensor, "maps n"]
) -> Bool[Tensor, "maps n"]:
    """Entries with the content of an earlier one."""
    n = key.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool, device=key.device).tril(-1)
    same = content[:, :, None] == content[:, None, :]
    return (same & earlier & (key != NOBODY)[:, None, :]).any(2)


def _keys(value: Float[Tensor, "b c"], number: Int64[Tensor, "b 1"]) -> Int64[Tensor, "b c"]:
    """As `records.topk.keys`."""
    bits = (value + 0.0).view(torch.int32).to(torch.int64)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32) | (LAST - number)


def _record(
    names: tuple[str, ...],
    shapes: Sequence[tuple[int, int, int]],
    ranks: Sequence[_Rank],
    seen: int,
    origin: dict[str, object],
) -> TopK:
    key = _joined([rank.key for rank in ranks])
    place = _joined([rank.place for rank in ranks])
    columns = np.repeat([shape[2] for shape in shapes], [shape[0] for shape in shapes])[:, None]
    used = key != NOBODY
    ordered = key >> 32
    bits = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32)
    return TopK(
        layers=names,
        starts=np.cumsum([0, *(shape[0] for shape in shapes)], dtype=np.int64),
        value=np.where(used, bits.view(np.float32), -np.inf).astype(np.float32),
        image=np.where(used, LAST - (key & LAST), -1),
        row=np.where(used, place // columns, 0).astype(np.int32),
        column=np.where(used, place % columns, 0).astype(np.int32),
        content=np.where(used, _joined([rank.content for rank in ranks]), 0),
        active=_joined([rank.active for rank in ranks]),
        invalid=_joined([rank.invalid for rank in ranks]),
        seen=seen,
        origin=origin,
    )


def _joined(parts: Sequence[Tensor]) -> Int64[np.ndarray, "maps *k"]:
    return torch.cat(list(parts)).cpu().numpy()


def _shapes(
    model: nn.Module, names: Sequence[str], blank: Float[Tensor, "1 3 h w"]
) -> list[tuple[int, int, int]]:
    found = []
    with Lens(model, names) as lens, torch.inference_mode():
        lens.reach(blank)
        for name in names:
            shape = tuple(lens[name].shape[1:])
            if len(shape) not in (1, 3):
                raise ModelError("M506", name, f"puts out {shape}, which are no feature maps")
            found.append((shape[0], *(shape[1:] or (1, 1))))
    return found  # type: ignore[return-value]


def _batch(shapes: Sequence[tuple[int, int, int]]) -> int:
    """The largest power of two whose largest output stays below LARGEST bytes in float32."""
    largest = max((4 * c * h * w for c, h, w in shapes), default=4)
    return 1 << max(0, min(MOST, LARGEST // largest).bit_length() - 1)


def _batches(
    folder: Folder, preprocess: Preprocess, size: int, part: tuple[int, int]
) -> Iterator[tuple[int, list[Picture]]]:
    """(first number, usable pictures) of each canonical batch that has any."""
    index, of = part
    numbers = [n for n in range(len(folder)) if n // size % of == index]
    pictures = folder.read(preprocess.framing, numbers)
    for number, members in groupby(pictures, lambda picture: picture.number // size):
        yield number * size, list(members)


def _pixels(
    pictures: Sequence[Picture], preprocess: Preprocess, start: int, size: int
) -> Float[Tensor, "b 3 h w"]:
    tensors = preprocess.batch([picture.pixels for picture in pictures])
    places = [picture.number - start for picture in pictures]
    pixels = torch.zeros(size, *tensors.shape[1:], dtype=tensors.dtype)
    pixels[places] = tensors
    return pixels.contiguous(memory_format=torch.channels_last)


def _require(fine: bool, given: str) -> None:
    if not fine:
        raise UsageError(
            "U221", given, "k and batch are at least 1, part (i, n) counts i from 0 below n"
        )
