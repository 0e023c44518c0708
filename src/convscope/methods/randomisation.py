"""Does a map depend on what the network learned, and on the class that is asked for?

Cascading randomisation: weights become random layer by layer from the top. A map that stays the
same shows the picture's edges, not the network's reasons.
Source: Adebayo et al. 2018, "Sanity Checks for Saliency Maps", §3.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope import __version__
from convscope.errors import ModelError
from convscope.lens.survey import survey
from convscope.methods.cam_case import prepared
from convscope.methods.erasing import Asked
from convscope.methods.similarity import in_cells, overlap, spearman, ssim
from convscope.methods.targets import Aims, Target, answer
from convscope.records.faithfulness import Agreement, Randomisation, Sensitivity
from convscope.records.maps import Attribution

STEPS = 4
CELLS = 14
Method = Callable[..., list[Attribution]]


def randomisation(
    model: nn.Module,
    image: Float[Tensor, "c h w"],
    methods: dict[str, Method],
    *,
    target: Target | None = None,
    classes: Sequence[str] = (),
    steps: int = STEPS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Randomisation]:
    """Compare each method's map with its maps of the same network with random weights.

    steps: how often a map is made again: after the topmost layer with weights became random, …,
    after all did, in about equal steps. The class stays the one of the trained network, and so
    does the layer that a CAM looks at. The model itself is not touched; the copy's layers are
    drawn anew by their own `reset_parameters`, others from a normal distribution of the same
    mean and spread. A method that fails on a random network, as where numbers become NaN, gets
    NaN there.
    """
    images = prepared(model, image)
    aim = Asked.of(model, images[0], Aims.of(target, 1, classes)).aim.each[0]
    before = {name: method(model, images, target=aim)[0] for name, method in methods.items()}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    layers, total = [], min(steps, len(layers_down(model, images))) * len(methods)
    done = itertools.count(1)
    for layer, network in randomised(model, images, steps, seed):
        layers.append(layer)
        for name, method in methods.items():
            found[name].append(_compared(method, network, images, aim, before[name]))
            if progress is not None:
                progress(next(done), total)
    return {name: _record(before[name], layers, rows, seed) for name, rows in found.items()}


def randomised(
    model: nn.Module, images: Float[Tensor, "b c h w"], steps: int, seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """The same copy of the network again and again, each time with more random weights; with the
    name of the layer down to which they are."""
    names = layers_down(model, images)
    if not names:
        raise ModelError("M526", "the network", "has no weights that could be made random")
    network = copy.deepcopy(model)
    modules = dict(network.named_modules())
    stops = sorted({round(stop) for stop in np.linspace(1, len(names), min(steps, len(names)))})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start, stop in zip([0, *stops], stops, strict=False):
            for name in names[start:stop]:
                redraw(modules[name])
            yield names[stop - 1], network


def layers_down(model: nn.Module, images: Float[Tensor, "b c h w"]) -> list[str]:
    """Modules with weights of their own, from the network's top to its bottom as it runs."""
    seen, _ = survey(model, images, lambda module, _: bool(list(module.parameters(False))))
    ran = [name.partition("#")[0] for name, own in seen if own]
    return list(dict.fromkeys(reversed(ran)))


def redraw(module: nn.Module) -> None:
    """Draw a module's own weights anew."""
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    with torch.no_grad():
        for weight in module.parameters(recurse=False):
            spread = float(weight.float().std()) if weight.numel() > 1 else 1.0
            weight.copy_(torch.randn(weight.shape) * spread + float(weight.float().mean()))


def _compared(
    method: Method,
    network: nn.Module,
    images: Tensor,
    aim: object,
    before: Attribution,
) -> tuple[float, float, float]:
    is_layer = before.layer.partition("#")[0] in dict(network.named_modules())
    same = {"layer": before.layer} if is_layer else {}
    try:
        (after,) = method(network, images, target=aim, **same)
    except ModelError:
        return (np.nan,) * 3
    a, b = before.values, after.values
    return spearman(a, b), spearman(np.abs(a), np.abs(b)), ssim(a, b)


def _record(
    before: Attribution, layers: list[str], rows: list[tuple[float, float, float]], seed: int
) -> Randomisation:
    signed, absolute, alike = np.array(rows, np.float32).T
    return Randomisation(
        method=before.method,
        layers=tuple(layers),
        spearman=signed,
        spearman_absolute=absolute,
        ssim=alike,
        origin={"variant": before.variant, "seed": seed, "convscope": __version__},
    )


def sensitivity(
    model: nn.Module,
    image: Float[Tensor, "c h w"],
    method: Method,
    *,
    pair: tuple[int, int] | None = None,
) -> Sensitivity:
    """Compare a method's map of the likeliest class with its map of the second likeliest.

    pair: two class indices in their place. Raises ModelError M520 (no scores, or only one).
    """
    images = prepared(model, image)
    if pair is None:
        _, output = survey(model, images, lambda *_: None)
        scores = answer(output, Aims((None,)))[0]
        if len(scores) < 2:
            raise ModelError("M520", "the network", "has one score only: no second class")
        first, second = scores.topk(2).indices.tolist()
    else:
        first, second = pair
    one, other = (method(model, images, target=index)[0] for index in (first, second))
    return Sensitivity(
        method=one.method,
        first=first,
        second=second,
        spearman=spearman(one.values, other.values),
        overlap=overlap(one.values, other.values),
        origin={"variant": one.variant, "convscope": __version__},
    )


def agreement(maps: dict[str, Attribution], *, cells: int = CELLS) -> Agreement:
    """Rank correlation of every pair of maps of one picture, averaged over about cells × cells."""
    coarse = [in_cells(found.values, cells) for found in maps.values()]
    table = [[spearman(one, other) for other in coarse] for one in coarse]
    return Agreement(
        methods=tuple(maps),
        spearman=np.array(table, np.float32),
        origin={"cells": cells, "convscope": __version__},
    )
