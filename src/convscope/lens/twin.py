"""Shadow models: a network is hooked, edited and set to eval mode while others use it untouched.

A shadow is shallow: new module objects around the *same* weights and buffers. Hooks and
modes set on the shadow are nobody else's, so there is nothing to undo after an error and nothing
that a second thread could see. (Hooks added to and removed from one shared model gave 98 % wrong
answers under four threads.) A shadow costs some ten microseconds a module and no copy of a weight.
"""

from __future__ import annotations

import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from convscope.core.errors import ModelError
from convscope.core.foreign import TheirCode

WRAPPERS: Mapping[type, str] = {
    DataParallel: "module",
    DistributedDataParallel: "module",
}
"""Wrapper class → the child it wraps; a compiled module is told by its own attribute."""
MODULES_OWN = frozenset(
    name for name, value in vars(nn.Module()).items() if isinstance(value, dict)
)
"""The containers of nn.Module itself: weights, buffers, children, hooks."""
SCRIPT_HOMES = ("torch.jit._script", "torch.jit._trace")
"""By name, since torch 2.15 warns of deprecation when torch.jit is so much as looked at."""
SCRIPTED = "is a scripted or traced module, which hides the calls inside it"
NEEDS_PYTHON = "use the Python module that it was made from"


class ShadowModel:
    """A network's shadow in eval mode, and its modules by their names in the original."""

    def __init__(self, model: nn.Module) -> None:
        """Raises ModelError M530 (not a Python module) or M526 (weights not there yet)."""
        model = bare(model)
        if not isinstance(model, nn.Module):
            raise ModelError(
                "M530", type(model).__name__, "is not a torch.nn.Module", next_step=NEEDS_PYTHON
            )
        refuse_scripted("the network", model)
        self._shadows: dict[int, nn.Module] = {}
        self.model = self._shadow(model)
        own = {id(shadow): shadow for shadow in self._shadows.values()}.values()
        for shadow in own:
            self._rewire(shadow)
        self._shared = [box for shadow in own for box in _boxes(shadow)]
        self.modules = {
            name: self._shadows.get(id(module), module)  # inside scripted ones there are no shadows
            for name, module in model.named_modules(remove_duplicate=False)
        } | dict(self.model.named_modules(remove_duplicate=False))
        """Also by names that pass through a wrapper, e.g. `module.conv1` of a DataParallel."""
        del self.modules[""]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output. Its faults are ModelError M522 or M574, as `foreign` tells them.

        What it puts meanwhile into lists and dicts of its own, which are shared with the
        original, is taken out again.
        """
        with TheirCode("M574", "the network", args), unchanged(self._shared):
            return self.model(*args, **kwargs)

    @property
    def names(self) -> list[str]:
        """The modules' names, wrappers left out, in the order of registration."""
        return [name for name, _ in self.model.named_modules() if name]

    def _shadow(self, module: nn.Module) -> nn.Module:
        if id(module) not in self._shadows:
            self._shadows[id(module)] = self._made(module)
            for child in () if is_scripted(module) else module.children():
                self._shadow(child)
        return self._shadows[id(module)]

    def _made(self, module: nn.Module) -> nn.Module:
        if is_scripted(module):
            return module
        inner = wrapped(module)
        if inner is not None:
            return self._shadow(inner)
        if any(
            isinstance(weight, UninitializedParameter) for weight in module._parameters.values()
        ):
            raise ModelError(
                "M526",
                type(module).__name__,
                "has no weights before the first forward pass",
                next_step="run the network once on a picture",
            )
        shadow = object.__new__(type(module))
        shadow.__dict__.update(module.__dict__)
        return shadow

    def _rewire(self, shadow: nn.Module) -> None:
        if is_scripted(shadow):
            return
        state = shadow.__dict__
        for key, value in list(state.items()):
            own = self._own(value, {})
            state[key] = own.copy() if own is value and key in MODULES_OWN else own
        for key in ("_parameters", "_buffers"):
            state[key] = {name: _recordable(value) for name, value in state[key].items()}
        state["training"] = False
        state["_compiled_call_impl"] = None

    def _own(self, value: Any, met: dict[int, Any]) -> Any:
        """The value with shadows in the originals' places; the very same value if it has none.

        What else the network's code keeps in lists and dicts stays shared with the original, as
        several modules may speak to each other through it.
        """
        if isinstance(value, nn.Module):
            return self._shadows.get(id(value), value)
        if isinstance(value, types.MethodType) and id(value.__self__) in self._shadows:
            return types.MethodType(value.__func__, self._shadows[id(value.__self__)])
        if type(value) is partial:
            args = self._own(value.args, met)
            return value if args is value.args else partial(value.func, *args, **value.keywords)
        if type(value) not in (dict, OrderedDict, list, tuple, set) or id(value) in met:
            return met.get(id(value), value)
        met[id(value)] = value
        items = list(value.values() if isinstance(value, dict) else value)
        own = [self._own(item, met) for item in items]
        if any(new is not old for new, old in zip(own, items, strict=True)):
            pairs = zip(value, own, strict=True)
            met[id(value)] = type(value)(pairs if isinstance(value, dict) else own)
        return met[id(value)]


BOXES = (list, dict, set, deque, OrderedDict, defaultdict, Counter)
Box = list[Any] | dict[Any, Any] | set[Any] | deque[Any]


def _boxes(shadow: nn.Module) -> list[Box]:
    """What the network's code may put things into; not the tables of nn.Module itself."""
    if is_scripted(shadow):
        return []
    left: list[Any] = [value for key, value in vars(shadow).items() if key not in MODULES_OWN]
    boxes: dict[int, Box] = {}
    while left:
        value = left.pop()
        if type(value) in BOXES and id(value) not in boxes:
            boxes[id(value)] = value
            left += value.values() if isinstance(value, dict) else value
        elif type(value) is tuple:
            left += value
    return list(boxes.values())


@contextmanager
def unchanged(boxes: Sequence[Box]) -> Iterator[None]:
    """Afterwards they hold what they held before."""
    before = [(box, _held(box)) for box in boxes]
    try:
        yield
    finally:
        for box, held in before:
            now = _held(box)
            if len(now) != len(held) or any(a is not b for a, b in zip(now, held, strict=True)):
                _refill(box, held)


def _held(box: Box) -> list[Any]:
    return [each for pair in box.items() for each in pair] if isinstance(box, dict) else list(box)


def _refill(box: Box, held: list[Any]) -> None:
    box.clear()
    if isinstance(box, dict):
        box.update(zip(held[::2], held[1::2], strict=True))
    elif isinstance(box, set):
        box.update(held)
    else:
        box.extend(held)


def _recordable(value: Tensor | None) -> Tensor | None:
    """The very same tensor, unless it was made under inference mode and gradients are wanted."""
    if value is None or not value.is_inference() or not torch.is_grad_enabled():
        return value
    copy = value.clone()
    return nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy


def bare(model: Any) -> nn.Module:
    """The module itself, where something was given that holds it, as what `load` returns does."""
    return model if isinstance(model, nn.Module) else getattr(model, "model", model)


def wrapped(module: nn.Module) -> nn.Module | None:
    """What a DataParallel, a DistributedDataParallel or a compiled module wraps."""
    inner = module._modules.get("_orig_mod")
    for kind, name in WRAPPERS.items():
        if isinstance(module, kind):
            inner = module._modules[name]
    return inner


def is_scripted(module: nn.Module) -> bool:
    return any(kind.__module__ in SCRIPT_HOMES for kind in type(module).__mro__)


def refuse_scripted(name: str, module: nn.Module) -> None:
    """Raises ModelError M530 if this very module is scripted or traced."""
    if is_scripted(module):
        raise ModelError("M530", name, SCRIPTED, next_step=NEEDS_PYTHON)
