"""Forward and backward hooks: what layers put out, what if they put out something else.

    with Lens(model, ["conv1", "conv5"]) as lens:
        scores = lens(pictures)
        maps = lens["conv5"]

The model is looked at through a shadow model (`twin.py`): any number of threads may look at one
model at once, each through its own Lens, and the model itself is never touched.
"""

from __future__ import annotations

import contextlib
import threading
import types
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Self, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from convscope.core.errors import ModelError, UsageError, nearest
from convscope.core.foreign import TheirCode
from convscope.lens.torch_private import tree_leaves, tree_map_only
from convscope.lens.twin import ShadowModel, bare, is_scripted, refuse_scripted, wrapped

Edit = Callable[[Tensor], Tensor]


@dataclass
class Watch:
    """What is wanted of one module: call numbers (None: its only call), and edits."""

    taps: list[int | None] = field(default_factory=list)
    edits: list[tuple[int | None, Edit]] = field(default_factory=list)

    def wants(self, number: int) -> bool:
        return number in self.taps or (number == 1 and None in self.taps)


class Run:
    """What one thread has seen in one forward pass."""

    def __init__(self, stop_after: int | None) -> None:
        self.calls: Counter[nn.Module] = Counter()
        self.seen: dict[tuple[nn.Module, int], Any] = {}
        self.missing = stop_after

    def of(self, module: nn.Module, number: int | None, layer: str) -> Any:
        calls = self.calls[module]
        if number is None and calls > 1:
            choice = f"name one of its outputs: {layer}#1 … {layer}#{calls}"
            raise ModelError("M503", layer, f"ran {calls} times in this pass", next_step=choice)
        if calls < (number or 1):
            what = f"ran {calls} times in this pass" if calls else "did not run in this pass"
            raise ModelError("M502", layer, what)
        return self.seen[module, number or 1]

    def tick(self, taps: int) -> None:
        if self.missing is not None and taps:
            self.missing -= taps
            if self.missing <= 0:
                raise Reached


class Reached(BaseException):
    """All tapped layers have been seen; no `except Exception` of a network may swallow it."""


def hook(watch: Watch, runs: threading.local) -> Callable[[nn.Module, Any, Any], Any]:
    def tap(module: nn.Module, _: Any, output: Any) -> Any:
        run: Run = runs.now
        run.calls[module] += 1
        number = run.calls[module]
        for wanted, change in watch.edits:
            if wanted in (None, number):
                output = _changed(output, change)
        if watch.wants(number):
            run.seen[module, number], output = _kept(output)
            run.tick(sum(tap in (None, number) for tap in watch.taps))
        return output

    return tap


def _kept(output: Any) -> tuple[Any, Any]:
    """A copy to show, and what the network goes on with.

    Where a graph is being recorded the network goes on with a copy of the shown copy, so that
    the shown one lies on the way of the gradient from the scores.
    """
    shown = _mapped(output, Tensor.clone)
    if any(value.requires_grad for value in tensors_in(output)):
        return shown, _mapped(shown, Tensor.clone)
    return shown, output


def _changed(output: Any, change: Edit) -> Any:
    """The output with its one tensor of numbers replaced."""
    if isinstance(output, Tensor) and output.is_floating_point():
        return change(output)  # to walk through a tree takes longer than a small layer
    old = only_tensor("an edited layer", output)
    new = change(old)
    return _mapped(output, lambda value: new if value is old else value)


def only_tensor(layer: str, output: Any) -> Tensor:
    """The one tensor of real numbers in a layer's output (a pool may put out indices too)."""
    tensors = [value for value in tensors_in(output) if value.is_floating_point()]
    if len(tensors) != 1:
        what = (
            f"puts out {type(output).__name__} with {len(tensors)} tensors, so it has no one output"
        )
        raise ModelError("M520", layer, what, next_step="name a layer inside it")
    return tensors[0]


def tensors_in(output: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(output) if isinstance(value, Tensor))


def _mapped(output: Any, change: Edit) -> Any:
    return tree_map_only(Tensor, change, output)


def call_of(layer: str) -> tuple[str, int | None]:
    """Module name and number of the call: "relu#2" is ("relu", 2), "relu" is ("relu", None)."""
    name, mark, number = layer.rpartition("#")
    return (name, int(number)) if mark and number.isdigit() else (layer, None)


Around = Callable[..., Any]
"""`(run, *args, **kwargs)`: what to answer, where run(*args, **kwargs) is what it is put around."""
AROUND, OWN, HELD = "_convscope_around", "_convscope_forward", "_convscope_held"
KEPT = "_convscope_hooks"
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
)
"""The network's own hooks see what the network itself takes and gives: they are called inside."""


def dressed(model: nn.Module, around: Around, held: Sequence[Tensor] = ()) -> nn.Module:
    """The network with `around` put around its forward, and around what is there already.

    held: tensors that `around` computes with, so that who writes down calls knows them.
    """
    made: nn.Module = object.__new__(type(model))
    made.__dict__.update(model.__dict__)
    inner = wrapped(model)
    if inner is not None:
        parts = model._modules.items()
        own = {
            name: dressed(inner, around, held) if part is inner else part for name, part in parts
        }
        made.__dict__["_modules"] = own
        return made
    state = model.__dict__
    first = state.get("forward") if AROUND not in state else state.get(OWN)
    return _with(made, first, (*state.get(AROUND, ()), around), (*state.get(HELD, ()), *held))


def undressed(model: nn.Module) -> nn.Module:
    """The same without the outermost of what was put around it."""
    inner = wrapped(model)
    made: nn.Module = object.__new__(type(model))
    made.__dict__.update(model.__dict__)
    if inner is not None:
        parts = model._modules.items()
        own = {name: undressed(inner) if part is inner else part for name, part in parts}
        made.__dict__["_modules"] = own
        return made
    state = model.__dict__
    return _with(made, state.get(OWN), state[AROUND][:-1], state[HELD])


def around(model: nn.Module) -> tuple[Around, ...]:
    """What was put around a network, the outermost last."""
    inner = wrapped(model)
    if inner is not None:
        return around(inner)
    layers: tuple[Around, ...] = model.__dict__.get(AROUND, ())
    return layers


def _with(
    made: nn.Module, first: Any, layers: tuple[Around, ...], held: tuple[Tensor, ...]
) -> nn.Module:
    """first: a forward that the object has itself, in the place of its class's."""
    state = made.__dict__
    if isinstance(first, types.MethodType):
        first = types.MethodType(first.__func__, made)
    hooks = state.get(KEPT) or {name: state[name] for name in HOOKS}
    for name in (AROUND, OWN, HELD, KEPT, "forward"):
        state.pop(name, None)
    if not layers:
        return _set(made, **hooks, **({} if first is None else {"forward": first}))
    state["_compiled_call_impl"] = None
    more = {} if first is None else {OWN: first}
    none = {name: OrderedDict[Any, Any]() for name in HOOKS}
    forward = partial(_forward, made)  # a bound method could not be pickled
    return _set(
        made, **{AROUND: layers, HELD: held, KEPT: hooks, "forward": forward}, **none, **more
    )


def _set(made: nn.Module, **state: Any) -> nn.Module:
    made.__dict__.update(state)  # past nn.Module's own way, which would register tensors
    return made


def _hooked(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The network itself, with its hooks, as torch calls them."""
    before, with_kwargs, after, after_with_kwargs = (self.__dict__[KEPT][name] for name in HOOKS)
    for number, hook in before.items():
        if number in with_kwargs:
            args, kwargs = hook(self, args, kwargs) or (args, kwargs)
        elif (result := hook(self, args)) is not None:
            args = result if isinstance(result, tuple) else (result,)
    run = self.__dict__.get(OWN) or partial(type(self).forward, self)
    output = run(*args, **kwargs)
    for number, hook in after.items():
        more = (kwargs,) if number in after_with_kwargs else ()
        result = hook(self, args, *more, output)
        output = output if result is None else result
    return output


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run: Callable[..., Any] = partial(_hooked, self)
    for layer in self.__dict__[AROUND]:
        run = partial(layer, run)
    return run(*args, **kwargs)


T = TypeVar("T")
HOOK = -1
"""Our hook's key in a shadow's own table; torch's keys count from 0, and counting is not safe
under threads."""


class Lens:
    """Taps layers, edits layers, leaves no trace.

    `layers` are module names as in `model.named_modules()`, or the modules themselves. What a tap
    shows is the layer's output as it was seen, a copy that no later in-place operation can
    overwrite, on the way of gradients from the scores as well as to the pixels. `edit` replaces a
    layer's output by what its function makes of it; a tap of the same layer shows the edited
    output. The network runs in eval mode, whatever mode the model is in.

    A module that runs several times in one pass has several outputs: `"relu#2"` is the second.
    An edit of plain `"relu"` edits them all; a tap of it is refused (M503) as ambiguous.

    Raises ModelError: M500 unknown layer, M526 weights not there before a first forward pass,
    M530 not a Python module, or a layer inside a scripted one.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str | nn.Module] | str | nn.Module,
        edit: Mapping[str, Edit] = MappingProxyType({}),
    ) -> None:
        several = isinstance(layers, Iterable) and not isinstance(layers, str | nn.Module)
        names = tuple(
            layer_name(model, one) for one in cast("Any", layers if several else [layers])
        )
        self._shadow = ShadowModel(model)
        self._watched: dict[nn.Module, Watch] = {}
        for name in names:
            self._watch(name).taps.append(call_of(name)[1])
        for place, change in edit.items():
            name = layer_name(model, place)
            self._watch(name).edits.append((call_of(name)[1], change))
        self._layers, self._model = names, model
        self._runs = threading.local()
        self._open = False

    def __enter__(self) -> Self:
        for module, watch in self._watched.items():
            module._forward_hooks[HOOK] = hook(watch, self._runs)
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        for module in self._watched:  # a hook knows the run: a circle that would keep its maps
            module._forward_hooks.pop(HOOK, None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network; its output, whatever that is."""
        self._start(stop_after=None)
        return self._shadow.run(*args, **kwargs)

    def reach(self, *args: Any, **kwargs: Any) -> None:
        """Run the network no further than needed to see all tapped layers.

        That is to the end if one of them has no weights (a ReLU, a pool), unless its call is
        named: such a module may run again further up. Of one with weights the first run is seen.
        """
        early = all(self._runs_once(layer) for layer in self._layers)
        self._start(stop_after=len(self._layers) if early else None)
        with contextlib.suppress(Reached):
            self._shadow.run(*args, **kwargs)

    def _runs_once(self, layer: str) -> bool:
        name, number = call_of(layer)
        return number is not None or any(True for _ in self._shadow.modules[name].parameters())

    def _start(self, stop_after: int | None) -> None:
        if not self._open:
            raise UsageError("U510", "", "a Lens looks only inside its `with` block")
        self._runs.now = Run(stop_after)

    def __getitem__(self, layer: str | nn.Module) -> Tensor:
        """The layer's output in the last run of this thread.

        Raises UsageError U511 (not tapped, or nothing run yet in this thread) and ModelError M502
        (the layer did not run), M503 (it ran several times) or M520 (no single tensor).
        """
        layer = layer_name(self._model, layer)
        if layer not in self._layers:
            raise UsageError("U511", layer, f"is not tapped; {nearest(layer, self._layers)}")
        run: Run | None = getattr(self._runs, "now", None)
        if run is None:
            raise UsageError("U511", layer, "has no output yet", next_step="run lens(pictures)")
        name, number = call_of(layer)
        module = self._shadow.modules[name]
        return only_tensor(layer, run.of(module, number, layer))

    def _watch(self, layer: str) -> Watch:
        name = call_of(layer)[0]
        if name not in self._shadow.modules:
            known = nearest(name, self._shadow.names)
            raise ModelError("M500", layer, f"no such layer in the model; {known}")
        module = self._shadow.modules[name]
        refuse_scripted(layer, module)
        return self._watched.setdefault(module, Watch())


def layer_name(model: Any, layer: Any) -> str:
    """The layer's name, where it is the module itself.

    Raises ModelError M500 for a module that is none of the network's, UsageError U380 for what is
    neither.
    """
    if isinstance(layer, str):
        return layer
    kind = type(layer).__name__
    if not isinstance(layer, nn.Module):
        raise UsageError("U380", "layer", f"a {kind} is no layer", next_step="give its name")
    inside = bare(model)
    for name, module in inside.named_modules() if isinstance(inside, nn.Module) else ():
        if module is layer and name:
            return str(name)
    what = "is the network itself" if inside is layer else "is no layer of this network"
    raise ModelError("M500", f"this {kind}", what, next_step="give one of its own, or a name")


def gradients_of(
    total: Float[Tensor, ""], inputs: Sequence[Tensor], *, again: bool = False
) -> list[Tensor | None]:
    """What is sent down from a sum of scores to each of the inputs; None where nothing arrives.

    again: keep the graph for another time. Raises ModelError M532 (the network computes parts of
    it anew on the way down) and M574 (its own code for the way down fails).
    """
    try:
        with TheirCode("M574", "the network"):
            return list(torch.autograd.grad(total, inputs, retain_graph=again, allow_unused=True))
    except ModelError as fault:
        if not isinstance(fault.__cause__, CheckpointError):
            raise
        what = "computes layers anew on the way down, out of sight of the rule"
        step = "turn checkpointing (memory_efficient) off"
        raise ModelError("M532", "the network", what, next_step=step) from fault.__cause__


def layers_in_order(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """The leaf modules (those without children) in the order in which this input meets them.

    A module met several times is named once for each time: `relu#1`, `relu#2`, …
    """
    return [name for name, _ in _met(model, args, kwargs)]


def conv_layers(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """The two-dimensional convolutions: with an input in the order in which it meets them,
    without one in the order of registration."""
    if args or kwargs:
        met = _met(model, args, kwargs)
        return [name for name, module in met if isinstance(module, nn.Conv2d)]
    shadow = ShadowModel(model)
    return [name for name in shadow.names if isinstance(shadow.modules[name], nn.Conv2d)]


def only_scores(output: Any) -> Float[Tensor, "b classes"]:
    """The scores that a network puts out which is `scored` (`network/outputs.py` knows where they
    are in any other). Raises ModelError M520 for anything else."""
    if isinstance(output, Tensor) and output.dim() == 2:
        return output
    got = str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__
    what = f"puts out {got}, and not one tensor of scores (b, classes)"
    raise ModelError("M520", "the network", what, next_step="give outputs.scored(network)")


def run_with_hooks(
    model: nn.Module | ShadowModel, images: Tensor, see: Callable[[nn.Module, Tensor], T]
) -> tuple[list[tuple[str, T]], Any]:
    """Run the network once without gradients and let `see` look at what each module puts out.

    `see` gets the module (do not change it) and its output, if that is one tensor, just when it
    is put out; what it returns is listed by the layer's name in the order of completion, so that
    a block comes after its parts. A module that runs several times is named `relu#1`, `relu#2`.
    Returns the list and the network's output.
    """
    shadow = model if isinstance(model, ShadowModel) else ShadowModel(model)
    seen: list[tuple[str, T]] = []

    def tap(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((name, see(module, output)))

    _hook(_named(shadow), tap)
    with torch.no_grad():
        output = shadow.run(images.clone())  # a network may work in place on what it is given
    return _numbered(seen), output


def _met(model: nn.Module, args: Any, kwargs: Any) -> list[tuple[str, nn.Module]]:
    shadow = ShadowModel(model)
    met: list[tuple[str, nn.Module]] = []
    leaves = {m: name for m, name in _named(shadow).items() if not any(True for _ in m.children())}
    _hook(leaves, lambda name, module, _: met.append((name, module)))
    with torch.no_grad():
        shadow.run(*args, **kwargs)
    return _numbered(met)


def _named(shadow: ShadowModel) -> dict[nn.Module, str]:
    """The modules inside, each by its first name."""
    named = reversed(list(shadow.model.named_modules()))
    return {module: name for module, name in ((m, n) for n, m in named) if name}


def _hook(modules: Mapping[nn.Module, str], tap: Callable[[str, nn.Module, Any], None]) -> None:
    """Put a hook on each module that can have one; it is told the name, too."""

    def seen(module: nn.Module, _: Any, output: Any) -> None:
        tap(modules[module], module, output)

    for module in modules:
        if not is_scripted(module):
            module._forward_hooks[HOOK] = seen


def _numbered(met: Sequence[tuple[str, T]]) -> list[tuple[str, T]]:
    """With the number of the call in the name of what was met several times."""
    calls, so_far = Counter(name for name, _ in met), Counter[str]()
    numbered = []
    for name, value in met:
        so_far[name] += 1
        numbered.append((f"{name}#{so_far[name]}" if calls[name] > 1 else name, value))
    return numbered
