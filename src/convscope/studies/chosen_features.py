"""What do random or chosen maps of a few layers see, for a figure in print?

Source: Zeiler and Fergus 2014, figure 2: random maps of five layers, nine strongest pictures each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from convscope.errors import ModelError, UsageError
from convscope.lens.backward import Other, Overlap
from convscope.lens.feature_layers import feature_layers
from convscope.lens.lens import Lens
from convscope.methods.given import FolderLike, Layers, pictures_of, taking
from convscope.methods.tuning import Tuning, blank, require_tuning
from convscope.methods.ways_down import Choice
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.pictures.opening import opened
from convscope.records.features import COUNTS, LayerFeatures, random_maps
from convscope.studies.layer_features import each_layer, mined
from convscope.units import Unit

SIDE = 64
"""On paper a tile is 4 to 5 mm wide: this is more than 300 pixels an inch."""


@taking(folder=pictures_of)
@recorded
def chosen_features(
    network: Network,
    folder: FolderLike,
    layers: Layers = None,
    *,
    units: Sequence[Unit | str] = (),
    count: int | None = None,
    k: int = 9,
    side: int = SIDE,
    seed: int = 0,
    rule: Choice = "auto",
    overlap: Overlap = "add",
    other: Other = "refuse",
    tuning: Tuning | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[LayerFeatures]:
    """The k strongest pictures of some maps, with patches and projections, a record a layer.

    layers: by default those of the units, or else five of the network's, evenly from the first to
    the last (`feature_layers`). units: the maps wanted, in this order. count: without units, of
    each layer so many random ones that are active in any picture (`seed`); by default as many as
    in the paper. The rest as in `features`.

    Raises UsageError U387 (count, or units of layers that are not named), ModelError M504 (no such
    map), and what `features` raises.
    """
    require_tuning(tuning)
    network, wanted = whole(network), _units(units, layers, count)
    names = layers or list(wanted) or _spread(network)
    _require(network, wanted)
    with opened(folder) as pictures:
        looking = mined(
            network,
            pictures,
            names,
            k=k,
            side=side,
            rule=rule,
            overlap=overlap,
            other=other,
            tuning=tuning,
            progress=progress,
        )
        chance = np.random.default_rng(seed)
        maps = {
            layer: wanted.get(layer)
            or random_maps(looking.found.active[looking.found.rows(layer)], count, place, chance)
            for place, layer in enumerate(names)
        }
        return list(each_layer(looking, maps))


def _units(
    units: Sequence[Unit | str], layers: Sequence[str] | None, count: int | None
) -> dict[str, list[int]]:
    """Maps by layer."""
    if count is not None and count < 1:
        raise UsageError("U387", f"{count} maps", "are none", next_step="take 1 or more")
    found: dict[str, list[int]] = {}
    for unit in units:
        one = Unit.parse(unit) if isinstance(unit, str) else unit
        if layers and one.layer not in layers:
            what = f"its layer is not among those named: {', '.join(layers)}"
            raise UsageError("U387", str(one), what, next_step="name the layer too, or no layers")
        found.setdefault(one.layer, []).append(one.channel)
    return found


def _require(network: Network, wanted: Mapping[str, Sequence[int]]) -> None:
    """Before the long search for their pictures: are these maps there?"""
    empty = blank(network.model, network.preprocess.shape)
    with torch.no_grad(), Lens(network.model, list(wanted)) as lens:
        if wanted:
            lens.reach(empty)
        counts = {layer: lens[layer].shape[1] for layer in wanted}
    for layer, maps in wanted.items():
        there = counts[layer]
        for channel in maps:
            if channel >= there:
                what = f"has {there} feature maps (0 to {there - 1}), no {channel}"
                raise ModelError("M504", layer, what)


def _spread(network: Network) -> list[str]:
    empty = blank(network.model, network.preprocess.shape)
    every = feature_layers(network.model, empty)
    places = np.linspace(0, len(every) - 1, min(len(COUNTS), len(every))).round().astype(int)
    return [every[place] for place in places]
