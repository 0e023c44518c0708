"""What does a max pool send back where two of its windows share a maximum?

Autograd adds (the adjoint). `nn.MaxUnpool2d` overwrites, and on several threads or a GPU it is a
matter of luck by what; here the last window in row-major order wins, as it does on one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from torch import Tensor

POOLS: Mapping[str, Any] = {
    "max_pool2d": F.max_pool2d_with_indices,
    "max_pool2d_with_indices": F.max_pool2d_with_indices,
    "adaptive_max_pool2d": F.adaptive_max_pool2d_with_indices,
    "adaptive_max_pool2d_with_indices": F.adaptive_max_pool2d_with_indices,
}
"""A pool's bare name → the same pool with its switches."""


class LastWins(torch.autograd.Function):
    """Up: nothing happens. Down: signals of windows that a later window overwrites are dropped."""

    convscope_kind = "linear"

    @staticmethod
    def forward(ctx: Any, y: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.mark_dirty(y)  # so that the network may work in place on it
        return y

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> Any:
        return signals[0].masked_fill(~ctx.saved_tensors[0], 0), None


def pool_last_wins(name: str, args: Any, kwargs: Any) -> Any:
    options = {key: value for key, value in kwargs.items() if key != "return_indices"}
    y, indices = POOLS[name](*args, **options)
    y = LastWins.apply(y, last_of_each(indices)) if y.requires_grad else y
    both = name.endswith("_with_indices") or kwargs.get("return_indices")
    return (y, indices) if both else y


def last_of_each(indices: Int64[Tensor, "*b h w"]) -> Bool[Tensor, "*b h w"]:
    """Where is a pooling window the last, in row-major order, of those that share its maximum?"""
    place = indices.flatten(-2)
    number = torch.arange(place.shape[-1], device=place.device).expand_as(place)
    size = int(place.max()) + 1 if place.numel() else 0
    last = place.new_zeros(*place.shape[:-1], size).scatter_reduce(-1, place, number, "amax")
    return (last.gather(-1, place) == number).view_as(indices)
