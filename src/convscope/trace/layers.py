"""Which layers a network has, and from which calls and layers each output comes.

An output's origins are recorded while the network runs on one picture: for each tensor that depends
on the picture the call that made it, and from what. No tensor is kept alive.

`feature_layers` are its convolutions (with their batch normalisation). `stages` are its steps from
pixels to classes: a layer with weights and what follows it up to the next one, or a whole block of
a residual network; a step's output is what is meant by "layer 5" in Zeiler and Fergus 2014, table
7. `ends` are the paper's layers 1, 5 and 7: a convolution's output with what follows it (rectifier,
pool, normalisation; dropout, which does nothing at test time, does not count), and what the
classifier, the last layer with weights, is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convscope.core.errors import ModelError
from convscope.lens.lens import Lens, layers_in_order, run_with_hooks, tensors_in
from convscope.lens.twin import ShadowModel, bare
from convscope.trace.operations import OPERATIONS, operation_of
from convscope.trace.recorder import Call, Recorder, tensors_of

HIDDEN = "a call out of sight"


@dataclass(eq=False)
class Origin:
    """The call that made a tensor."""

    name: str
    """Of the operation."""
    takes: tuple[Origin, ...]
    """Where its arguments come from, as far as they depend on the picture."""
    count: int = 0
    """Of the numbers in the tensor."""
    is_floating: bool = True
    """Whether it is made of real numbers, on which a gradient can go."""
    number: int = 0
    """Which of the calls that make probabilities it is, from 1; 0 for others."""
    layers: list[int] = field(default_factory=list)
    """Whose outputs this tensor is."""

    @property
    def weighed(self) -> bool:
        """Is it the call of a layer with weights?"""
        return self.name in OPERATIONS and OPERATIONS[self.name].weighed

    def before(self, *, by_gradient: bool = False) -> Iterator[Origin]:
        """This and all that it comes from, each once. by_gradient: no further than gradients go."""
        met, waiting = {id(self)}, [self]
        while waiting:
            one = waiting.pop()
            yield one
            if by_gradient and (one.name == "detach" or not one.is_floating):
                continue
            for source in one.takes:
                if id(source) not in met:
                    met.add(id(source))
                    waiting.append(source)


class Origins(Recorder[Origin]):
    """Records the calls that depend on a picture; no tensor is kept alive."""

    def __init__(self, picture: Tensor, constants: Iterable[Tensor]) -> None:
        """constants: what the network has of its own; a tensor that is none of these, and that no
        call is seen to make, is taken to depend on the picture."""
        super().__init__(constants)
        self.mark(picture, Origin("picture", ()))
        self.activations = 0

    def of(self, tensor: Tensor) -> Origin | None:
        """None where nothing is known of it, or it depends on no picture."""
        origin: Origin | None = self._marks.get(tensor)
        return origin

    def unknown(self, tensor: Tensor) -> Origin:  # noqa: ARG002
        return Origin(HIDDEN, ())

    def met(self, layer: int, output: Tensor) -> None:
        """A layer puts this out."""
        origin = self.mark_of(output)
        if origin is None:
            origin = Origin(HIDDEN, ())
            self.mark(output, origin)
        origin.layers.append(layer)

    def follow(self, call: Call, marks: Sequence[Origin | None], result: Any) -> None:
        operation = call.operation
        self.activations += operation.probabilities
        number = self.activations if operation.probabilities else 0
        read = {"like": marks[:1], "blank": ()}.get(operation.reads, marks)
        takes = tuple(mark for mark in read if mark is not None)
        made = list(tensors_in(result))
        if not made and operation.name == "setitem":  # x[0] = y writes into x
            made = [call.args[0]]
        for tensor in made:
            origin = Origin(
                operation.name, takes, tensor.numel(), tensor.is_floating_point(), number
            )
            self.mark(tensor, origin if takes else None)


class WithoutLast(TorchFunctionMode):
    """Within it the last of so many activations hands on what it is given."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last, self.met = last, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation_of(func).probabilities:
            self.met += 1
            if self.met == self.last:
                return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a network on one picture."""

    output: Any
    seen: Sequence[tuple[str, Any]]
    """All calls of modules that put out one tensor, and what was seen of it."""
    origins: Origins

    def reaching(self, tensor: Tensor) -> frozenset[str]:
        """The layers at which gradients of this tensor arrive; none where that is out of sight."""
        origin = self.origins.of(tensor)
        met = [] if origin is None else list(origin.before(by_gradient=True))
        hidden = any(one.name == HIDDEN for one in met)
        return frozenset() if hidden else self._names(met)

    def scores(self, tensor: Tensor) -> frozenset[str]:
        """The layers whose maps are these scores before their places were joined: no layer with
        weights is between."""
        origin, met = self.origins.of(tensor), []
        while origin is not None and origin.name in (
            "cat",
            "neg",
        ):  # against and for a single class
            origin = origin.takes[-1]
        while origin is not None:
            met.append(origin)
            alone = len(origin.takes) == 1 and not origin.weighed
            origin = origin.takes[0] if alone else None
        return self._names(met)

    def _names(self, met: Iterable[Origin]) -> frozenset[str]:
        return frozenset(self.seen[number][0] for one in met for number in one.layers)


def run_seen(
    model: nn.Module, picture: Tensor, see: Callable[[nn.Module, Tensor], Any] = lambda *_: None
) -> Run:
    """Run the network once, without gradients and without moving the user's random numbers."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
        torch.default_generator.manual_seed(0)
        picture = picture.clone()
        origins = Origins(picture, tensors_of(model))
        count = iter(range(2**31))

        def look(module: nn.Module, output: Tensor) -> Any:
            origins.met(next(count), output)
            return see(module, output)

        with origins:
            seen, output = run_with_hooks(model, picture, look)
    return Run(output, seen, origins)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
IDLE = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
)
"""Layers that hand on the numbers that they are given."""
MOST = 0.8
"""A part with more of the leaves than this is a wrapper of the network, not a step of it."""
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)


def feature_layers(model: nn.Module, *args: Any) -> list[str]:
    """All two-dimensional convolutions, in the order in which this input meets them.

    A convolution that goes straight into a batch normalisation is represented by that: its scale
    may be negative, and then what excites the convolution silences the feature.
    """
    args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
    met = layers_in_order(model, *args)
    modules = ShadowModel(model).modules  # also of what a wrapper holds
    names = []
    for name, following in zip(met, [*met[1:], ""], strict=False):
        layer, after = (modules.get(n.partition("#")[0]) for n in (name, following))
        if isinstance(layer, nn.Conv2d):
            normed = isinstance(after, nn.BatchNorm2d) and after.num_features == layer.out_channels
            names.append(following if normed else name)
    return names


def chosen_layers(
    model: nn.Module, layers: Sequence[str] | str | None, picture: Tensor
) -> list[str]:
    """The layers named, one or several; by default the `feature_layers`.

    Raises ModelError M522 if the network does not take the picture.
    """
    if layers is None:
        return feature_layers(model, picture)
    return [layers] if isinstance(layers, str) else list(layers)


def stages(model: nn.Module, blank: Float[Tensor, "1 c h w"]) -> list[str]:
    """The last layer of each step, in the order in which this input meets them.

    The last of them gives the scores. Layers without a single tensor as output, or that run
    several times, are left out. Raises ModelError M522 if the network does not take the input.
    """
    model = bare(model)
    with torch.inference_mode():
        leaves = layers_in_order(model, blank)
    modules = dict(model.named_modules())
    names: list[str] = []
    fresh = True
    for name in _units(modules, leaves):
        module = modules[name.partition("#")[0]]
        if isinstance(module, IDLE):
            continue
        weights = next(module.parameters(), None) is not None
        if (weights and not isinstance(module, NORMS)) or fresh:
            names.append(name)
            fresh = False
        else:
            names[-1] = name
    with Lens(model, names) as lens, torch.inference_mode():
        lens(blank)
        return [name for name in names if _tells(lens, name)]


def _units(modules: dict[str, nn.Module], leaves: list[str]) -> Iterator[str]:
    """The parts in which leaves stand, each once, in the order of their first leaf."""
    seen: set[str] = set()
    for leaf in leaves:
        name = _unit(modules, leaf, leaves)
        if name not in seen:
            seen.add(name)
            yield name


def _unit(modules: dict[str, nn.Module], leaf: str, leaves: list[str]) -> str:
    """The largest part around a leaf that is neither a sequence nor a wrapper; or the leaf."""
    steps = leaf.split(".")
    for deep in range(1, len(steps)):
        name = ".".join(steps[:deep])
        inside = sum(other.startswith(f"{name}.") for other in leaves)
        if not isinstance(modules[name], nn.Sequential) and inside <= MOST * len(leaves):
            return name
    return leaf


def _tells(lens: Lens, layer: str) -> bool:
    try:
        return lens[layer].dim() >= 2
    except ModelError:
        return False


@dataclass(frozen=True)
class Ends:
    """Layers by name, as a Lens takes them."""

    low: str
    """Output of the first convolution's layer, as long as it has places: the paper's layer 1."""
    middle: str
    """Output of the last convolution's layer that has more than one place: its layer 5."""
    high: str
    """What the classifier is given: its layer 7. The same as `middle` where nothing is between."""


@dataclass(frozen=True)
class _Seen:
    weighted: bool
    convolution: bool
    idle: bool
    shape: tuple[int, ...]
    content: tuple[float, float]
    """Two sums of the output, by which the same numbers are known again."""


def ends(model: nn.Module, size: tuple[int, int, int]) -> Ends:
    """size: channels, height, width of the input. The model is not touched.

    Raises ModelError M501 (no convolution), M522 (it does not take such a picture), M530.
    """
    like = next(bare(model).parameters(), torch.empty(0))
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(like)
    met = _on_the_way(run_seen(model, noise, _see))
    weighted = [place for place, (_, seen) in enumerate(met) if seen.weighted]
    convolved = [place for place in weighted if met[place][1].convolution]
    if not convolved:
        raise ModelError("M501", "the network", "has no convolution to look into")
    stops = [*weighted[1:], len(met)]
    after = dict(zip(weighted, stops, strict=True))
    classifier = weighted[-1] if len(weighted) > 1 else len(met)
    inner = [place for place in convolved if place < classifier]
    return Ends(
        low=_last(met, inner[0], after[inner[0]], spread=True),
        middle=_last(met, inner[-1], after[inner[-1]], spread=True),
        high=_last(met, max(p for p in weighted if p < classifier), classifier),
    )


def _on_the_way(run: Run) -> list[tuple[str, _Seen]]:
    """Without side branches from which nothing reaches the scores, where that can be seen."""
    reaching = run.reaching(run.output) if isinstance(run.output, Tensor) else frozenset()
    kept = [(name, seen) for name, seen in run.seen if name in reaching]
    return kept if any(seen.convolution for _, seen in kept) else list(run.seen)


def _see(module: nn.Module, output: Tensor) -> _Seen:
    numbers = output.detach().double()
    return _Seen(
        weighted=isinstance(module, (*CONVOLUTIONS, nn.Linear)),
        convolution=isinstance(module, CONVOLUTIONS),
        idle=isinstance(module, IDLE),
        shape=tuple(output.shape),
        content=(float(numbers.sum()), float(numbers.square().sum())),
    )


def _last(met: list[tuple[str, _Seen]], first: int, stop: int, *, spread: bool = False) -> str:
    """The last output from `first` on and before `stop`; of equal ones the first that is no
    repeated call. spread: only of those with rows and columns."""
    wanted = [
        (name, seen)
        for name, seen in met[first:stop]
        if not seen.idle and not (spread and _single(seen.shape))
    ]
    wanted = wanted or met[first : first + 1]
    last = wanted[-1][1]
    same = [
        name for name, seen in wanted if (seen.shape, seen.content) == (last.shape, last.content)
    ]
    return next((name for name in same if "#" not in name), same[0])


def _single(shape: tuple[int, ...]) -> bool:
    return len(shape) < 4 or shape[-1] * shape[-2] == 1
