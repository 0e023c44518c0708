"""What a network's first layer learned, wasted maps, spatial frequencies and aliasing of strides.

A stride of s keeps every s-th place. What is faster than one cycle in 2·s pixels down or across
(the Nyquist frequency of what is kept) is not lost but folded: it looks like something slower.
Sources: the sampling theorem; Zeiler and Fergus 2014, §4.1 and figure 6: a layer of 11×11 filters
at stride 4 has very high and very low frequencies and few between, and aliases; 7×7 at stride 2
does better. The paper shows pictures and no numbers; every number here, and every limit, is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError
from convscope.core.run import PLAIN, Run
from convscope.lens.lens import HOOK, Lens, conv_layers
from convscope.lens.twin import ShadowModel, bare, is_scripted
from convscope.network.arguments import FolderLike, pictures_of, taking
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Picture, Pictures
from convscope.scale.rows import RowJob
from convscope.studies.base import Ask, arguments
from convscope.studies.filters import Options
from convscope.studies.filters.health import HealthJob, Tally, batch_of, first_alike, maps_of
from convscope.studies.filters.record import Filters
from convscope.trace.layers import feature_layers

EDGES = (0.125, 0.25)
"""Cycles a pixel between low, middle and high: what strides of 4 and of 2 can keep."""
FINE = 64
"""Frequencies a side in a filter's spectrum."""
COARSE = 16
"""Frequencies a side of the gratings' grid."""
AT_ONCE = 16
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
        for start in range(0, len(places), AT_ONCE):
            some = places[start : start + AT_ONCE]
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
    folding, kept = _Folding(model), dict[str, list[Fold]]()
    for images in batches:
        for one in torch.split(images, 1):
            for fold in folding(one):
                kept.setdefault(fold.layer, []).append(fold)
    return [_joined(folds) for folds in kept.values()]


def _joined(folds: Sequence[Fold]) -> Fold:
    """Of one layer, on several pictures."""
    return folds[0]._replace(share=np.concatenate([fold.share for fold in folds]))


class _Folding:
    """What each strided layer folds of one picture."""

    def __init__(self, model: nn.Module) -> None:
        self._twin, self._folds = ShadowModel(model), dict[nn.Module, Fold | None]()
        named = reversed(list(self._twin.model.named_modules()))
        self._names = {module: name for name, module in named}
        for module in self._names:
            if isinstance(module, STRIDED) and not is_scripted(module) and max(_stride(module)) > 1:
                module._forward_hooks[HOOK] = self._look

    def __call__(self, image: Float[Tensor, "1 c h w"]) -> list[Fold]:
        self._folds.clear()
        with torch.inference_mode():
            self._twin.run(image)
        return [fold for fold in self._folds.values() if fold is not None]

    def _look(self, module: Any, inputs: Any, _: Any) -> None:
        if module in self._folds:
            return
        given = inputs[0] if inputs[0].dim() == 4 else inputs[0][None]
        stride = _stride(module)
        sides = zip(_dense_sides(module, given), stride, strict=True)
        self._folds[module] = None
        if all(side > 2 * step for side, step in sides):
            share, name = _shares(_dense(module, given), stride), self._names[module]
            self._folds[module] = Fold(name, type(module).__name__, stride, share)


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


class _FirstLook(RowJob[tuple[list[Any], list[Any]]]):
    """What strides fold of each picture, and the least and largest value of every map."""

    name, kind, may_be_empty = "filters-first", tuple[list[Fold], list[Any]], True

    def __init__(self, network: Network, layers: Sequence[str]) -> None:
        super().__init__({**network.facts, "layers": list(layers)})
        self.framing = network.preprocess.framing
        self.network, self.layers = network, layers
        self._folding: _Folding | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_folding": None}

    def row(self, picture: Picture) -> tuple[list[Fold], list[Any]]:
        self._folding = self._folding or _Folding(self.network.model)
        image = batch_of(self.network, [picture])
        return self._folding(image), self.ends(image)

    def ends(self, image: Float[Tensor, "1 c h w"]) -> list[Any]:
        result = []
        with Lens(self.network.model, self.layers) as lens, torch.inference_mode():
            lens.reach(image)
            for layer in self.layers:
                values = maps_of(lens, layer).transpose(0, 1).flatten(1).double().cpu().numpy()
                result.append((values.min(1), values.max(1)))
        return result


WEAK = 0.1
"""Of the median RMS."""
ALIKE = 0.95
"""Cosine of two filters."""
FOLDED = 16
"""Pictures on which folding is measured, spread evenly: it differs little from one to the next."""


@taking(folder=pictures_of)
@recorded
def filters(
    network: Network,
    folder: FolderLike | None = None,
    *,
    clip: float = 0.0,
    run: Run = PLAIN,
) -> Filters:
    """The first convolution's filters, their frequencies and what its stride folds; with
    pictures also what each stride folds there, and wasted maps of all convolutions.

    clip: radius of the feature scale clipping to compare with (0.1 in the paper, for pixels from
    −128 to 128; 0: none); the network is not changed. run: its progress is over pictures.

    Raises DataError D161 (no usable picture), UsageError U376, U377, U413 (clip), ModelError M501
    (no convolution), M514 (not finite), M522, M596 (the first convolution cannot be measured).
    """
    network = whole(network)
    if not 0 <= clip < float("inf"):
        raise UsageError("U413", f"clip={clip:g}", "is no radius", next_step="take 0 or above")
    layer, conv = _first(network)
    weights = conv.weight.detach().float().cpu().numpy()
    if not np.isfinite(weights).all():
        raise ModelError("M514", layer, "its weights are not finite")
    stride = (int(conv.stride[0]), int(conv.stride[1]))
    heard = transfer(network.model, layer, network.preprocess.shape, stride, _margin(network, conv))
    return Filters(
        network=network.spec,
        layer=layer,
        stride=stride,
        **_of_weights(weights),
        transfer=heard.energy,
        folded=heard.folded,
        clip=clip,
        **_on_pictures(network, folder, run),
        origin={"method": "filters"},
    )


def _of_weights(weights: Float32[np.ndarray, "n c h w"]) -> dict[str, Any]:
    """The record's fields of the filters themselves."""
    flat = weights.reshape(len(weights), -1).astype(np.float64)
    rms = np.sqrt((flat**2).mean(1))
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)
    spectrum = bands(weights)
    return {
        "weights": weights,
        "rms": rms,
        "weak": rms < WEAK * np.median(rms),
        "twin": first_alike(unit @ unit.T, ALIKE),
        "bands": spectrum.share,
        "peak": spectrum.peak,
    }


def _first(network: Network) -> tuple[str, nn.Conv2d]:
    """The first convolution that the picture meets."""
    like = next(network.model.parameters(), torch.empty(0))
    blank = torch.zeros(1, *network.preprocess.shape).to(like)
    names = conv_layers(network.model, blank)
    if not names:
        raise ModelError("M501", network.spec, "has no convolution to look into")
    name = names[0]
    module = dict(bare(network.model).named_modules())[name.partition("#")[0]]
    if not isinstance(module, nn.Conv2d) or module.in_channels != network.preprocess.shape[0]:
        what = "is the first convolution, but does not look at the picture itself"
        raise ModelError("M596", name, what)
    return name, module


def _margin(network: Network, conv: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns of the output at a border that see beyond the picture."""
    sides = []
    for axis in range(2):
        reach = (conv.kernel_size[axis] - 1) * conv.dilation[axis] + 1
        places = network.preprocess.size[axis] // conv.stride[axis]
        needed = -(-reach // conv.stride[axis])
        if places <= 2 * needed + 2:
            what = f"pictures of {network.preprocess.size} leave no place away from the border"
            raise ModelError("M596", "the first convolution", what)
        sides.append(needed)
    return sides[0], sides[1]


def _on_pictures(
    network: Network, folder: Pictures | Path | str | None, run: Run
) -> dict[str, Any]:
    if folder is None:
        none = np.zeros(0, np.bool_)
        return {
            "fold_layers": (),
            "fold_kinds": (),
            "fold_strides": (),
            "folds": np.zeros((0, 0)),
            "layers": (),
            "of": np.zeros(0, np.int64),
            **dict.fromkeys(("silent", "saturated", "still", "copies"), none),
            "pictures": 0,
        }
    with opened(folder) as pictures:
        result, layers, tallies = _looked(network, pictures, run)
        pictures.require_usable(tallies[0].places)
        used = len(pictures) - len(pictures.skipped)
    counts = [len(tally.spread) for tally in tallies]
    joined = {
        name: np.concatenate([getattr(tally, name) for tally in tallies])
        for name in ("silent", "saturated", "still")
    }
    return {
        "fold_layers": tuple(fold.layer for fold in result),
        "fold_kinds": tuple(fold.kind for fold in result),
        "fold_strides": tuple(fold.stride for fold in result),
        "folds": np.stack([fold.share for fold in result]) if result else np.zeros((0, 0)),
        "layers": tuple(layers),
        "of": np.repeat(np.arange(len(layers)), counts),
        **joined,
        "copies": np.concatenate([tally.twins >= 0 for tally in tallies]),
        "pictures": used,
    }


def _looked(
    network: Network, pictures: Pictures, run: Run
) -> tuple[list[Fold], list[str], list[Tally]]:
    """What strides fold in some pictures; layers, and what all pictures say of their maps."""
    like = next(network.model.parameters(), torch.empty(0))
    layers = feature_layers(network.model, torch.zeros(1, *network.preprocess.shape).to(like))
    spread = np.linspace(0, len(pictures) - 1, min(FOLDED, len(pictures))).astype(int)
    first = _FirstLook(network, layers)
    rows = list(first.rows(pictures, run.telling(None), sorted(set(spread.tolist()))))
    folds = [fold for some, _ in rows for fold in some]
    names = dict.fromkeys(fold.layer for fold in folds)
    noise = np.random.default_rng(0).integers(0, 256, (*network.preprocess.size, 3), np.uint8)
    ends = [one for _, one in rows] or [first.ends(network.preprocess.batch([noise]).to(like))]
    tallies = HealthJob(network, _tallies(layers, ends)).measured(pictures, run)
    return [_joined([one for one in folds if one.layer == name]) for name in names], layers, tallies


def _tallies(layers: Sequence[str], rows: Sequence[list[Any]]) -> dict[str, Tally]:
    """One a layer, for the ranges that its maps have in these pictures."""
    ends = [np.array(one) for one in zip(*rows, strict=True)]
    return {
        layer: Tally(each[:, 0].min(0), each[:, 1].max(0))
        for layer, each in zip(layers, ends, strict=True)
    }


def from_command(ask: Ask, options: Options) -> dict[str, Filters]:
    """Of the network, and of the one that it is compared with."""

    def one(name: str, network: Network, folder: Pictures | None) -> Filters:
        run = ask.run(f"looking at {network.spec}"[:28]).inside(name)
        return filters(network, folder, **arguments(options, run))

    networks = {"network": ask.network()}
    if options.against:
        networks["against"] = ask.network(options.against, checkpoint=options.against_checkpoint)
    if not ask.given:
        return {name: one(name, network, None) for name, network in networks.items()}
    with ask.pictures() as folder:
        result = {name: one(name, network, folder) for name, network in networks.items()}
        folder.check_bad()
    return result
