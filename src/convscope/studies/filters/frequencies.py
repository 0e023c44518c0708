"""Spatial frequencies: which do filters pass, and which does a stride alias (take for others)?

A stride of s keeps every s-th place. What is faster than one cycle in 2·s pixels down or across
(the Nyquist frequency of what is kept) is not lost but folded: it looks like something slower.
Sources: Zeiler and Fergus 2014, §4.1 (aliasing from stride 4); the sampling theorem.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from convscope.lens.lens import HOOK, Lens
from convscope.lens.twin import ShadowModel, is_scripted

EDGES = (0.125, 0.25)
"""Cycles a pixel between low, middle and high: what strides of 4 and of 2 can keep."""
FINE = 64
"""Frequencies a side in a filter's spectrum."""
COARSE = 16
"""Frequencies a side of the gratings' grid."""
BATCH = 16
STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
Pair = tuple[int, int]


class Bands(NamedTuple):
    """Frequencies of each filter, over all its colours."""

    share: Float64[np.ndarray, "maps 3"]
    """Of its energy that is low, middle and high."""
    peak: Float64[np.ndarray, "maps"]
    """Of its strongest frequency, in cycles a pixel; up to 0.71 at a slant."""


def bands(weights: Float[np.ndarray, "maps c k l"]) -> Bands:
    """Of each filter's Fourier transform; energy is summed over colours. NaN for filters of
    zeros."""
    spectrum = np.abs(np.fft.fft2(weights, (FINE, FINE))) ** 2
    energy = spectrum.sum(1).reshape(len(weights), -1)
    radius = _radius(FINE).ravel()
    which = np.searchsorted(EDGES, radius, side="right")
    sums = np.stack([energy[:, which == band].sum(1) for band in range(3)], 1)
    whole = energy.sum(1, keepdims=True)
    share = np.divide(sums, whole, out=np.full_like(sums, np.nan), where=whole > 0)
    peak = np.where(whole[:, 0] > 0, radius[energy.argmax(1)], np.nan)
    return Bands(share, peak)


def _radius(side: int) -> Float64[np.ndarray, "side side"]:
    steps = np.fft.fftfreq(side)
    result: Float64[np.ndarray, "side side"] = np.hypot(steps[:, None], steps[None])
    return result


def apparent(frequency: float, stride: int) -> float:
    """What a frequency (cycles a pixel) looks like after a stride, in cycles a pixel: itself up
    to 1/(2·stride), something slower above."""
    return abs(frequency - round(frequency * stride) / stride)


def folds(frequencies: Float64[np.ndarray, "*any"], stride: int) -> np.ndarray:
    """Which frequencies down (or across) a stride cannot keep."""
    result: np.ndarray = np.abs(frequencies) > 1 / (2 * stride) + 1e-9
    return result


class Transfer(NamedTuple):
    """What a layer makes of gratings of every frequency, amplitude 1, all colours alike."""

    energy: Float64[np.ndarray, "down across"]
    """Mean square over places and phases, summed over maps; frequencies as `np.fft.fftfreq`
    orders them, 0 cycles (a plain grey) left at 0."""
    folded: float
    """Share of the energy of all gratings together that comes from folded ones."""


def transfer(
    model: nn.Module, layer: str, size: tuple[int, int, int], stride: Pair, margin: Pair
) -> Transfer:
    """Show the network gratings and measure a linear layer's answer.

    layer: the first convolution. stride: what of the frequencies it can keep. margin: rows and
    columns of its output at each border in which padding counts; they are left out.
    """
    like = next(model.parameters(), torch.empty(0))
    steps = np.fft.fftfreq(COARSE)
    energy = np.zeros((COARSE, COARSE))
    places = [(i, j) for i in range(COARSE) for j in range(COARSE) if (i, j) != (0, 0)]
    with Lens(model, [layer]) as lens, torch.inference_mode():
        blank = _answer(lens, torch.zeros(1, *size).to(like), layer, margin)
        for start in range(0, len(places), BATCH):
            some = places[start : start + BATCH]
            waves = [(steps[i], steps[j]) for i, j in some]
            # Two phases a quarter apart: their energies add up to the same at every place.
            result = [
                _answer(lens, _gratings(waves, phase, size).to(like), layer, margin) - blank
                for phase in (0.0, 0.25)
            ]
            squares = [part.double().square().mean((2, 3)).sum(1) for part in result]
            energy[tuple(zip(*some, strict=True))] = sum(squares).cpu().numpy()  # type: ignore[union-attr]
    outside = folds(steps, stride[0])[:, None] | folds(steps, stride[1])[None]
    whole = energy.sum()
    return Transfer(energy, float(energy[outside].sum() / whole) if whole > 0 else 0.0)


def _answer(
    lens: Lens, images: Float[Tensor, "n c h w"], layer: str, margin: Pair
) -> Float[Tensor, "n maps rows columns"]:
    lens.reach(images)
    rows, columns = (slice(m, -m if m else None) for m in margin)
    return lens[layer][:, :, rows, columns]


def _gratings(
    waves: Sequence[tuple[float, float]], phase: float, size: tuple[int, int, int]
) -> Float[Tensor, "n c h w"]:
    channels, height, width = size
    down, across = torch.arange(height).double()[:, None], torch.arange(width).double()[None]
    cycles = torch.stack([down * v + across * u for v, u in waves]) - phase
    return (2 * torch.pi * cycles).cos()[:, None].expand(-1, channels, -1, -1).float()


class Fold(NamedTuple):
    """What of one strided layer's output is folded, on pictures."""

    layer: str
    kind: str
    stride: Pair
    share: Float64[np.ndarray, "pictures"]
    """Of the energy of its output before the stride, 0 cycles left out."""


def folds_on_pictures(model: nn.Module, batches: Iterable[Float[Tensor, "n c h w"]]) -> list[Fold]:
    """For each convolution and pool with a stride: run it also with stride 1 on what it is
    given, and see how much of that output's energy the stride folds.

    Names in the order in which they run, the first run of each. Maps so small that only the mean
    is below what the stride can show are left out. The model is not touched.
    """
    twin = ShadowModel(model)
    names = {module: name for name, module in reversed(list(twin.model.named_modules()))}
    kept: dict[nn.Module, list[np.ndarray]] = {}
    seen: set[nn.Module] = set()

    def look(module: Any, inputs: Any, _: Any) -> None:
        if module in seen:
            return
        seen.add(module)
        given = inputs[0] if inputs[0].dim() == 4 else inputs[0][None]
        sides = zip(_dense_sides(module, given), _stride(module), strict=True)
        if all(side > 2 * step for side, step in sides):
            share = _shares(_dense(module, given), _stride(module))
            kept.setdefault(module, []).append(share)

    for module in twin.model.modules():
        if isinstance(module, STRIDED) and not is_scripted(module) and max(_stride(module)) > 1:
            module._forward_hooks[HOOK] = look
    with torch.inference_mode():
        for images in batches:
            for one in torch.split(images, 1):
                seen.clear()
                twin.run(one)
    return [
        Fold(names[module], type(module).__name__, _stride(module), np.concatenate(shares))
        for module, shares in kept.items()
    ]


def _stride(module: Any) -> Pair:
    given = module.stride or module.kernel_size
    down, across = (given, given) if isinstance(given, int) else given
    return int(down), int(across)


def _dense_sides(module: Any, given: Float[Tensor, "n c h w"]) -> tuple[int, ...]:
    """Rows and columns of what the layer would put out at every place; below 1 there is nothing."""
    if isinstance(module.padding, str):
        return tuple(given.shape[2:])
    kernel, padding, dilation = (
        value if isinstance(value, tuple) else (value, value)
        for value in (module.kernel_size, module.padding, getattr(module, "dilation", 1))
    )
    return tuple(
        side + 2 * around - step * (wide - 1)
        for side, wide, around, step in zip(given.shape[2:], kernel, padding, dilation, strict=True)
    )


def _dense(module: Any, given: Float[Tensor, "n c h w"]) -> Float[Tensor, "n maps rows columns"]:
    """What the layer would put out at every place."""
    everywhere = copy.copy(module)
    everywhere.stride = 1 if not isinstance(module, nn.Conv2d) else (1, 1)
    if hasattr(module, "ceil_mode"):
        everywhere.ceil_mode = False
    result = type(module).forward(everywhere, given)
    values: Tensor = result[0] if isinstance(result, tuple) else result
    return values


def _shares(dense: Float[Tensor, "n maps rows columns"], stride: Pair) -> np.ndarray:
    """Of each picture's energy: what the stride folds. A Hann window keeps the picture's borders
    from counting as edges."""
    values = dense.double()
    rows, columns = (
        torch.hann_window(side + 2, False, dtype=torch.float64)[1:-1] for side in values.shape[2:]
    )
    window = (rows[:, None] * columns[None]).to(values.device)
    values = (values - (values * window).sum((2, 3), keepdim=True) / window.sum()) * window
    energy = torch.fft.fft2(values).abs().square().sum(1).cpu().numpy()
    energy[:, 0, 0] = 0
    down, across = (np.fft.fftfreq(side) for side in energy.shape[1:])
    outside = folds(down, stride[0])[:, None] | folds(across, stride[1])[None]
    whole = energy.sum((1, 2))
    share: np.ndarray = energy[:, outside].sum(1) / np.maximum(whole, 1e-300)
    return share
