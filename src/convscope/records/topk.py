"""Top-k: which pictures excite each feature map most, how strongly, and where."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from convscope.core.errors import ModelError, UsageError, nearest
from convscope.core.record import Record
from convscope.core.units import Unit

NOBODY = np.iinfo(np.int64).min
"""Key of an unused entry, below that of any picture."""
UNUSED = {"value": -np.inf, "image": -1}
"""What an unused entry holds in these tables; 0 in the others."""
LAST = 2**32 - 1
NOTES = "picture notes"
OWN = dict.fromkeys(("parts", "device", "contents_sha256", NOTES))
"""What each part of one pass has its own of, in its origin."""
Part = tuple[int, int]
"""(i, n): every n-th batch of a folder's pictures, from the i-th on."""


@dataclass(frozen=True, eq=False)
class TopK(Record):
    """The k strongest distinct pictures of every feature map of every layer.

    Rows are feature maps, layer after layer; `starts[i]:starts[i + 1]` are those of `layers[i]`.
    Entries are ordered by value (descending), then picture number (ascending); a map that has
    seen fewer than k pictures is filled up with picture -1 and value -inf.
    """

    layers: tuple[str, ...]
    starts: Int64[np.ndarray, "layers+1"]
    value: Float32[np.ndarray, "maps k"]
    """Largest activation of the map over the picture's positions; NaN never enters."""
    image: Int64[np.ndarray, "maps k"]
    row: Int32[np.ndarray, "maps k"]
    column: Int32[np.ndarray, "maps k"]
    """Place of the activation in the layer's output: its first maximum in row-major order."""
    content: Int64[np.ndarray, "maps k"]
    """Start of the picture file's hash: files with the same content count as one picture."""
    active: Int64[np.ndarray, "maps"]
    """Number of pictures whose largest activation is above 0; 0 means a dead map."""
    invalid: Int64[np.ndarray, "maps"]
    """Number of pictures in which the map had a NaN."""
    seen: int
    """Number of pictures looked at."""

    @property
    def k(self) -> int:
        return int(self.value.shape[1])

    def rows(self, layer: str) -> slice:
        """The rows of one layer. Raises ModelError M500 on an unknown layer."""
        if layer not in self.layers:
            raise ModelError("M500", layer, f"no such layer here; {nearest(layer, self.layers)}")
        index = self.layers.index(layer)
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def units(self, layer: str, channel: int) -> Iterator[tuple[Unit, int, float]]:
        """(neuron, picture number, value) of one map's entries, strongest first."""
        row = self.rows(layer).start + channel
        for place in np.flatnonzero(self.image[row] >= 0):
            at = (int(self.row[row, place]), int(self.column[row, place]))
            yield (
                Unit(layer, channel, at),
                int(self.image[row, place]),
                float(self.value[row, place]),
            )

    def merge(self, other: Self) -> Self:
        """What one pass over both parts' pictures would have found.

        Associative, commutative and idempotent: parts may come in any order and more than once.
        Raises UsageError U220 if the two are not parts of one pass over one folder (with equal
        layers, k and batches), or overlap without one holding the other, as then the counts
        would be wrong.
        """
        mine, theirs = self._parts(), other._parts()
        ours, others = ({**record.origin, **OWN} for record in (self, other))
        if (self.layers, self.k, ours) != (other.layers, other.k, others):
            raise UsageError("U220", "merge", "these are not parts of one pass over one folder")
        if all(any(_holds(part, one) for one in mine) for part in theirs):
            return self
        if all(any(_holds(part, one) for one in theirs) for part in mine):
            return other
        if any(_overlap(one, part) for one in mine for part in theirs):
            raise UsageError("U220", "merge", "these parts overlap, so they cannot be counted")
        tables: dict[str, Any] = strongest(vars(self), vars(other), self.k)
        return dataclasses.replace(
            self,
            **tables,
            active=self.active + other.active,
            invalid=self.invalid + other.invalid,
            seen=self.seen + other.seen,
            origin={
                **{name: value for name, value in ours.items() if name not in OWN},
                "parts": _together([*mine, *theirs]),
                **_machines(self, other),
                **_notes(self, other),
            },
        )

    def _parts(self) -> list[Part]:
        return [(int(first), int(step)) for first, step in self.origin.get("parts", [(0, 1)])]


def strongest(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], k: int
) -> dict[str, np.ndarray]:
    """The k strongest entries of each map out of two results' tables, table by table."""
    both = {
        name: np.concatenate([one[name], other[name]], axis=1)
        for name in ("value", "image", "row", "column", "content")
    }
    order = np.argsort(keys(both["value"], both["image"]), axis=1)[:, ::-1]
    both = {name: np.take_along_axis(table, order, axis=1) for name, table in both.items()}
    # Copies, all but the strongest, are unused entries, which are the last.
    spare = copies(both["content"], both["image"])
    for name, table in both.items():
        table[spare] = UNUSED.get(name, 0)
    last = np.argsort(spare, axis=1, kind="stable")[:, :k]
    return {name: np.take_along_axis(table, last, axis=1) for name, table in both.items()}


def _notes(*records: TopK) -> dict[str, dict[str, int]]:
    """What was changed in pictures, by code, counted together."""
    notes: Counter[str] = Counter()
    for record in records:
        notes.update(record.origin.get(NOTES, {}))
    return {NOTES: dict(notes)} if notes else {}


def _machines(*records: TopK) -> dict[str, str]:
    devices = {str(record.origin["device"]) for record in records if "device" in record.origin}
    return {"device": "; ".join(sorted(devices))} if devices else {}


def _holds(part: Part, by: Part) -> bool:
    """Is every batch of `part` one of `by`'s?"""
    return part[1] % by[1] == 0 and part[0] % by[1] == by[0]


def _overlap(a: Part, b: Part) -> bool:
    """Do two series of batches meet? (Chinese remainder theorem.)"""
    return (a[0] - b[0]) % gcd(a[1], b[1]) == 0


def _together(parts: list[Part]) -> list[list[int]]:
    """Parts that do not overlap, in order; the whole when they make one up."""
    whole = sum(Fraction(1, step) for _, step in parts) == 1
    return [[0, 1]] if whole else [list(part) for part in sorted(parts)]


def keys(
    value: Float32[np.ndarray, "*table"], image: Int64[np.ndarray, "*table"]
) -> Int64[np.ndarray, "*table"]:
    """One whole number an entry, larger for a larger value, then for a lower picture number.

    No two pictures of a map share one, so any sort gives the same order. Value: not NaN.
    """
    bits = (value.astype(np.float32) + np.float32(0)).view(np.int32).astype(np.int64)
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return np.where(image < 0, NOBODY, (ordered << 32) | (LAST - image))


def copies(
    content: Int64[np.ndarray, "maps n"], image: Int64[np.ndarray, "maps n"]
) -> Bool[np.ndarray, "maps n"]:
    """Entries whose picture has the content of an earlier entry of the map; unused ones too."""
    same = content[:, :, None] == content[:, None, :]
    used = image >= 0
    earlier = np.tri(content.shape[1], k=-1, dtype=bool)
    repeated: Bool[np.ndarray, "maps n"] = (same & earlier & used[:, None, :]).any(axis=2)
    return repeated | ~used
