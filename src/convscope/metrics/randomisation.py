"""Sanity checks of maps: cascading randomisation of weights, class sensitivity, agreement.

Cascading randomisation: weights become random layer by layer from the top. A map that stays the
same shows the picture's edges, not the network's reasons.
Source: Adebayo et al. 2018, "Sanity Checks for Saliency Maps", §3.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from convscope.attribution.registry import method_of, methods_of
from convscope.errors import ConvscopeError, UsageError, shown
from convscope.lens.twin import bare
from convscope.metrics.agreement import in_cells, overlap, spearman, ssim
from convscope.metrics.reinitialise import layers_down, randomised
from convscope.network.arguments import (
    Given,
    Model,
    alone,
    at_least,
    attributions,
    one_map,
    several,
    taking,
)
from convscope.network.forward import finite, surveyed
from convscope.network.outputs import meaning, remember, scored
from convscope.network.provenance import recorded
from convscope.network.targets import Target, Targets
from convscope.records.faithfulness import Agreement, Randomisation, Sensitivity
from convscope.records.maps import Attribution
from convscope.run import PLAIN, Run

STEPS = 4
CELLS = 14
Method = Callable[..., list[Attribution]]


@taking(image=several, methods=methods_of)
@recorded
def randomisation(
    model: Model,
    image: Given,
    methods: dict[str, Method],
    *,
    target: Target | None = None,
    classes: Sequence[str] = (),
    steps: int = STEPS,
    before: Mapping[str, Attribution] | None = None,
    run: Run = PLAIN,
) -> dict[str, Randomisation]:
    """Compare each method's map with its maps of the same network with random weights.

    methods: `(model, images, *, target) -> list[Attribution]`, by name; or names as of
    `explain`. steps: how often a map is
    made again: after the topmost layer with weights became random, …, after all did, in about
    equal steps. before: maps of the trained network by these names and for this target, where
    they are there already. The class stays the one of the trained network, and so does the layer
    that a CAM looks at. The model itself is not touched; the copy's layers are drawn anew by
    their own `reset_parameters`, other weights from a normal distribution of the same mean and
    spread. A method that fails on a random network, as where numbers become NaN, gets NaN there.

    Raises what the methods raise of the trained network; UsageError U351 to U354 (targets), U391
    (steps below 1), U392 (several pictures), U393, U394 (no maps), ModelError M520, M522, M526
    (no weights), M527 (the network cannot be copied).
    """
    at_least(1, steps=steps)
    images = alone(model, image)
    size, known = tuple(images.shape[2:]), meaning(model, images)
    aim = _settled(scored(model, images), images, Targets.of(target, 1, classes)).each[0]
    made = {
        name: one_map(
            [before[name]]
            if before is not None and name in before
            else method(model, images, target=aim),
            size,
        )
        for name, method in methods.items()
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    learned = bare(model)
    layers, total = [], min(steps, len(layers_down(learned, images))) * len(methods)
    done = itertools.count(1)
    for layer, network in randomised(learned, images, steps, run.seed):
        remember(network, known)  # its random numbers mean what the learned ones do
        layers.append(layer)
        for name, method in methods.items():
            found[name].append(_compared(method, network, images, aim, made[name]))
            run.tick(next(done), total)
    return {name: _record(made[name], layers, rows, run.seed) for name, rows in found.items()}


def _settled(model: nn.Module, images: Float[Tensor, "1 c h w"], aims: Targets) -> Targets:
    _, output = surveyed(model, images, lambda *_: None)
    return aims.settled(finite("the network", aims.answer(output)))


def _compared(
    method: Method,
    network: nn.Module,
    images: Tensor,
    aim: object,
    before: Attribution,
) -> tuple[float, float, float]:
    name = before.layer.partition("#")[0]
    is_layer = bool(name) and name in dict(network.named_modules())
    same = {"layer": before.layer} if is_layer and _takes_layer(method) else {}
    try:
        after = one_map(method(network, images, target=aim, **same), before.values.shape)
    except ConvscopeError:
        return (np.nan,) * 3
    a, b = before.values, after.values
    return spearman(a, b), spearman(np.abs(a), np.abs(b)), ssim(a, b)


def _takes_layer(method: Method) -> bool:
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):  # some callables do not say
        return False
    return "layer" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


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
        origin={"variant": before.variant, "seed": seed},
    )


@taking(image=several, method=method_of)
@recorded
def sensitivity(
    model: Model,
    image: Given,
    method: Method,
    *,
    pair: tuple[int, int] | None = None,
) -> Sensitivity:
    """Compare a method's map of the likeliest class with its map of the second likeliest.

    pair: two class indices in their place. Raises what the method raises, UsageError U392
    (several pictures), U393, U394 (no maps), ModelError M520 (no scores), M522.
    """
    images = alone(model, image)
    if pair is not None and not _is_pair(pair):
        raise UsageError("U380", "pair", f"{shown(pair)} is not two class indices")
    first, second = pair or _likeliest_two(scored(model, images), images)
    size = tuple(images.shape[2:])
    one, other = (
        one_map(method(model, images, target=int(index)), size) for index in (first, second)
    )
    return difference(one, other, (int(first), int(second)))


def _is_pair(given: object) -> bool:
    return (
        isinstance(given, tuple | list)
        and len(given) == 2
        and all(isinstance(one, int | np.integer) for one in given)
    )


def difference(one: Attribution, other: Attribution, pair: tuple[int, int]) -> Sensitivity:
    """The same of two maps that are there already, of these two classes, by one method.

    Raises UsageError U390 (maps of two sizes), U393 (no maps), U394 (NaN in a map).
    """
    attributions((one, other))
    return Sensitivity(
        method=one.method,
        first=pair[0],
        second=pair[1],
        spearman=spearman(one.values, other.values),
        overlap=overlap(one.values, other.values),
        origin={"variant": one.variant},
    )


def _likeliest_two(model: nn.Module, images: Float[Tensor, "1 c h w"]) -> tuple[int, int]:
    _, output = surveyed(model, images, lambda *_: None)
    scores = finite("the network", Targets((None,)).answer(output))[0]
    first, second = scores.topk(2).indices.tolist()
    return first, second


@recorded
def agreement(maps: Mapping[str, Attribution], *, cells: int = CELLS) -> Agreement:
    """Rank correlation of every pair of maps of one picture, averaged over about cells × cells.

    Raises UsageError U390 (maps of several sizes), U391 (cells below 1), U393 (no attributions
    by name), U394 (NaN in a map).
    """
    at_least(1, cells=cells)
    if not isinstance(maps, Mapping):
        what, step = f"{shown(maps)} in the place of maps by name", 'give {"gradcam": map, …}'
        raise UsageError("U393", "", what, next_step=step)
    given = attributions(maps.values())
    coarse = [in_cells(found.values, cells) for found in given]
    table = [[spearman(one, other) for other in coarse] for one in coarse]
    return Agreement(
        methods=tuple(maps),
        spearman=np.array(table, np.float32).reshape(len(coarse), len(coarse)),
        origin={"cells": cells},
    )
