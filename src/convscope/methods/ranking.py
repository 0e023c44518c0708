"""Which k of all activations so far are the strongest, and where in their maps do they lie?

Entries are ordered by whole-number keys that no two pictures share (`records.topk.keys`), and of
equal pictures the strongest counts. So the answer does not depend on how the work is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from convscope.images.folder import Folder, Picture
from convscope.lens.taps import Reached
from convscope.records.topk import LAST, NOBODY

RUN = 256
"""Numbers side by side in memory over which a maximum is taken at full speed."""


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
        folder: Folder,
        start: int,
        size: int,
        device: torch.device,
    ) -> Slots:
        number, content = np.full(size, -1), np.zeros(size, np.int64)
        for picture in pictures:
            place = picture.number - start
            number[place] = picture.number
            digest = folder.digest(picture.number)
            content[place] = int.from_bytes(digest[:8], "big", signed=True)
        return cls(torch.from_numpy(number).to(device), torch.from_numpy(content).to(device))


class Ranks:
    """The strongest so far of all maps; functions from `look` see the layers' outputs."""

    def __init__(self, maps: Sequence[int], k: int, device: torch.device) -> None:
        self.k, self.device = k, device
        self.starts = np.cumsum([0, *maps]).tolist()
        shape = (self.starts[-1], k)
        self.key = torch.full(shape, NOBODY, device=device)
        self.place = torch.zeros(shape, dtype=torch.int64, device=device)
        self.content = torch.zeros(shape, dtype=torch.int64, device=device)
        self.active, self.invalid = torch.zeros(2, shape[0], dtype=torch.int64, device=device)
        self.floor = torch.full(shape[:1], -torch.inf, device=device)
        """The least value that may enter; -inf where there is room."""

    def begin(self, slots: Slots) -> None:
        """slots: pictures with higher numbers than any before."""
        self.slots, self.layers_left = slots, len(self.starts) - 1
        shape = (len(slots.number), self.starts[-1])
        self.peak = torch.empty(shape, device=self.device)
        self.where = torch.zeros(shape, dtype=torch.int64, device=self.device)

    def look(self, layer: int) -> Callable[[Tensor], Tensor]:
        rows = slice(self.starts[layer], self.starts[layer + 1])

        def see(output: Tensor) -> Tensor:
            maps = output if output.dim() == 4 else output[:, :, None, None]
            lines, peak = peaks(maps)
            self.peak[:, rows] = peak
            # The places only of the few maps that may enter: of all it takes ten times as long.
            which, channel = (peak >= self.floor[rows]).nonzero(as_tuple=True)
            if len(which):
                self.where[:, rows][which, channel] = places(maps, lines, which, channel)
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
        key = keys(self.peak, self.slots.number[:, None])
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
        kept = torch.where(copies(keys, tables[1]), NOBODY, keys).topk(self.k)
        self.key[rows] = kept.values
        for table, now in zip((self.place, self.content), tables, strict=True):
            table[rows] = now.gather(1, kept.indices)
        # Pictures come by number, so a value equal to the last one's would come after it.
        least, top = kept.values[:, -1], torch.tensor(torch.inf, device=self.device)
        above = torch.nextafter(values(least), top)
        self.floor[rows] = torch.where(least == NOBODY, -torch.inf, above)


def peaks(
    maps: Float[Tensor, "b c h w"],
) -> tuple[Float[Tensor, "b h c"] | None, Float[Tensor, "b c"]]:
    """The largest value of each map; in channels-last memory of each line of it as well."""
    if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
        return None, maps.amax((2, 3)).float()
    batch, channels, height, width = maps.shape
    # Few channels make short runs of memory: take several columns together first.
    fits = (n for n in range(2, width + 1) if width % n == 0 and n * channels <= RUN)
    several = max(fits, default=1)
    runs = maps.permute(0, 2, 3, 1).reshape(batch * height, -1, several * channels).amax(1)
    lines = runs.view(batch, height, several, channels).amax(2)
    return lines, lines.amax(1).float()


def places(
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
