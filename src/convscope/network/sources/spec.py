"""Read a network's name with its options.

zfnet:width=0.5,head=compact                  alexnet:without=6,7
torchvision:resnet18:weights=none,classes=5   timm:resnet50   package.module:factory
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from convscope.core.errors import UsageError, nearest


def _numbers(text: str) -> tuple[int, ...]:
    """96-256-384 or 3,4 or nothing."""
    return tuple(int(piece) for piece in text.replace(",", "-").split("-") if piece)


TOWER_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "width": float,
    "norm": str,
    "head": str,
    "dropout": float,
    "maps": _numbers,
    "fc": int,
    "without": _numbers,
    "init": str,
}
WEIGHTS_OPTIONS: Mapping[str, Callable[[str], Any]] = {"weights": str}


def options(text: str, table: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """`width=0.5,without=3,4` read by the table: name of an option -> reader of its value.

    Raises UsageError U230 for an unknown option, U231 for a value that cannot be read.
    """
    if re.search(r"=[^,]*:\w+=", text):
        whole = text.replace(":", ",")
        raise UsageError("U230", text, "options are parted by commas", next_step=f"write {whole}")
    result: dict[str, str] = {}
    name = ""
    for piece in text.split(",") if text else []:
        if "=" in piece:
            name, _, value = (side.strip() for side in piece.partition("="))
            result[name] = value
        elif name:  # a list goes on: without=3,4
            result[name] += "," + piece.strip()
        else:
            raise UsageError("U230", piece, "is no option", next_step="write NAME=VALUE")
    return {name: _read(name, value, table) for name, value in result.items()}


def split_classes(text: str) -> tuple[str, int | None]:
    """A spec's options without `classes=N`, which any network of ours, torchvision's and timm's
    may have, and that number. Raises UsageError U231 if it is none."""
    result = re.search(r"(?:^|[,:])classes=([^,:]*)", text)
    if result is None:
        return text, None
    if not re.fullmatch(r"[1-9]\d{0,6}", result[1]):
        raise UsageError("U231", f"classes={result[1]}", "is not a whole number from 1")
    return re.sub(r"(^|[,:])classes=[^,:]*,?", r"\1", text).rstrip(",:"), int(result[1])


def _read(name: str, value: str, table: Mapping[str, Callable[[str], Any]]) -> Any:
    if name not in table:
        raise UsageError("U230", name, f"is no option of this network; {nearest(name, table)}")
    try:
        return table[name](value)
    except ValueError as fault:
        raise UsageError("U231", f"{name}={value}", "is not a number") from fault
