"""Lazy namespaces: a package's public names, imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
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
