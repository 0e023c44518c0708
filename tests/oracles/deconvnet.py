"""What does a deconvnet do, written out the long way, for a chain of layers, in NumPy?

Nothing here differentiates anything: switches are kept on the way up, and on the way down come
unpooling, rectification and filtering with the transposed filters, each as its own loop.
Source: Zeiler and Fergus 2014, §2.1.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from torch import nn

Array = np.ndarray


def both(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def taps(conv: nn.Conv2d, size: tuple[int, int], out: tuple[int, int]):
    """For each position in the kernel: which outputs it serves, and which input each reads."""
    stride, padding, dilation = both(conv.stride), both(conv.padding), both(conv.dilation)
    for place in product(*(range(k) for k in both(conv.kernel_size))):
        served, read = [], []
        for axis in (0, 1):
            at = np.arange(out[axis]) * stride[axis] - padding[axis] + place[axis] * dilation[axis]
            inside = (at >= 0) & (at < size[axis])
            served.append(np.flatnonzero(inside))
            read.append(at[inside])
        yield place, np.ix_(*served), np.ix_(*read)


def weights(conv: nn.Conv2d) -> Array:
    """The filters (out, in, kh, kw) with the zeros that groups leave out written in."""
    packed = conv.weight.detach().double().numpy()
    full = np.zeros((conv.out_channels, conv.in_channels, *packed.shape[2:]))
    outs, ins = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    for group in range(conv.groups):
        rows = slice(group * outs, (group + 1) * outs)
        full[rows, group * ins : (group + 1) * ins] = packed[rows]
    return full


def filtered(conv: nn.Conv2d, x: Array) -> Array:
    out = tuple(
        (x.shape[1 + i] + 2 * both(conv.padding)[i] - both(conv.dilation)[i] * (k - 1) - 1)
        // both(conv.stride)[i]
        + 1
        for i, k in enumerate(both(conv.kernel_size))
    )
    y = np.zeros((conv.out_channels, *out))
    if conv.bias is not None:
        y += conv.bias.detach().double().numpy()[:, None, None]
    for place, served, read in taps(conv, x.shape[1:], out):
        y[:, *served] += np.einsum("oi,ihw->ohw", weights(conv)[:, :, *place], x[:, *read])
    return y


def unfiltered(conv: nn.Conv2d, signal: Array, shape: tuple[int, ...]) -> Array:
    """The transposed filters; `shape` is what torch wants to know as output_padding."""
    x = np.zeros(shape)
    for place, served, read in taps(conv, shape[1:], signal.shape[1:]):
        x[:, *read] += np.einsum("oi,ohw->ihw", weights(conv)[:, :, *place], signal[:, *served])
    return x


def pooled(pool: nn.MaxPool2d, x: Array) -> tuple[Array, dict[tuple[int, ...], tuple[int, ...]]]:
    """The maxima, and the switches: pooled cell → cell of its (first) maximum."""
    sides, strides, paddings = both(pool.kernel_size), both(pool.stride), both(pool.padding)
    out = []
    for n, k, s, p in zip(x.shape[1:], sides, strides, paddings, strict=True):
        count = -(-(n + 2 * p - k) // s) + 1 if pool.ceil_mode else (n + 2 * p - k) // s + 1
        out.append(count - 1 if (count - 1) * s >= n + p else count)
    y, switches = np.empty((len(x), *out)), {}
    for cell in product(*(range(n) for n in y.shape)):
        tops = [cell[1 + i] * strides[i] - paddings[i] for i in (0, 1)]
        window = [
            (cell[0], row, column)
            for row in range(max(tops[0], 0), min(tops[0] + sides[0], x.shape[1]))
            for column in range(max(tops[1], 0), min(tops[1] + sides[1], x.shape[2]))
        ]
        switches[cell] = max(window, key=lambda place: x[place])
        y[cell] = x[switches[cell]]
    return y, switches


def unpooled(signal: Array, switches, shape: tuple[int, ...], overlap: str) -> Array:
    x = np.zeros(shape)
    for cell, place in switches.items():  # in row-major order
        x[place] = signal[cell] + (x[place] if overlap == "add" else 0)
    return x


def normalised(norm: nn.LocalResponseNorm, x: Array) -> Array:
    y = np.empty_like(x)
    for c in range(len(x)):
        low = max(0, c - norm.size // 2)
        around = x[low : c + (norm.size - 1) // 2 + 1]
        energy = (around**2).sum(0)
        y[c] = x[c] / (norm.k + norm.alpha * energy / norm.size) ** norm.beta
    return y


class Deconvnet:
    """One picture's way up through a chain of layers, and any unit's way down."""

    def __init__(self, net: nn.Sequential, picture: Array) -> None:
        self.layers = dict(net.named_children())
        self.before: dict[str, Array] = {}
        self.after: dict[str, Array] = {}
        self.switches: dict[str, dict] = {}
        x = picture.astype(np.float64)
        for name, layer in self.layers.items():
            self.before[name] = x
            x = self.after[name] = self._up(name, layer, x)

    def _up(self, name: str, layer: nn.Module, x: Array) -> Array:
        match layer:
            case nn.Conv2d():
                return filtered(layer, x)
            case nn.ReLU():
                return np.where(x > 0, x, 0)
            case nn.MaxPool2d():
                y, self.switches[name] = pooled(layer, x)
                return y
            case nn.LocalResponseNorm():
                return normalised(layer, x)
            case nn.Dropout():
                return x
            case nn.Flatten():
                return x.reshape(-1)
            case nn.Linear():
                weight, bias = (value.detach().double().numpy() for value in layer.parameters())
                return weight @ x + bias
        raise NotImplementedError(type(layer))

    def peak(self, name: str, channel: int) -> tuple[int, int]:
        maps = self.after[name][channel]
        return tuple(int(i) for i in np.argwhere(maps == maps.max())[0])

    def down(self, name: str, channel: int, at=None, *, overlap="add", whole_map=False) -> Array:
        """Project one unit (or a whole map) of a layer to pixels."""
        names = list(self.layers)
        signal = np.zeros_like(self.after[name])
        place = (channel,) if whole_map or at is None else (channel, *at)
        signal[place] = np.maximum(self.after[name][place], 0)
        for below in reversed(names[: names.index(name) + 1]):
            signal = self._down(below, self.layers[below], signal, overlap)
        return signal

    def _down(self, name: str, layer: nn.Module, signal: Array, overlap: str) -> Array:
        shape = self.before[name].shape
        match layer:
            case nn.Conv2d():
                return unfiltered(layer, signal, shape)
            case nn.ReLU():
                return np.where(signal > 0, signal, 0)  # the signal's own sign, not the picture's
            case nn.MaxPool2d():
                return unpooled(signal, self.switches[name], shape, overlap)
            case nn.Linear():
                return layer.weight.detach().double().numpy().T @ signal
        return signal.reshape(shape)  # dropout, flatten; contrast normalisation is passed by
