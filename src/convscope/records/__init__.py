"""Records: results with their origin, frozen, saved and loaded. No torch."""

from typing import Any

from convscope.core.namespace import public

_HOME = {
    "Attribution": "maps",
    "Occlusion": "maps",
    "OcclusionExample": "maps",
    "area": "maps",
    "interval": "maps",
}


def __getattr__(name: str) -> Any:
    return public(__name__, _HOME, name)
