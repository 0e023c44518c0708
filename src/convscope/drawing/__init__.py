"""Figures: heat maps over pictures, tiles, plots; as PNG or SVG. No torch."""

from typing import Any

from convscope.core.namespace import public

_HOME = {
    "feature_figure": "tiles",
    "heat": "tiles",
    "optimised_figure": "tiles",
    "over": "tiles",
    "png": "plots",
}


def __getattr__(name: str) -> Any:
    return public(__name__, _HOME, name)
