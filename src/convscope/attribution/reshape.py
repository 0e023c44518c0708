"""Reshape a layer's output to feature maps: convolutional, channels last (Swin) or tokens (ViT)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from convscope.core.errors import ModelError

Reshape = Callable[[Tensor], Tensor]
"""From a layer's output (b, …) to its feature maps (b, maps, h, w)."""


EXTRA_TOKENS = range(9)
"""A transformer's tokens that stand for no patch: class token, distillation token, registers."""


MISFIT = math.log(2)
"""Small maps of a picture may be out of its aspect by this much through rounding alone."""


def has_maps(shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether an output of this shape can be read as maps of a picture of this size."""
    if shape[:1] != (1,):  # of parts of the picture, as of a detector's boxes
        return False
    try:
        maps = as_maps(shape, size)(torch.empty(shape, device="meta"))
    except ModelError:
        return False
    return maps.shape[2:].numel() > 1


def as_maps(shape: tuple[int, ...], size: tuple[int, int]) -> Reshape:
    """How an output of this shape becomes maps (b, maps, h, w) for pictures of this size.

    (b, maps, h, w) stays; (b, h, w, maps), as in Swin, and (b, tokens, maps), as in ViT, are told
    by the picture's aspect. Raises ModelError M542 where there are no maps.
    """
    if len(shape) == 4:
        plain = _misfit(shape[2:], size)
        turned = plain > MISFIT and _misfit(shape[1:3], size) < plain / 2
        return _channels_first if turned else as_is
    if len(shape) == 3:
        for extra in EXTRA_TOKENS:
            grid = _grid(shape[1] - extra, size)
            if grid is not None:
                return _tokens(extra, grid)
    what = f"puts out {shape}, in which there are no maps of the picture"
    raise ModelError("M542", "the layer", what, next_step="name another, or pass reshape=")


def _misfit(maps: tuple[int, ...], size: tuple[int, int]) -> float:
    """How far maps of this size are from the picture's aspect; maps are never larger than it."""
    if maps[0] > size[0] or maps[1] > size[1]:
        return math.inf
    return abs(math.log(size[0] * maps[1] / (size[1] * maps[0])))


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of square patches that make up this many tokens."""
    for side in range(2, min(size) // 2 + 1):
        rows, columns = size[0] // side, size[1] // side
        if rows * columns == tokens:
            return rows, columns
    return None


def as_is(output: Tensor) -> Tensor:
    return output


def _channels_first(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def _tokens(extra: int, grid: tuple[int, int]) -> Reshape:
    def patches(output: Tensor) -> Tensor:
        return output[:, extra:].transpose(1, 2).reshape(len(output), -1, *grid)

    return patches
