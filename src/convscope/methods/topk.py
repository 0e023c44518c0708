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
from convscope.lens.taps import Reached
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
    part), ModelError M500, M502, M506 (a layer without feature maps).
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    blank = torch.zeros(1, 3, *preprocess.size, device=device)
    names = tuple(layers) if layers is not None else tuple(feature_layers(model, blank))
    shapes = _shapes(model, names, blank)
    size = _batch(shapes) if batch is None else batch
    _require(k >= 1 and size >= 1 and 0 <= part[0] < part[1], f"k {k}, batch {size}, part {part}")
    ranks = _Ranks([shape[0] for shape in shapes], k, device)
    edits = {name: ranks.look(layer) for layer, name in enumerate(names)}
    seen = 0
    with Lens(model, (), edits) as lens, torch.inference_mode():
        for start, pictures in _batches(folder, preprocess, size, part):
            ranks.begin(_Slots.of(pictures, folder, start, size, device))
            lens.reach(_pixels(pictures, preprocess, start, size).to(device))
            ranks.end()
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


class _Ranks:
    """The strongest so far of all maps; functions from `look` see the layers' outputs."""

    def __init__(self, maps: Sequence[int], k: int, device: torch.device) -> None:
        self.k, self.device = k, device
        self.starts = np.cumsum([0, *maps]).tolist()
        shape = (self.starts[-1], k)
        self.key = torch.full(shape, NOBODY, device=device)
        self.place = torch.zeros(shape, dtype=torch.int64, device=device)
        self.content = torch.zeros(shape, dtype=torch.int64, device=device)
        self.active, self.invalid = torch.zeros(2, shape[0], dtype=torch.int64, device=device)
        self.floor = torch.full(shape[:1], torch.nan, device=device)
        """Value to be exceeded; NaN, which is exceeded by all, where there is room."""

    def begin(self, slots: _Slots) -> None:
        """slots: pictures with higher numbers than any before."""
        self.slots, self.layers_left = slots, len(self.starts) - 1
        shape = (len(slots.number), self.starts[-1])
        self.peak = torch.empty(shape, device=self.device)
        self.where = torch.zeros(shape, dtype=torch.int64, device=self.device)

    def look(self, layer: int) -> Callable[[Tensor], Tensor]:
        rows = slice(self.starts[layer], self.starts[layer + 1])

        def see(output: Tensor) -> Tensor:
            maps = output if output.dim() == 4 else output[:, :, None, None]
            lines, peak = _peaks(maps)
            self.peak[:, rows] = peak
            # The places only of the few maps that may enter: of all it takes ten times as long.
            which, channel = (~(peak <= self.floor[rows])).nonzero(as_tuple=True)
            if len(which):
                self.where[:, rows][which, channel] = _places(maps, lines, which, channel)
            self.layers_left -= 1
            if not self.layers_left:
                raise Reached
            return output

        return see

    def end(self) -> None:
        """Take in the batch."""
        used, wrong = self.slots.used[:, None], self.peak.isnan()
        self.active += ((self.peak > 0) & used).sum(0)
        self.invalid += (wrong & used).sum(0)
        key = _keys(self.peak, self.slots.number[:, None])
        better = (key > self.key[:, -1]) & used & ~wrong
        rows = better.any(0).nonzero()[:, 0]
        key = torch.where(better, key, NOBODY)[:, rows]
        content = self.slots.content[:, None].expand_as(key)
        self._enter(rows, key.T, self.where[:, rows].T, content.T)

    def _enter(
        self,
        rows: Int64[Tensor, "r"],
        key: Int64[Tensor, "r b"],
        place: Int64[Tensor, "r b"],
        content: Int64[Tensor, "r b"],
    ) -> None:
        keys, order = torch.cat([self.key[rows], key], 1).sort(1, descending=True)
        tables = [
            torch.cat([table[rows], new], 1).gather(1, order)
            for table, new in ((self.place, place), (self.content, content))
        ]
        # Of copies the strongest counts. Their values need not be equal: a matrix product may
        # round the same row differently in another place of the batch.
        kept = torch.where(_copies(keys, tables[1]), NOBODY, keys).topk(self.k)
        self.key[rows] = kept.values
        for table, now in zip((self.place, self.content), tables, strict=True):
            table[rows] = now.gather(1, kept.indices)
        least = kept.values[:, -1]
        self.floor[rows] = torch.where(least == NOBODY, torch.nan, _values(least))


def _peaks(
    maps: Float[Tensor, "b c h w"],
) -> tuple[Float[Tensor, "b h c"] | None, Float[Tensor, "b c"]]:
    """The largest value of each map; in channels-last memory of each line of it as well."""
    if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
        return None, maps.amax((2, 3)).float()
    batch, channels, height, _ = maps.shape
    lines = maps.permute(0, 2, 3, 1).flatten(0, 1).amax(1).view(batch, height, channels)
    return lines, lines.amax(1).float()


def _places(
    maps: Float[Tensor, "b c h w"],
    lines: Float[Tensor, "b h c"] | None,
    which: Int64[Tensor, "n"],
    channel: Int64[Tensor, "n"],
) -> Int64[Tensor, "n"]:
    """The first place, row by row, of the largest value (argmax gives the first)."""
    if lines is None:
        return maps[which, channel].flatten(1).argmax(1)
    # To gather whole maps from channels-last memory would be slow.
    row = lines[which, :, channel].argmax(1)
    return row * maps.shape[3] + maps[which, channel, row].argmax(1)


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


def _values(key: Int64[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The values in keys."""
    ordered = key >> 32
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.to(torch.int32).view(torch.float32)


def _record(
    names: tuple[str, ...],
    shapes: Sequence[tuple[int, int, int]],
    ranks: _Ranks,
    seen: int,
    origin: dict[str, object],
) -> TopK:
    key, place = ranks.key.cpu().numpy(), ranks.place.cpu().numpy()
    columns = np.repeat([shape[2] for shape in shapes], [shape[0] for shape in shapes])[:, None]
    used = key != NOBODY
    return TopK(
        layers=names,
        starts=np.cumsum([0, *(shape[0] for shape in shapes)], dtype=np.int64),
        value=np.where(used, _values(ranks.key).cpu().numpy(), np.float32(-np.inf)),
        image=np.where(used, LAST - (key & LAST), -1),
        row=np.where(used, place // columns, 0).astype(np.int32),
        column=np.where(used, place % columns, 0).astype(np.int32),
        content=np.where(used, ranks.content.cpu().numpy(), 0),
        active=ranks.active.cpu().numpy(),
        invalid=ranks.invalid.cpu().numpy(),
        seen=seen,
        origin=origin,
    )


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
