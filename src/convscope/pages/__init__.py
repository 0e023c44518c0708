"""Static pages, which open from `file://`: the atlas, explanations, marking of parts."""

from typing import Any

from convscope.core.namespace import public

_HOME = {
    "write_atlas": "atlas",
}


def __getattr__(name: str) -> Any:
    return public(__name__, _HOME, name)
