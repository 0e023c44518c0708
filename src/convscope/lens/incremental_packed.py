"""A network's convolutions and matrix products, as the engine makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Convolution:
    """A convolution whose weights have the memory format of the maps.

    They are not laid out in advance: in which order oneDNN wants them depends on the maps' sizes,
    and bringing them from one of its orders into another takes longer than from ours (measured:
    up to six times the convolution).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, how: Sequence[Any]) -> None:
        """how: stride, padding, dilation, groups, as conv2d takes them."""
        self.weight = weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias = bias
        self._stride, self._padding, self._dilation, self._groups = how

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out r k"]:
        return self._run(x, self._padding)

    def bare(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out r k"]:
        """Without padding."""
        return self._run(x, 0)

    def _run(self, x: Tensor, padding: Any) -> Tensor:
        plain: Callable[..., Tensor] = torch.conv2d
        how = (self._stride, padding, self._dilation, self._groups)
        return plain(x, self.weight, self.bias, *how)


class Product:
    """x @ weight.T + bias, for many rows at once."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Tensor | None) -> None:
        self._weight, self._bias = weight.detach(), bias

    def of(self, rows: list[int]) -> Product:
        """With these rows of the weights only."""
        bias = None if self._bias is None else self._bias[rows]
        return Product(self._weight[rows], bias)

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return F.linear(x, self._weight, self._bias)
