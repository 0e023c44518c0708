"""Records of features: patches and projections of an atlas, layer table, model card, embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from convscope.core.record import Record

COUNTS = (9, 16, 12, 10, 10)
"""Maps of the five layers in figure 2 of Zeiler and Fergus 2014."""


Grid = tuple[str, int, int, int, float]
"""A convolution's name, its kernel and stride, pixels from line to line, and by what share of its
mean the energy of the layer's projections swings with them."""
ALIKE, APART = 0.8, 0.1
"""Projections look alike from this mean correlation on, where their patches' is lower by so much.
On trained networks: 0.84 to 1.00 without switches or gates of the picture, below 0.6 with them."""


class Shown(NamedTuple):
    """One rule's projections of a layer."""

    rule: str
    projections: UInt8[np.ndarray, "maps k s s 3"]
    low: Float32[np.ndarray, "maps"]
    high: Float32[np.ndarray, "maps"]
    similarity: Float32[np.ndarray, "maps"]
    grids: tuple[Grid, ...]


_NONE = partial(np.zeros, 0, np.float32)


@dataclass(frozen=True, eq=False)
class LayerFeatures(Record):
    """Top-k patches and projections of all feature maps of one layer, at display size.

    Entry (map, place) follows the TopK record; unused entries have image -1 and grey pixels.
    `s` is the side of the receptive field, or of the display limit where that is smaller.
    """

    layer: str
    kind: str
    """The module's class, e.g. Conv2d."""
    shape: tuple[int, int, int]
    """Channels, rows, columns of the layer's output."""
    field: tuple[int, int]
    """Receptive field's height and width in input pixels."""
    stride: tuple[int, int]
    """Input pixels from one neuron to the next, down and across."""
    value: Float32[np.ndarray, "maps k"]
    image: Int64[np.ndarray, "maps k"]
    row: Int32[np.ndarray, "maps k"]
    column: Int32[np.ndarray, "maps k"]
    box: Int32[np.ndarray, "maps k 4"]
    """Receptive field (top, left, bottom, right) in input pixels, half-open, may reach outside."""
    active: Int64[np.ndarray, "maps"]
    invalid: Int64[np.ndarray, "maps"]
    seen: int
    patches: UInt8[np.ndarray, "maps k s s 3"]
    projections: UInt8[np.ndarray, "maps k s s 3"]
    low: Float32[np.ndarray, "maps"]
    high: Float32[np.ndarray, "maps"]
    """A projection pixel v stands for low + v / 255 · (high - low), clipped, jointly over k."""
    rewritten: int
    rectifiers: int
    """Coverage of the backward rule: rewritten of all rectifier calls below the layer."""
    channels: tuple[int, ...] = ()
    """Numbers of the maps in the rows, where these are not all maps of the layer in order."""
    rule: str = "deconvnet"
    """By which signals went down to the projections: deconvnet or guided."""
    similarity: Float32[np.ndarray, "maps"] = dataclasses.field(default_factory=_NONE)
    """Mean correlation among a map's projections, each pair over the pixels that both fields have
    in their pictures; see `docs/deconvnet.md`. NaN where fewer than two are not flat."""
    patch_similarity: Float32[np.ndarray, "maps"] = dataclasses.field(default_factory=_NONE)
    """The same of the patches."""
    grids: tuple[Grid, ...] = ()
    """Of strides, that show in the projections."""
    beside: str = ""
    """The other rule, where both were asked for; then what follows is that one's."""
    beside_projections: UInt8[np.ndarray, "maps k s s 3"] | None = None
    beside_low: Float32[np.ndarray, "maps"] | None = None
    beside_high: Float32[np.ndarray, "maps"] | None = None
    beside_similarity: Float32[np.ndarray, "maps"] | None = None
    beside_grids: tuple[Grid, ...] = ()

    def __post_init__(self) -> None:
        for name in ("similarity", "patch_similarity"):  # older records have none
            if len(getattr(self, name)) != len(self.image):
                unknown = np.full(len(self.image), np.nan, np.float32)
                object.__setattr__(self, name, unknown)
        super().__post_init__()

    @property
    def shown(self) -> tuple[Shown, ...]:
        """The projections by the layer's own rule, then by the other one if that was asked for."""
        own = Shown(self.rule, self.projections, self.low, self.high, self.similarity, self.grids)
        if not self.beside:
            return (own,)
        others = {name: getattr(self, f"beside_{name}") for name in Shown._fields[1:]}
        return own, Shown(self.beside, **others)

    def alike(self, similarity: Float32[np.ndarray, "maps"]) -> Bool[np.ndarray, "maps"]:
        """Of which maps would the projections look nearly the same for any picture? None below
        all rectifiers, where a projection is the filter itself."""
        patches = np.nan_to_num(self.patch_similarity, nan=-1.0)
        alike: np.ndarray = (similarity >= ALIKE) & (similarity - patches >= APART)
        return alike & (self.rectifiers > 0)

    packed = frozenset({"patches", "projections", "beside_projections"})

    def of(self, maps: Sequence[int]) -> LayerFeatures:
        """Some of the maps, by their places here, in this order."""
        rows: dict[str, Any] = {
            entry.name: value[list(maps)]
            for entry in dataclasses.fields(self)
            if isinstance(value := getattr(self, entry.name), np.ndarray)
        }
        known = self.maps
        return dataclasses.replace(self, **rows, channels=tuple(known[place] for place in maps))

    @property
    def maps(self) -> tuple[int, ...]:
        """The number of the feature map in each row."""
        return self.channels or tuple(range(len(self.image)))


@dataclass(frozen=True, eq=False)
class Pictures(Record):
    """The pictures that the features refer to, small, as the network saw them."""

    number: Int64[np.ndarray, "pictures"]
    """Picture numbers in their folder, ascending."""
    name: tuple[str, ...]
    """Display names, e.g. roses/123.jpg."""
    label: Int64[np.ndarray, "pictures"]
    """Class index of the folder, -1 if unknown."""
    classes: tuple[str, ...]
    """The folder's class names."""
    thumbs: UInt8[np.ndarray, "pictures t t 3"]
    """The framed picture (what the network saw), in the middle of a grey square if not square."""
    size: tuple[int, int]
    """Height and width of the network's input in pixels; boxes are in these."""


@dataclass(frozen=True, eq=False)
class LayerTable(Record):
    """The layers of a network from pixels to classes."""

    name: tuple[str, ...]
    kind: tuple[str, ...]
    shape: tuple[tuple[int, ...], ...]
    """Output shape without the batch axis."""
    parameters: Int64[np.ndarray, "layers"]
    multiply_adds: Int64[np.ndarray, "layers"]
    """For one picture."""
    field: Int64[np.ndarray, "layers 2"]
    stride: Int64[np.ndarray, "layers 2"]
    """Receptive field and stride in pixels (height, width); 0 where there are no positions."""
    input: tuple[int, int, int]
    kernel: tuple[tuple[int, ...], ...] = ()
    """Rows and columns of a convolution's or a pool's window; empty for other layers."""
    of: tuple[str, ...] = ()
    """Of a batch normalisation the convolution that it follows: its maps are that one's, scaled."""


@dataclass(frozen=True, eq=False)
class ModelCard(Record):
    """What network is this?"""

    name: str
    """As it was asked for, e.g. zfnet or torchvision:vgg16."""
    weights: str
    """File name or "random"."""
    sha256: str
    parameters: int
    multiply_adds: int
    input: tuple[int, int, int]
    classes: tuple[str, ...]
    preprocessing: str
    """One line, e.g. resize 256, centre crop 224, mean …, std …."""
    top1: float = -1.0
    top5: float = -1.0
    """Accuracy on the pictures at hand in 0 to 1; -1 where there are no labels."""


def grid_words(grid: Grid) -> str:
    """Source: Odena, Dumoulin and Olah 2016, "Deconvolution and Checkerboard Artifacts"."""
    layer, kernel, stride, period, _ = grid
    of = f" of {layer}" if layer else ""
    why = "is no multiple" if kernel % stride else "is a multiple, its filters are uneven"
    return f"grid of period {period} px from stride {stride}{of} (kernel {kernel} {why})"


def random_maps(
    active: Int64[np.ndarray, "maps"], count: int | None, place: int, chance: np.random.Generator
) -> list[int]:
    """Numbers of random maps of a layer, ascending; only of maps that any picture excites, unless
    there are none. count: by default what the paper has of its layer at this place, from 0."""
    most = count or COUNTS[min(place, len(COUNTS) - 1)]
    alive = np.flatnonzero(active > 0)
    there = alive if len(alive) else np.arange(len(active))
    return sorted(chance.choice(there, min(most, len(there)), replace=False).tolist())


@dataclass(frozen=True, eq=False)
class Embedding(Record):
    """The features of one layer, a row a usable picture, in the folder's order.

    Loaded from disk, `values` stays there and is read as it is used.
    """

    mapped: ClassVar[frozenset[str]] = frozenset({"values"})

    layer: str
    """A module's name, or `pixels`."""
    values: Float32[np.ndarray, "n d"]
    shape: tuple[int, ...]
    """Of the layer's output for one picture, before it became a vector."""
    vector: str
    """How it became one, in words: flattened, or averaged over a grid."""
    number: Int64[np.ndarray, "n"]
    """Of the picture in its folder."""
    name: tuple[str, ...]
    label: Int64[np.ndarray, "n"]
    """Class index, -1 where the picture has no class."""
    classes: tuple[str, ...]
    digest: UInt8[np.ndarray, "n 32"]
    """SHA-256 of the picture's file."""
