"""Hooks on modules, and modules dressed for one pass."""

from __future__ import annotations

import threading
import types
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from convscope.core.errors import ModelError
from convscope.lens.torch_private import tree_leaves, tree_map_only
from convscope.lens.twin import wrapped

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
    forward = types.MethodType(_forward, made)
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
