"""Networks of the user's own code. Code runs here: only code named by the user."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from convscope.core.errors import ModelError, nearest
from convscope.core.foreign import TheirCode
from convscope.network.network import Draft, Network, Request
from convscope.network.preprocess import Preprocess

NAMES = ("efficientnet-lite0", "zfnet", "alexnet", "torchvision", "timm")
"""What a misspelt first word may have meant."""
COUNTS = ("num_classes", "classes", "n_classes", "nb_classes", "num_labels", "n_class")
"""What a factory may call the number of classes."""


@dataclass(frozen=True)
class Named:
    """Where a network or a function of the user's own is."""

    module: str
    """As it is imported: package.module."""
    name: str
    folder: Path
    """In which modules are looked for before all others."""

    @classmethod
    def of(cls, text: str, beside: Path | None = None) -> Named:
        """Read `package.module:name` or `folder/file.py:name`.

        beside: the folder of the file that chose this, if it was one. Raises ModelError M570, and
        M573 if the code does not lie with that file.
        """
        module, _, name = text.partition(":")
        folder, file = beside or Path.cwd(), Path(module)
        if file.suffix == ".py" and file.is_file():
            module, folder = file.stem, file.resolve().parent
        if all(part.isidentifier() for part in module.split(".")) and name.isidentifier():
            result = cls(module, name, folder)
            if beside is not None:
                result._require_in(beside, text)
            return result
        what = f"is no network's name; {nearest(module, NAMES)}"
        step = "write package.module:factory, or FILE.py:factory, for a network of your own"
        raise ModelError("M570", text, what, next_step=step)

    def _require_in(self, beside: Path, text: str) -> None:
        """Nothing is imported to find that out."""
        top = self.module.partition(".")[0]
        places, elsewhere = [Path(top)], [Path(f"(Python's own {top})")]
        with _on_path(Path.cwd()), _on_path(self.folder):
            try:
                result = importlib.util.find_spec(top)
            except ValueError:  # of __main__
                places = elsewhere
            else:
                if result is None:
                    return  # importing it tells what is missing
                where = [result.origin or ""] if result.has_location else []
                places = [*map(Path, result.submodule_search_locations or where)] or elsewhere
        own = Path.cwd() if beside.is_relative_to(Path.cwd()) else beside
        if not all(_lies_in(own, place) for place in places):
            raise ModelError(
                "M573",
                text,
                f"is not code beside the file that names it (but in {places[0]}), and a file may "
                "not choose what is run",
                next_step="name that code yourself, in the place of the file",
            )


def _lies_in(folder: Path, place: Path) -> bool:
    """Whether it is there or below, and nothing that was installed."""
    whole = place.resolve() if place.exists() else Path()
    return whole.is_relative_to(folder) and not {"site-packages", "dist-packages"} & {*whole.parts}


def from_user_code(request: Request) -> Draft:
    """`package.module:factory` or `FILE.py:factory`: call the factory, or take the module it names.

    Either may also give a Network, as `load(module, preprocess=…)` makes it. Modules are looked
    for in the working folder too. Raises ModelError M570 if there is no such module or name, M571
    if the code raises, M583 if the factory needs arguments.
    """
    named = Named.of(f"{request.spec.partition(':')[0]}:{request.rest}", request.beside)
    with _on_path(Path.cwd()), _on_path(named.folder), torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        result = _factory(_import(named.module, request.spec), named.name, request.spec)
        torch.manual_seed(request.seed)  # the first import alone may have drawn numbers
        ready = isinstance(result, nn.Module | Network)
        model = result if ready else _call(result, request)
    counted = not ready and bool(_parameters(result))
    weights = "as the factory made them" if request.checkpoint is None else request.checkpoint.name
    if isinstance(model, Network):
        guess = model.preprocess.assumption()
        notes = tuple(note for note in model.notes if note != guess)  # `load` tells it
        return Draft(
            model.model,
            model.preprocess,
            model.classes,
            weights,
            request.checkpoint,
            notes,
            counted=counted,
            output=model.output,
            scores=model.scores,
        )
    return Draft(model, assumed(model), (), weights, request.checkpoint, counted=counted)


def meant_as_code(text: str) -> str:
    """`package.module:name`, where `package.module.name` was written and there is such code; else
    the text."""
    module, dot, name = text.rpartition(".")
    if not dot or is_module(text) or not all(map(str.isidentifier, text.split("."))):
        return text
    with _on_path(Path.cwd()):
        there = importlib.util.find_spec(module.partition(".")[0]) is not None
    return f"{module}:{name}" if there else text


def is_module(text: str) -> bool:
    """Whether a module or a file of code has that name, and no name in it is told."""
    if Path(text).suffix == ".py":
        return Path(text).is_file()
    with _on_path(Path.cwd()):
        return text.isidentifier() and importlib.util.find_spec(text) is not None


def from_module(spec: str, beside: Path | None = None) -> Any:
    """What `package.module:name` or `FILE.py:name` names, imported from the working folder too.

    beside: as of `Named.of`. Raises ModelError M570 if there is no such module or name, M571 if
    importing it raises, M573.
    """
    named = Named.of(spec, beside)
    with _on_path(Path.cwd()), _on_path(named.folder):
        return _factory(_import(named.module, spec), named.name, spec)


@contextmanager
def _on_path(place: Path) -> Iterator[None]:
    """Of the working folder, because a console script, unlike `python -m`, does not look there."""
    folder = str(place)
    added = folder not in sys.path and (place != Path.cwd() or "" not in sys.path)
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
    return {name: request.classes for name in _parameters(factory) if request.classes}


def _parameters(factory: Any) -> list[str]:
    """What the factory calls the number of classes; nothing if it has no such parameter."""
    try:
        known = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in COUNTS if name in known][:1]


def from_own(request: Request) -> Draft:
    """The module itself, as it is. Raises ModelError M526 if its weights are not there yet."""
    model = request.module
    assert model is not None
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        raise ModelError(
            "M526",
            request.spec,
            "has weights that only its first pass makes",
            next_step="run it once on a picture",
        )
    weights = "as the module had them" if request.checkpoint is None else request.checkpoint.name
    return Draft(model, assumed(model), (), weights, request.checkpoint)


def assumed(model: object) -> Preprocess:
    """What to take for the preprocessing of a network that does not say.

    ImageNet's; in grey where the first convolution, as registered, takes one channel.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    takes = next((m.in_channels for m in modules if isinstance(m, nn.Conv2d)), 3)
    imagenet = Preprocess.imagenet().guessed()
    return imagenet.grey() if takes == 1 else imagenet
