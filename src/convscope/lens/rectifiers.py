"""Is this call max(x, 0), in whatever spelling, and of which x?"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rectifier(NamedTuple):
    """A call that computes min(max(x, 0), ceiling)."""

    x: Tensor
    ceiling: float = math.inf


class Masks:
    """Which tensors say where another is positive, as in `x * (x > 0)`?

    Nothing is kept alive; a mask of an x that was changed in place since is none any more.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], int]] = {}

    def note(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        """Remember what `x > 0`, or a cast of such a mask, has given."""
        if not args or not isinstance(result, Tensor):
            return
        x = args[0]
        if name in ("gt", "ge") and isinstance(x, Tensor) and len(args) == 2 and _is_zero(args[1]):
            self._remember(result, x)
        elif name in CASTS and isinstance(x, Tensor):
            source = self.of(x)
            if source is not None:
                self._remember(result, source)

    def _remember(self, mask: Tensor, x: Tensor) -> None:
        forget = self._of.pop
        key = id(mask)
        self._of[key] = (
            weakref.ref(mask, lambda _: forget(key, None)),
            weakref.ref(x),
            x._version,
        )

    def of(self, mask: Any) -> Tensor | None:
        """The x whose positive places this is, or None."""
        if id(mask) not in self._of:
            return None
        mine, source, version = self._of[id(mask)]
        x = source()
        return x if mine() is mask and x is not None and x._version == version else None


def recognise(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks
) -> Rectifier | None:
    """What the call rectifies, or None if it is something else.

    `name` is the function's bare name, without the underscore of an in-place spelling.
    """
    if name in SPELLINGS:
        plain = {key: value for key, value in kwargs.items() if key not in ("inplace", "out")}
        with contextlib.suppress(TypeError):  # some other overload of that name
            return SPELLINGS[name](*args, **plain)
    if name in ("mul", "multiply") and len(args) == 2:
        return _masked(*args, masks)
    if name == "where" and len(args) == 3:
        mask, x, zero = args
        return _masked(x, mask, masks) if _is_zero(zero) else None
    return None


def _relu(input: Tensor) -> Rectifier:
    return Rectifier(input)


def _relu6(input: Tensor) -> Rectifier:
    return Rectifier(input, 6.0)


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Rectifier | None:
    return _clamp(input, min_val, max_val)


def _clamp(input: Tensor, min: Any = None, max: Any = None) -> Rectifier | None:
    if not _is_zero(min) or isinstance(max, Tensor):
        return None
    return Rectifier(input, math.inf if max is None else float(max))


def _threshold(input: Tensor, threshold: float, value: float) -> Rectifier | None:
    return Rectifier(input) if threshold == 0 and value == 0 else None


def _maximum(input: Tensor, *others: Any, other: Any = None, **_: Any) -> Rectifier | None:
    """`max` is also a reduction, with or without a number of a dimension."""
    second = others[0] if others else other
    if not isinstance(second, Tensor):
        return None
    for x, zero in ((input, second), (second, input)):
        if x.numel() >= zero.numel() and _is_zero(zero):
            return Rectifier(x)
    return None


def _masked(a: Any, b: Any, masks: Masks) -> Rectifier | None:
    for x, mask in ((a, b), (b, a)):
        if isinstance(x, Tensor) and masks.of(mask) is x:
            return Rectifier(x)
    return None


def _is_zero(value: Any) -> bool:
    """The number 0, or a constant tensor of nothing else."""
    if isinstance(value, Tensor):
        return not value.requires_grad and not bool(torch.any(value))
    return isinstance(value, int | float) and value == 0


SPELLINGS: Mapping[str, Callable[..., Rectifier | None]] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "threshold": _threshold,
    "maximum": _maximum,
    "max": _maximum,
    "fmax": _maximum,
}
"""Bare name of a function of torch → what it rectifies, given its own arguments."""
CASTS = {"to", "type", "type_as", "float", "double", "half", "bfloat16"}
