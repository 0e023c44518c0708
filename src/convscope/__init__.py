"""See what a convolutional network sees, and whether to trust it.

The names below are imported when first used, so that `import convscope` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convscope.errors import ConvscopeError
    from convscope.images.builtin import open_pictures
    from convscope.images.folder import Folder, one_picture
    from convscope.lens.backward import BackwardRule
    from convscope.lens.geometry import fields
    from convscope.lens.lens import Lens
    from convscope.methods.deconvnet import deconvnet
    from convscope.methods.occlusion import occlusion
    from convscope.methods.predict import evaluate, predict
    from convscope.methods.topk import topk
    from convscope.models.load import load
    from convscope.pages.atlas import write_atlas
    from convscope.studies.features import features
    from convscope.training.train import train
    from convscope.units import Box, Unit

__version__ = "0.1.0"

_HOME = {
    "BackwardRule": "lens.backward",
    "Box": "units",
    "ConvscopeError": "errors",
    "Folder": "images.folder",
    "Lens": "lens.lens",
    "Unit": "units",
    "deconvnet": "methods.deconvnet",
    "evaluate": "methods.predict",
    "features": "studies.features",
    "fields": "lens.geometry",
    "load": "models.load",
    "occlusion": "methods.occlusion",
    "one_picture": "images.folder",
    "open_pictures": "images.builtin",
    "predict": "methods.predict",
    "topk": "methods.topk",
    "train": "training.train",
    "write_atlas": "pages.atlas",
}

__all__ = [
    "BackwardRule",
    "Box",
    "ConvscopeError",
    "Folder",
    "Lens",
    "Unit",
    "deconvnet",
    "evaluate",
    "features",
    "fields",
    "load",
    "occlusion",
    "one_picture",
    "open_pictures",
    "predict",
    "topk",
    "train",
    "write_atlas",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'convscope' has no attribute {name!r}")
    return getattr(import_module(f"convscope.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
