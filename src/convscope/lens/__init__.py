"""Hooks: outputs and gradients of layers, read and edited without touching the network."""

from typing import Any

from convscope.core.namespace import public

_HOME = {
    "Lens": "lens",
    "conv_layers": "lens",
    "layers_in_order": "lens",
}


def __getattr__(name: str) -> Any:
    return public(__name__, _HOME, name)
