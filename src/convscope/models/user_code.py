"""How does a network of the user's own come in? Code runs here: only code named by the user."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convscope.errors import ModelError, nearest
from convscope.foreign import TheirCode
from convscope.models.network import Draft, Network, Request
from convscope.models.own import assumed

NAMES = ("efficientnet-lite0", "zfnet", "alexnet", "torchvision", "timm")
"""What a misspelt first word may have meant."""
COUNTS = ("classes", "num_classes")
"""What a factory may call the number of classes."""


def from_user_code(request: Request) -> Draft:
    """`package.module:factory`: call the factory, or take the module it names.

    Either may also give a Network, as `load(module, preprocess=…)` makes it. Modules are looked
    for in the working folder too. Raises ModelError M570 if there is no such module or name, M571
    if the code raises, M583 if the factory needs arguments.
    """
    module, _, name = request.spec.partition(":")
    if not all(part.isidentifier() for part in module.split(".")) or not name.isidentifier():
        raise ModelError(
            "M570",
            request.spec,
            f"is no network's name; {nearest(module, NAMES)}",
            next_step="write package.module:factory for a network of your own",
        )
    with _working_folder_on_path(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        found = _factory(_import(module, request.spec), name, request.spec)
        torch.manual_seed(request.seed)  # the first import alone may have drawn numbers
        ready = isinstance(found, nn.Module | Network)
        model = found if ready else _call(found, request)
    weights = "as the factory made them" if request.checkpoint is None else request.checkpoint.name
    if isinstance(model, Network):
        told, guess = (model.preprocess, model.classes), model.preprocess.assumption()
        notes = tuple(note for note in model.notes if note != guess)  # `load` tells it
        return Draft(model.model, *told, weights, request.checkpoint, notes)
    return Draft(model, assumed(model), (), weights, request.checkpoint)


def from_module(spec: str) -> Any:
    """What `package.module:name` names, imported from the working folder too.

    Raises ModelError M570 if there is no such module or name, M571 if importing it raises.
    """
    module, _, name = spec.partition(":")
    with _working_folder_on_path():
        return _factory(_import(module, spec), name, spec)


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """A console script, unlike `python -m`, does not look there by itself."""
    folder = str(Path.cwd())
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


def _import(module: str, spec: str) -> Any:
    try:
        with TheirCode("M571", spec):
            return importlib.import_module(module)
    except ModelError as raised:
        fault = raised.__cause__
        if not isinstance(fault, ModuleNotFoundError):
            raise
        if fault.name is None or not (module + ".").startswith(fault.name + "."):
            raise
        here = [*NAMES, *sorted(path.stem for path in Path.cwd().glob("*.py"))]
        raise ModelError(
            "M570", spec, f"no module named {fault.name!r}; {nearest(module, here)}"
        ) from fault


def _factory(module: Any, name: str, spec: str) -> Any:
    if not hasattr(module, name):
        known = [
            word
            for word, value in vars(module).items()
            if not word.startswith("_") and (callable(value) or isinstance(value, nn.Module))
        ]
        raise ModelError("M570", spec, f"the module has no {name!r}; {nearest(name, known)}")
    return getattr(module, name)


def _call(factory: Any, request: Request) -> Any:
    if not callable(factory):
        kind = type(factory).__name__
        raise ModelError("M572", request.spec, f"is a {kind}, not a network or a factory of one")
    count = _count(factory, request)
    _require_callable(factory, count, request.spec)
    with TheirCode("M571", request.spec):
        return factory(**count)


def _require_callable(factory: Any, given: Mapping[str, int], spec: str) -> None:
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as fault:
        raise ModelError(
            "M583",
            spec,
            f"needs arguments that convscope cannot know ({fault})",
            next_step="name a function that calls it with them",
        ) from fault
    except ValueError:
        return  # some of what is written in C does not tell its parameters


def _count(factory: Any, request: Request) -> dict[str, int]:
    """The number of classes, if it was given and the factory has a parameter for it."""
    try:
        known = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {name: request.classes for name in COUNTS if name in known and request.classes}
