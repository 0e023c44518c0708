"""Wraps a network's forward, so that it takes or gives something else under the same layer names.

A second module object with the same class, parts and weights, whose forward is run by a
function of ours. Nothing is wrapped, so `conv1` is still called `conv1`, and the network itself is
not touched.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from convscope.lens.twin import wrapped

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
