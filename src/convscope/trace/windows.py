"""Sliding windows of convolutions and pools along one axis: kernel, stride, padding, dilation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from convscope.trace.recorder import Call


@dataclass(frozen=True)
class Affine:
    """Place i reads `size` places from start + i · stride on, borders left aside."""

    size: int
    stride: int
    start: int

    def after(self, local: Affine) -> Affine:
        """What a place reads of the picture if it reads `local` of what reads `self`."""
        return Affine(
            self.size + (local.size - 1) * self.stride,
            self.stride * local.stride,
            self.start + local.start * self.stride,
        )

    @staticmethod
    def union(several: Iterable[Affine | None]) -> Affine | None:
        """The hull; None unless all are regular with one stride."""
        known = list(several)
        if any(one is None for one in known):
            return None
        regular = [one for one in known if one is not None]
        if len({one.stride for one in regular}) != 1:
            return None
        start = min(one.start for one in regular)
        end = max(one.start + one.size for one in regular)
        return Affine(end - start, regular[0].stride, start)


@dataclass(frozen=True)
class Window:
    """A window along one axis: it reads kernel places, `dilation` apart, of `size` there are."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    def reads(self, places: int) -> tuple[Bool[np.ndarray, "places size"], Affine]:
        """Which of the `size` places each of the `places` results reads, and their rule."""
        starts = np.arange(places) * self.stride - self.padding
        read = starts[:, None] + np.arange(self.kernel) * self.dilation
        table = np.zeros((places, self.size), dtype=bool)
        row, _ = np.nonzero((read >= 0) & (read < self.size))
        table[row, read[(read >= 0) & (read < self.size)]] = True
        reach = (self.kernel - 1) * self.dilation + 1
        return table, Affine(reach, self.stride, -self.padding)


ARGUMENTS = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation"),
    "max_pool2d_with_indices": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding"),
    "pad": ("input", "pad", "mode", "value"),
}
"""Operations on windows, and their first arguments."""


def window_of(call: Call, axis: int) -> Window | None:
    """The window of a call along rows (axis 0) or columns (1); None for other operations."""
    operation = call.operation
    if operation.name not in ARGUMENTS:
        return None
    given = dict(zip(ARGUMENTS[operation.name], call.args, strict=False)) | dict(call.kwargs)
    size = given["input"].shape[axis - 2]
    if operation.name == "pad":
        return _padded(given, axis, size)
    if operation.weighed:
        kernel = given["weight"].shape[axis - 2]
        stride = _of(given.get("stride", 1), axis)
    else:
        kernel = _of(given["kernel_size"], axis)
        stride = _of(given.get("stride") or given["kernel_size"], axis)
    dilation = _of(given.get("dilation", 1), axis)
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        before = dilation * (kernel - 1) // 2 if padding == "same" else 0
    else:
        before = _of(padding, axis)
    return Window(size, kernel, stride, before, dilation)


def _padded(given: Mapping[str, Any], axis: int, size: int) -> Window | None:
    """Constant borders: each place reads itself, those that are added read nothing."""
    if given.get("mode", "constant") != "constant":
        return None
    pairs = list(given["pad"])  # of the last axis first
    before = pairs[2 * (1 - axis)] if len(pairs) > 2 * (1 - axis) else 0
    return Window(size, 1, 1, before, 1)


def local_affine(table: Bool[np.ndarray, "places size"]) -> Affine | None:
    """The regular rule that a measured table follows away from its borders, if there is one."""
    places, size = table.shape
    rows = np.flatnonzero(table.any(axis=1))
    if len(rows) == 0:
        return None
    low, high = table.argmax(axis=1)[rows], size - table[:, ::-1].argmax(axis=1)[rows]
    inner = (low > 0) & (high < size)
    if len(rows) == places == size and (high - low == 1).all():
        inner = np.ones(len(rows), dtype=bool)
    if inner.sum() < 2:
        return None
    at, low, high = rows[inner], low[inner], high[inner]
    stride, rest = divmod(int(low[-1] - low[0]), int(at[-1] - at[0]))
    rule = Affine(int(high[0] - low[0]), stride, int(low[0] - at[0] * stride))
    follows = rest == 0 and (low == rule.start + at * stride).all() and stride > 0
    return rule if follows and (high - low == rule.size).all() else None


def _of(value: Any, axis: int) -> int:
    """One number of what may be given once for both axes."""
    if isinstance(value, (tuple, list)):
        return int(value[axis] if len(value) > 1 else value[0])
    return int(value)
