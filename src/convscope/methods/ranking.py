"""Which k of all activations so far are the strongest, and where in their maps do they lie?

Entries are ordered by whole-number keys that no two pictures share (`records.topk.keys`), and of
equal pictures the strongest counts. So the answer does not depend on how the work is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from convscope.lens.taps import Reached
from convscope.pictures.pictures import Picture, Pictures
from convscope.records.topk import LAST, NOBODY

WAITING = 64
"""Pictures that wait to be taken in together: a merge for each batch of a few costs a tenth more.
The answer does not depend on it."""


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
        folder: Pictures,
        size: int,
        device: torch.device,
    ) -> Slots:
        number, content = np.full(size, -1), np.zeros(size, np.int64)
        for picture in pictures:
            place = picture.number % size
            number[place] = picture.number
            digest = folder.digest(picture.number)
            content[place] = int.from_bytes(digest[:8], "big", signed=True)
        return cls(torch.from_numpy(number).to(device), torch.from_numpy(content).to(device))

    @classmethod
    def joined(cls, slots: Sequence[Slots]) -> Slots:
        return cls(torch.cat([s.number for s in slots]), torch.cat([s.content for s in slots]))

    def has_copies(self, content: Int64[Tensor, "maps k"]) -> bool:
        """May a picture here have the content of another one, or of one in this table?"""
        mine = self.content[self.used]
        return len(set(mine.tolist())) < len(mine) or bool(torch.isin(mine, content).any())


class Ranks:
    """The strongest so far of all maps; functions from `look` see the layers' outputs."""

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

    def look(self, layer: int) -> Callable[[Tensor], Tensor]:
        def see(output: Tensor) -> Tensor:
            self._now[layer] = peaks(output if output.dim() == 4 else output[:, :, None, None])
            if not self.unseen:
                # Of all layers at once: a call for each would take as long as small layers do.
                peak, place = zip(*(self._now[layer] for layer in range(self.layers)), strict=True)
                self._peak.append(torch.cat(peak, 1).flatten(1).float())
                self._place.append(torch.cat(place, 1).flatten(1))
                raise Reached
            return output

        return see

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
