"""What do the formulas of the gradient family give, written out the long way, in NumPy?

Nothing here differentiates anything: each layer's way up and way down is its own loop, in float64,
and each rule for rectifiers is written where it applies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from torch import nn

from tests.oracles.deconvnet import filtered, pooled, unfiltered, unpooled

Array = np.ndarray
Net = Callable[[Array], "Chain"]
"""From a picture to its way through the network."""


class Chain:
    """One picture's way up through layers that follow each other, and a class score's way down."""

    def __init__(self, layers: Sequence[nn.Module], picture: Array) -> None:
        self.layers, self.before = list(layers), []
        self.switches: dict[int, dict] = {}
        x = picture.astype(np.float64)
        for number, layer in enumerate(self.layers):
            self.before.append(x)
            x = self._up(number, layer, x)
        self.scores = x

    def _up(self, number: int, layer: nn.Module, x: Array) -> Array:
        match layer:
            case nn.Conv2d():
                return filtered(layer, x)
            case nn.BatchNorm2d():
                mean, shift = (v.detach().numpy() for v in (layer.running_mean, layer.bias))
                return (x - mean[:, None, None]) * slope(layer) + shift[:, None, None]
            case nn.ReLU():
                return np.where(x > 0, x, 0)
            case nn.MaxPool2d():
                y, self.switches[number] = pooled(layer, x)
                return y
            case nn.AdaptiveAvgPool2d():
                return x.sum((1, 2), keepdims=True) / x[0].size
            case nn.Dropout():
                return x
            case nn.Flatten():
                return x.reshape(-1)
            case nn.Linear():
                weight, bias = (value.detach().numpy() for value in layer.parameters())
                return weight @ x + bias
        raise NotImplementedError(type(layer))

    def down(self, target: int, rule: str = "gradient") -> Array:
        """What 1 at the target's score sends to the pixels."""
        signal = np.zeros_like(self.scores)
        signal[target] = 1
        for number in reversed(range(len(self.layers))):
            signal = self._down(number, self.layers[number], signal, rule)
        return signal

    def _down(self, number: int, layer: nn.Module, signal: Array, rule: str) -> Array:
        x = self.before[number]
        match layer:
            case nn.Conv2d():
                return unfiltered(layer, signal, x.shape)
            case nn.BatchNorm2d():
                return signal * slope(layer)
            case nn.ReLU():
                positive, opened = np.where(signal > 0, signal, 0), x > 0
                return {"gradient": signal * opened, "deconvnet": positive}.get(
                    rule, positive * opened
                )
            case nn.MaxPool2d():
                return unpooled(signal, self.switches[number], x.shape, "add")
            case nn.AdaptiveAvgPool2d():
                return np.broadcast_to(signal / x[0].size, x.shape)
            case nn.Linear():
                return layer.weight.detach().numpy().T @ signal
        return signal.reshape(x.shape)  # dropout, flatten


def slope(norm: nn.BatchNorm2d) -> Array:
    weight, variance = (v.detach().numpy() for v in (norm.weight, norm.running_var))
    return (weight / np.sqrt(variance + norm.eps))[:, None, None]


def strongest(pixels: Array) -> Array:
    """Simonyan et al. 2013, §3.1: M_ij = max_c |w_c(i, j)|."""
    return each(pixels, lambda colours: max(abs(one) for one in colours))


def summed(pixels: Array) -> Array:
    return each(pixels, math.fsum)


def sizes(pixels: Array) -> Array:
    """The code of SmoothGrad's authors: Σ_c |·|."""
    return each(pixels, lambda colours: math.fsum(abs(one) for one in colours))


def each(pixels: Array, one: Callable[[Sequence[float]], float]) -> Array:
    out = np.zeros(pixels.shape[1:])
    for i, j in product(*map(range, out.shape)):
        out[i, j] = one([float(value) for value in pixels[:, i, j]])
    return out


def smoothgrad(
    net: Net, picture: Array, target: int, drawn: Sequence[Array], noise: float, *, squared: bool
) -> Array:
    """Smilkov et al. 2017, §2: the mean over x + N(0, σ²), σ a share of x_max − x_min."""
    total = np.zeros(picture.shape)
    sigma = noise * (max(picture.flat) - min(picture.flat))
    for sample in drawn:
        gradient = net(picture + sigma * sample).down(target)
        total += gradient**2 if squared else gradient
    return total / len(drawn)


def integrated(
    net: Net, picture: Array, target: int, start: Array, nodes: Sequence[tuple[float, float]]
) -> Array:
    """Sundararajan et al. 2017, equation 1, the integral by its points and weights."""
    total = np.zeros(picture.shape)
    for place, weight in nodes:
        total += weight * net(start + place * (picture - start)).down(target)
    return (picture - start) * total


def nodes(quadrature: str, steps: int) -> list[tuple[float, float]]:
    """Points between 0 and 1, and weights."""
    k = range(steps)
    match quadrature:
        case "right":  # the paper's equation 3
            return [((i + 1) / steps, 1 / steps) for i in k]
        case "left":
            return [(i / steps, 1 / steps) for i in k]
        case "midpoint":
            return [((i + 0.5) / steps, 1 / steps) for i in k]
        case "trapezoid":
            ends = (0, steps - 1)
            return [(i / (steps - 1), (0.5 if i in ends else 1) / (steps - 1)) for i in k]
    return [_legendre(i, steps) for i in k]


def _legendre(i: int, steps: int) -> tuple[float, float]:
    """The root of the Legendre polynomial by Newton's method from a cosine nearby."""
    x = math.cos(math.pi * (i + 0.75) / (steps + 0.5))
    for _ in range(100):
        before, value = 1.0, x
        for n in range(2, steps + 1):
            before, value = value, ((2 * n - 1) * x * value - (n - 1) * before) / n
        steep = steps * (x * value - before) / (x * x - 1)
        x -= value / steep
    return (x + 1) / 2, 1 / ((1 - x * x) * steep * steep)
