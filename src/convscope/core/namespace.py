"""Lazy namespaces (PEP 562), and names and modules of version 0.1 that lead on.

Where a module is imported that the documentation of 0.1 named, one of that name gives what it had
from where that is now, with a DeprecationWarning, for one release. Other modules of 0.1 are gone.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def public(package: str, names: Mapping[str, str], name: str) -> Any:
    """What a package's `__getattr__` gives: the name out of the module that `names` tells.

    Raises AttributeError where there is no such name.
    """
    if name not in names:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    value = getattr(import_module(f"{package}.{names[name]}"), name)
    setattr(sys.modules[package], name, value)
    return value


MOVED = {
    "figures.attribution": "drawing.tiles",
    "figures.explanation": "studies.explain.figure",
    "figures.features": "studies.features.figure",
    "figures.heat": "drawing.tiles",
    "figures.occlusion": "studies.occlusion.figure",
    "figures.occlusion_table": "studies.occlusion.table",
    "figures.optimise": "drawing.tiles",
    "figures.pictures": "drawing.tiles",
    "figures.plots": "drawing.plots",
    "figures.verdicts": "studies.explain.figure",
    "images.boxes": "pictures.annotations",
    "images.builtin": "pictures.opening",
    "images.framing": "pictures.framing",
    "images.lists": "pictures.annotations",
    "images.parts": "pictures.annotations",
    "images.split": "pictures.pictures",
    "methods.cam": "attribution.formulas",
    "methods.deconvnet": "representations.deconvnet",
    "methods.explaining": "attribution.registry",
    "methods.gradients": "attribution.gradients",
    "methods.layers": "network.layers",
    "methods.occlusion": "attribution.occlusion",
    "methods.occlusion_map": "attribution.occlusion",
    "methods.optimise": "visualisation.optimise",
    "models.load": "network.load",
    "models.network": "network.network",
    "models.preprocess": "network.preprocess",
    "studies.evolution_callbacks": "studies.evolution.recorder",
    "training.recipe_text": "training.recipe",
}
GONE = {name.partition(".")[0] for name in MOVED} - {"studies", "training"}
"""Packages of which nothing else is left."""


class Moved:
    """Finds the modules of before; asked when no module of that name is there."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> ModuleSpec | None:
        known = name.removeprefix("convscope.")
        if known == name or known not in MOVED.keys() | GONE:
            return None
        return ModuleSpec(name, _Loader(), is_package=known in GONE)


class _Loader(Loader):
    def create_module(self, _: ModuleSpec) -> None:
        """A plain module."""

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.removeprefix("convscope.")
        if name in GONE:
            return
        now = f"convscope.{MOVED[name]}"
        text = f"{module.__name__} is {now} now, and will not be found by this name much longer"
        warnings.warn(text, DeprecationWarning, stacklevel=2)

        def given(attribute: str) -> Any:
            try:
                return getattr(import_module(now), attribute)
            except AttributeError:
                raise AttributeError(f"{now} has no {attribute}") from None

        module.__getattr__ = given  # type: ignore[method-assign]


def install() -> None:
    """Once, when convscope is imported."""
    if Moved not in sys.meta_path:
        sys.meta_path.append(Moved)
