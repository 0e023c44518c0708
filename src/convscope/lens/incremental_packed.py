"""How are matrix products quick on any processor?

Torch hands convolutions to oneDNN, and matrix products to a library that is half as fast on some
processors. Where a trial finds it so (`pace.py`) we hand these to oneDNN too, by calls that torch's
compiler uses (torch 2.10 to 2.15). Where they are not there or give other numbers, the ordinary
calls are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.lens.pace import pace

FEW = 32
"""Rows of a matrix product, below which reading the weights takes the time."""


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
        self._quick = lays_out(weight) and pace().onednn

    def of(self, rows: list[int]) -> Product:
        """With these rows of the weights only."""
        bias = None if self._bias is None else self._bias[rows]
        return Product(self._weight[rows], bias)

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        if not self._quick or len(x) < FEW or x.dtype != torch.float32 or x.dim() != 2:
            return F.linear(x, self._weight, self._bias)
        return by_onednn(x, self._weight, self._bias)


class Grouped:
    """A matrix product for each group of numbers: x[:, g] @ weights[g].T, of so many rows at once.

    For weights that `lays_out` takes, laid out once. The number of rows is always the same: with
    another, oneDNN may want them in another order, and lays them out in every call.
    """

    def __init__(self, weights: Float[Tensor, "groups out in"], rows: int) -> None:
        self.groups, self.out, into = weights.shape
        self.rows = rows
        filters = weights.reshape(self.groups * self.out, into, 1, 1).to_mkldnn()
        lay: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
        like = [1, self.groups * into, rows, 1]
        self._laid = lay(filters, (0, 0), (1, 1), (1, 1), self.groups, like)

    def __call__(self, x: Float[Tensor, "rows groups in"]) -> Float[Tensor, "rows groups out"]:
        maps = x.view(1, self.rows, 1, -1).permute(0, 3, 1, 2)
        call: Callable[..., Tensor] = torch.ops.mkldnn._convolution_pointwise
        done = call(maps, self._laid, None, (0, 0), (1, 1), (1, 1), self.groups, "none", [], "")
        return done.permute(0, 2, 3, 1).view(self.rows, self.groups, self.out)


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias."""
    call: Callable[..., Tensor] = torch._C._nn.mkldnn_linear
    return call(x.contiguous().to_mkldnn(), weight.contiguous(), bias).to_dense()


def lays_out(weight: Tensor) -> bool:
    """Are these weights that oneDNN's calls take, and do they work here?"""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32
    return fits and bool(torch._C._has_mkldnn) and _works()


@cache
def _works() -> bool:
    """Do torch's calls give here what the ordinary calls give?"""
    flat, matrix, bias = torch.rand(5, 4), torch.rand(3, 4), torch.rand(3)
    signs, many = torch.tensor([[1.0], [-1.0]]), torch.rand(5, 2, 4)
    try:
        one = by_onednn(flat, matrix, bias)
        two = Grouped(signs[:, None] * matrix, len(many))(many)
    except (RuntimeError, AttributeError, TypeError):
        return False
    close = torch.allclose(one, F.linear(flat, matrix, bias), atol=1e-5)
    return close and torch.allclose(two, many @ matrix.T * signs, atol=1e-5)
