"""Randomisation tests: networks reinitialised layer by layer, and how alike their maps are."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Shaped
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convscope.attribution.registry import method_of, methods_of
from convscope.core.errors import ConvscopeError, ModelError, UsageError, shown
from convscope.core.foreign import TheirCode
from convscope.core.run import PLAIN, Run
from convscope.lens.twin import ShadowModel, bare
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
from convscope.network.network import finite, surveyed
from convscope.network.outputs import Target, Targets, meaning, remember, scored
from convscope.network.provenance import recorded
from convscope.records.maps import Agreement, Attribution, Randomisation, Sensitivity

DRAWS = {
    *("bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm"),
    *("bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_"),
    *("random_", "uniform_", "trunc_normal_", "orthogonal_", "sparse_"),
    *("kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"),
}
"""What of torch draws random numbers, and can be told from where."""
ITSELF = "(the network)"
"""The name for weights that belong to no layer."""


class Seeded(TorchFunctionMode):
    """Within it random numbers come from a generator of its own, so that neither the user's nor
    another thread's are touched."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in DRAWS and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)


class Copied(TorchFunctionMode):
    """Within it also tensors with a history are copied, without it: what a network's last run left
    behind, as weight_norm's or activations that it keeps. copy.deepcopy refuses them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
        return memo[id(tensor)]


def randomised(
    model: nn.Module, images: Float[Tensor, "b c h w"], steps: int, seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """The same copy of the network again and again, each time with more random weights; with the
    name of the layer down to which they are. Layers are drawn anew by their own
    `reset_parameters`, other weights from a normal distribution of the same mean and spread.

    Raises ModelError M526 (no weights), M527 (no copy can be made).
    """
    names = layers_down(model, images)
    if not names:
        raise ModelError("M526", "the network", "has no weights that could be made random")
    network = copied(model)
    modules, seeded = dict(network.named_modules()), Seeded(seed)
    count = min(steps, len(names))
    stops = [round(stop) for stop in np.linspace(len(names), 1, count)[::-1]]
    for start, stop in zip([0, *stops], stops, strict=False):
        for name in names[start:stop]:
            reinitialise(modules[name], seeded)
        yield names[stop - 1] or ITSELF, network


def layers_down(model: nn.Module, images: Float[Tensor, "b c h w"]) -> list[str]:
    """Modules with weights of their own, from the network's top to its bottom as it runs.

    One that is not seen to put out a tensor, as attention and what it holds, stands below the
    module that is registered next; "" is the network itself.
    """
    seen, _ = surveyed(model, images, lambda *_: None)
    ran = dict.fromkeys(name.partition("#")[0] for name, _ in reversed(seen))
    own = [name for name, module in ShadowModel(model).model.named_modules() if _own(module)]
    down = [name for name in ran if name in set(own)]
    place = 0
    for name in reversed(own):
        if name not in ran:
            down.insert(place, name)
        place = down.index(name) + 1
    return down


def _own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def copied(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model, in eval mode and without wrappers."""
    with torch.inference_mode(False), torch.enable_grad():
        twin = ShadowModel(model).model
        try:
            with TheirCode("M527", "the network"), Copied():
                return copy.deepcopy(twin)
        except ModelError as fault:
            what = f"cannot be copied, so its weights cannot be made random: {fault.what}"
            step = "leave out what cannot be copied, or this test"
            raise ModelError("M527", "the network", what, next_step=step) from fault.__cause__


def reinitialise(module: nn.Module, seeded: Seeded) -> None:
    """Draw a module's own weights anew: by its `reset_parameters`; what that does not change from
    a normal distribution of the same mean and spread."""
    own = list(module.parameters(recurse=False))
    before = [weight.detach().clone() for weight in own]
    reset = getattr(module, "reset_parameters", None)
    with torch.inference_mode(False), torch.no_grad(), seeded:
        if callable(reset) and not any(True for _ in module.children()):
            device = own[0].device
            module.to("cpu")  # where the same seed draws the same, whatever the device
            with TheirCode("M574", "the network"):
                reset()
            module.to(device)
        for weight, old in zip(own, before, strict=True):
            if torch.equal(weight, old):
                mean = float(old.float().mean())
                spread = float(old.float().std()) if old.numel() > 1 else abs(mean)
                weight.copy_(torch.randn(weight.shape) * spread + mean)


Map = Float[np.ndarray, "h w"]
WINDOW = 11
"""Side of SSIM's window where its Gaussian has the width of the paper, 1.5 pixels."""


def spearman(one: Map, other: Map) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN if a map is flat."""
    a, b = (ranks(values.ravel()) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a @ a) * (b @ b)))
    return max(-1.0, min(1.0, float(a @ b) / size)) if size else math.nan


def ranks(values: Shaped[np.ndarray, "*rows n"]) -> Float64[np.ndarray, "*rows n"]:
    """Of the values along each row, from 1; equal ones share their mean rank. A NaN makes all ranks
    of its row NaN. What SciPy's statistics would say, whose import takes as long as a forward pass.
    """
    n = values.shape[-1]
    order = np.argsort(values, axis=-1, kind="stable")
    there = np.take_along_axis(values, order, -1)
    begins = np.ones(values.shape, bool)
    begins[..., 1:] = there[..., 1:] != there[..., :-1]
    ends = np.ones(values.shape, bool)
    ends[..., :-1] = begins[..., 1:]
    places = np.arange(n)
    first = np.maximum.accumulate(np.where(begins, places, 0), -1)
    last = np.minimum.accumulate(np.where(ends, places, n)[..., ::-1], -1)[..., ::-1]
    found = np.empty(values.shape)
    np.put_along_axis(found, order, (first + last) / 2 + 1, -1)
    if n and values.dtype.kind == "f":
        found[np.isnan(there[..., -1])] = np.nan  # NaN is sorted to the end
    return found


def ssim(one: Map, other: Map) -> float:
    """Mean structural similarity of two maps, each scaled to [0, 1]; 1 only for equal ones.

    NaN where the maps are smaller than the window, 11 by 11. Source: Wang et al. 2004, §III.B.
    """
    if min(one.shape) < WINDOW:
        return math.nan
    from skimage.metrics import structural_similarity

    found = structural_similarity(
        _scaled(one),
        _scaled(other),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(found)


def _scaled(values: Map) -> Map:
    low, high = float(values.min()), float(values.max())
    span = high - low if high > low else 1.0
    scaled: Map = (values.astype(np.float64) - low) / span
    return scaled


def overlap(one: Map, other: Map, share: float = 0.1) -> float:
    """Of the share of the picture that each marks most: what both mark over what either marks.

    Only positive values count as marks. Where equal values would exceed the share, each counts
    in part. NaN if neither map marks anything.
    """
    count = max(1, round(share * one.size))
    first, second = (_marks(values.ravel(), count) for values in (one, other))
    either = float(np.maximum(first, second).sum())
    return float(np.minimum(first, second).sum()) / either if either else math.nan


def _marks(values: Float[np.ndarray, "n"], count: int) -> Float[np.ndarray, "n"]:
    """How much each place belongs to the `count` highest ones, 0 to 1."""
    last = np.partition(values, -count)[-count]
    above, equal = values > last, values == last
    marks = above + equal * ((count - above.sum()) / equal.sum())
    found: Float[np.ndarray, "n"] = np.where(values > 0, marks, 0.0)
    return found


def in_cells(values: Map, cells: int) -> Map:
    """Means over about `cells` by `cells` squares, so that places are compared, not pixels."""
    side = max(1, min(values.shape) // cells)
    starts = [np.arange(0, max(1, extent - side // 2), side) for extent in values.shape]
    sums = np.add.reduceat(values.astype(np.float64), starts[0])
    sums = np.add.reduceat(sums, starts[1], axis=1)
    sizes = [
        np.diff(start, append=extent) for start, extent in zip(starts, values.shape, strict=True)
    ]
    found: Map = sums / np.outer(*sizes)
    return found


def mean_correlation(
    pictures: Float32[np.ndarray, "k h w c"], seen: Bool[np.ndarray, "k h w"]
) -> float:
    """Mean over all pairs of Pearson's correlation of the numbers, all colours together, at the
    places that both have; NaN where no pair has two places at which neither is flat."""
    size = np.abs(pictures).max(axis=(1, 2, 3), keepdims=True, initial=0.0)
    scaled = pictures / np.where(size > 0, size, 1)  # single precision then holds all sums
    marks = np.broadcast_to(seen[..., None], scaled.shape).reshape(len(scaled), -1)
    marks = marks.astype(np.float32)
    values = scaled.reshape(len(scaled), -1) * marks
    count, total = marks @ marks.T, values @ marks.T
    count = np.maximum(count, 1)
    shared = values @ values.T - total * total.T / count
    spread = (values * values) @ marks.T - total * total / count
    pairs = np.triu_indices(len(scaled), 1)
    product = (spread * spread.T)[pairs]
    is_flat = np.minimum(spread, spread.T)[pairs] <= 1e-6 * count[pairs]
    if is_flat.all():
        return math.nan
    return float(np.clip(shared[pairs][~is_flat] / np.sqrt(product[~is_flat]), -1, 1).mean())


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
    `explain`. steps: how often a map is made again: after the topmost layer with weights became
    random, …, after all did, in about equal steps. before: maps of the trained network by these
    names and for this target, where they are there already. The class stays the one of the trained
    network, and so does the layer that a CAM looks at. The model itself is not touched, see
    `randomised`. A method that fails on a random network, as where numbers become NaN, gets NaN.

    Raises what the methods raise of the trained network; UsageError U351 to U354 (targets), U391
    (steps below 1), U392 (several pictures), U393, U394 (no maps), ModelError M520, M522, M526
    (no weights), M527 (the network cannot be copied).
    """
    at_least(1, steps=steps)
    images = alone(model, image)
    known = meaning(model, images)
    aim = _settled(scored(model, images), images, Targets.of(target, 1, classes)).each[0]
    made = _made(model, images, methods, aim, before or {})
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    learned = bare(model)
    layers, total = [], min(steps, len(layers_down(learned, images))) * len(methods)
    done = itertools.count(1)
    for layer, network in randomised(learned, images, steps, run.seed):
        remember(network, known)  # its random numbers mean what the learned ones do
        layers.append(layer)
        for name, method in methods.items():
            rows[name].append(_compared(method, network, images, aim, made[name]))
            run.tick(next(done), total)
    return {name: _record(made[name], layers, rows[name], run.seed) for name in methods}


def _made(
    model: Model,
    images: Float[Tensor, "1 c h w"],
    methods: Mapping[str, Method],
    aim: object,
    before: Mapping[str, Attribution],
) -> dict[str, Attribution]:
    """Each method's map of the trained network, where it is not there already."""
    size = tuple(images.shape[2:])
    return {
        name: one_map([before[name]] if name in before else method(model, images, target=aim), size)
        for name, method in methods.items()
    }


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
