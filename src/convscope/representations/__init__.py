"""What a network makes of pictures: strongest pictures, projections, vectors, answers."""

from typing import Any

from convscope.core.namespace import public

_HOME = {
    "project": "deconvnet",
    "backward_paths": "projections",
}


def __getattr__(name: str) -> Any:
    return public(__name__, _HOME, name)
