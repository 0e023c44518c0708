"""How can weights be laid out once, so that many calls with them are quick?

On a processor torch hands convolutions to oneDNN, which brings the weights into an order of its
own in every single call, and matrix products to a library that is half as fast on some
processors. Both are mended by calls that torch's compiler uses too (torch 2.10 to 2.15). Where
they are not there or give other numbers, the ordinary calls are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Sides = tuple[int, int]
FEW = 32
"""Rows of a matrix product, below which reading the weights takes the time."""


class Convolution:
    """A convolution whose weights are laid out when it is first called."""

    def __init__(self, weight: Tensor, bias: Tensor | None, how: Sequence[Any]) -> None:
        """how: stride, padding, dilation, groups, as conv2d takes them."""
        stride, padding, dilation, groups = how
        self.weight = weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias, self._padding, self._groups = bias, padding, int(groups)
        self._stride, self._dilation = _sides(stride), _sides(dilation)
        self._packed: Tensor | None = None
        self._packs = lays_out(weight) and self._groups == 1

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out r k"]:
        return self._run(x, self._padding)

    def bare(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out r k"]:
        """Without padding."""
        return self._run(x, 0)

    def _run(self, x: Tensor, padding: Any) -> Tensor:
        if not self._packs or isinstance(padding, str) or x.dtype != torch.float32:
            plain: Callable[..., Tensor] = torch.conv2d
            how = (self._stride, padding, self._dilation, self._groups)
            return plain(x, self.weight, self.bias, *how)
        if self._packed is None:
            around = zip(x.shape[2:], _sides(padding), strict=True)
            like = (*x.shape[:2], *(side + 2 * pad for side, pad in around))
            self._packed = _laid_out(self.weight, self._stride, self._dilation, like)
        x = x.contiguous(memory_format=torch.channels_last)
        sides = (list(_sides(padding)), list(self._stride), list(self._dilation))
        return _convolved(x, self._packed, self.bias, *sides, 1)


class Product:
    """x @ weight.T + bias, for many rows at once."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Tensor | None) -> None:
        self._weight, self._bias = weight.detach(), bias
        self._quick = lays_out(weight)

    def of(self, rows: list[int]) -> Product:
        """With these rows of the weights only."""
        bias = None if self._bias is None else self._bias[rows]
        return Product(self._weight[rows], bias)

    def __call__(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        if not self._quick or len(x) < FEW or x.dtype != torch.float32 or x.dim() != 2:
            return F.linear(x, self._weight, self._bias)
        return _multiplied(x, self._weight, self._bias)


class Grouped:
    """A matrix product for each group of numbers: x[:, g] @ weights[g].T, of so many rows at once.

    For weights that `lays_out` takes, laid out once. The number of rows is always the same: with
    another, oneDNN may want them in another order, and lays them out in every call.
    """

    def __init__(self, weights: Float[Tensor, "groups out in"], rows: int) -> None:
        self.groups, self._out, into = weights.shape
        self.rows = rows
        like = (1, self.groups * into, rows, 1)
        filters = weights.reshape(self.groups * self._out, into, 1, 1)
        self._laid = _laid_out(filters, (1, 1), (1, 1), like, self.groups)

    def __call__(self, x: Float[Tensor, "rows groups in"]) -> Float[Tensor, "rows groups out"]:
        maps = x.view(1, self.rows, 1, -1).permute(0, 3, 1, 2)
        done = _convolved(maps, self._laid, None, [0, 0], [1, 1], [1, 1], self.groups)
        return done.permute(0, 2, 3, 1).view(self.rows, self.groups, self._out)


def _sides(value: Any) -> Sides:
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    return int(pair[0]), int(pair[-1])


def _laid_out(
    weight: Tensor, stride: Sides, dilation: Sides, like: Sequence[int], groups: int = 1
) -> Tensor:
    lay: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
    return lay(weight.to_mkldnn(), (0, 0), stride, dilation, groups, list(like))


def _convolved(x: Tensor, packed: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    done: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *how, "none", [], "")
    return done


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    call: Callable[..., Tensor] = torch._C._nn.mkldnn_linear
    return call(x.contiguous().to_mkldnn(), weight.contiguous(), bias).to_dense()


def lays_out(weight: Tensor) -> bool:
    """Is this the kind of weights that can be laid out, and does it work here?"""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32
    return fits and bool(torch._C._has_mkldnn) and _works()


@cache
def _works() -> bool:
    """Do torch's calls for laid-out weights give what the ordinary calls give?"""
    x, weight, bias = torch.rand(2, 4, 5, 6), torch.rand(3, 4, 3, 3), torch.rand(3)
    x = x.contiguous(memory_format=torch.channels_last)
    flat, matrix, many = torch.rand(5, 4), torch.rand(3, 4), torch.rand(5, 2, 4)
    try:
        packed = _laid_out(weight, (2, 1), (1, 1), x.shape)
        one = _convolved(x, packed, bias, [1, 1], [2, 1], [1, 1], 1)
        two = _multiplied(flat, matrix, bias)
        three = Grouped(torch.stack([matrix, -matrix]), 5)(many)
    except (RuntimeError, AttributeError, TypeError):
        return False
    close = torch.allclose(one, torch.conv2d(x, weight, bias, (2, 1), 1), atol=1e-5)
    close = close and torch.allclose(two, F.linear(flat, matrix, bias), atol=1e-5)
    signs = torch.tensor([1.0, -1.0])[:, None]
    return close and torch.allclose(three, many @ matrix.T * signs, atol=1e-5)
