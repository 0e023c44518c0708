"""What do some maps of a network's layers see, as a page for print?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from convscope.cli.options import ANY_MODEL, Opening, Reading, Sending, expanded
from convscope.cli.progress import progress, tell
from convscope.cli.results import claim, keep_table, listed, new_study, save_figure
from convscope.errors import UsageError
from convscope.run import Run

if TYPE_CHECKING:
    from convscope.network.network import Network
    from convscope.records.features import LayerFeatures
    from convscope.studies.features.figure import Scale

KEPT = "layer-"
"""Records in what the command writes: layer-0, layer-1, …"""
AGAIN = f"{ANY_MODEL} Without PICTURES: what this command or `atlas` wrote, to draw it again."


@expanded
def features(
    model: Annotated[str, typer.Argument(help=AGAIN)],
    opening: Opening,
    reading: Reading,
    sending: Sending,
    pictures: Annotated[
        str | None, typer.Argument(help="Pictures to find the strongest of, e.g. for validation.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Names with commas; default: five, from first to last.")
    ] = None,
    maps: Annotated[
        str, typer.Option(help="random (as many as in the paper), random:16, or conv1:3,conv5:41.")
    ] = "random",
    top: Annotated[int, typer.Option(min=1, max=100, help="Pictures of each map.")] = 9,
    scale: Annotated[
        str, typer.Option(help="Of projections: one for each map, or one for a layer.")
    ] = "map",
    seed: Annotated[int, typer.Option(min=0, help="Of the random maps.")] = 0,
    out: Annotated[Path, typer.Option(help="New folder for records and figure.")] = Path(
        "features"
    ),
) -> None:
    """The strongest pictures of some maps beside their projections, for print (figure 2).

    Example: convscope features torchvision:squeezenet1_0 pictures --maps random:12
    """
    from convscope.studies.features.figure import features_figure, features_table

    claim(out)
    if scale not in ("map", "layer"):
        raise UsageError("U388", scale, "is no scale", next_step="write map or layer")
    asked = _asked(listed(layers), maps, seed)
    if pictures is None:
        found = _again(Path(model), asked)
    else:
        way = {"k": top, "rule": sending.rule, "other": sending.other}
        found = _made(opening.network(model), pictures, reading, asked, way)
    how = cast("Scale", scale)
    with new_study(out) as place:
        for number, record in enumerate(found):
            record.save(place / f"{KEPT}{number}")
        if any(record.beside for record in found):
            save_figure(features_figure(found, scale=how, beside=True), place / "figure-other-rule")
        keep_table(features_table(found), place / "table.md")
        save_figure(features_figure(found, scale=how), place / "figure")
    tell(out / "figure.pdf")


class _Asked(NamedTuple):
    """Which maps: chosen ones, or so many random ones of each layer."""

    layers: Sequence[str] | None
    units: Sequence[str]
    many: int | None
    seed: int


def _asked(layers: Sequence[str] | None, maps: str, seed: int) -> _Asked:
    head, _, number = maps.partition(":")
    if head != "random":
        return _Asked(layers, listed(maps) or (), None, seed)
    if number and not (number.isascii() and number.isdigit() and 0 < int(number) < 10_000):
        step = "write random, random:16, or conv1:3,conv5:41"
        raise UsageError("U387", maps, "is no number of maps", next_step=step)
    return _Asked(layers, (), int(number) if number else None, seed)


def _made(
    network: Network,
    pictures: str,
    reading: Reading,
    asked: _Asked,
    way: dict[str, Any],
) -> list[LayerFeatures]:
    from convscope.studies.features.study import chosen_features

    with reading.open(pictures) as folder, progress("strongest pictures") as tick:
        return chosen_features(
            network,
            folder,
            asked.layers,
            units=asked.units,
            count=asked.many,
            run=Run(seed=asked.seed, progress=tick),
            **way,
        )


def _again(folder: Path, asked: _Asked) -> list[LayerFeatures]:
    """Out of what was written: the layers and maps asked for."""
    from convscope.errors import ModelError, nearest
    from convscope.records.features import LayerFeatures

    if (folder / "data" / "atlas.js").is_file():
        return _from_atlas(folder, asked)
    numbered = {path.name.removeprefix(KEPT): path for path in folder.glob(f"{KEPT}*")}
    places = [numbered[name] for name in sorted(filter(str.isdecimal, numbered), key=int)]
    found = [LayerFeatures.load(place) for place in places]
    if not found:
        what = "is neither an atlas nor what `convscope features` wrote"
        raise UsageError("U389", str(folder), what, next_step="name PICTURES too")
    if asked.units or asked.many is not None:
        what = "the maps were chosen when these records were made"
        raise UsageError("U389", str(folder), what, next_step="leave out --maps, or name an atlas")
    kept = [record.layer for record in found]
    for layer in asked.layers or ():
        if layer not in kept:
            raise ModelError("M500", layer, f"no such layer here; {nearest(layer, kept)}")
    return [record for record in found if record.layer in (asked.layers or kept)]


def _from_atlas(folder: Path, asked: _Asked) -> list[LayerFeatures]:
    import numpy as np

    from convscope.errors import ModelError, nearest
    from convscope.pages.atlas import atlas_features, atlas_layers
    from convscope.records.features import COUNTS, random_maps
    from convscope.units import Unit

    active, wanted = atlas_layers(folder), [Unit.parse(unit) for unit in asked.units]
    even = np.linspace(0, len(active) - 1, min(len(COUNTS), len(active))).round().astype(int)
    names = asked.layers or list(dict.fromkeys(unit.layer for unit in wanted))
    names = names or [list(active)[place] for place in even]
    chance, found = np.random.default_rng(asked.seed), []
    for place, layer in enumerate(names):
        if layer not in active:
            raise ModelError("M500", layer, f"no such layer here; {nearest(layer, active)}")
        chosen = [unit.channel for unit in wanted if unit.layer == layer]
        chosen = chosen or random_maps(active[layer], asked.many, place, chance)
        found.append(atlas_features(folder, layer, chosen))
    return found
