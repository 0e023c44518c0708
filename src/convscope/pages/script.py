"""How does data enter a page that cannot fetch, without ever becoming code or markup?

An opened file may load scripts but not JSON, so data come as `window.NAME = JSON;`. The JSON is
ASCII, and `<`, `>`, `&` are escaped too: no name can close a script, open a comment or start a
line of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def policy(types: str) -> str:
    """A page's content security policy: no inline script, no inline style, nothing from elsewhere,
    no string ever becomes markup.

    types: name of the one trusted type that the page makes, or `'none'`.
    """
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self' file:",
            "style-src 'self' file:",
            "img-src 'self' file:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            f"trusted-types {types}",
        )
    )


def script(target: str, value: Any) -> bytes:
    """One statement that sets `target` (an expression of ours, never of the data) to `value`."""
    return f"{target}={safe_json(value)};\n".encode("ascii")


def safe_json(value: Any) -> str:
    """JSON that is also a safe script: pure ASCII, no markup, no NaN."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(ESCAPES)


def number(value: float, digits: int = 5) -> float | None:
    """A value at display precision; None where it is not finite."""
    value = float(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def numbers(values: np.ndarray[Any, Any]) -> Any:
    """An array as nested lists: whole numbers as they are, others by `number`."""
    if values.dtype.kind in "iub":
        return values.tolist()
    return [numbers(v) if np.ndim(v) else number(v) for v in values]


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with every array made plain."""
    return {k: numbers(v) if isinstance(v, np.ndarray) else v for k, v in fields.items()}


def shown(names: Iterable[str]) -> list[str]:
    """Names as a page may show them: control and undecodable characters made visible."""
    from convscope.errors import printable

    return [printable(name) for name in names]
