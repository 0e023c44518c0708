"""A .toml file that says how a network is loaded.

network = "mynet:net"              # as the commands take it
checkpoint = "weights.pt"          # beside this file
size = 128                         # and whatever else --resize, --mean, --std,
mean = [0.5, 0.5, 0.5]             # --interpolation say; or preprocess = "mynet:validation"
classes = ["daisy", "tulip"]       # or a file of names, or their number
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from convscope.core.errors import CheckpointError, nearest
from convscope.core.publish import publish_file, require_free
from convscope.core.text import as_toml, checked, read_text
from convscope.network.preprocess import PARTS
from convscope.network.sources.user_code import NAMES

SUFFIX = ".toml"
KEYS = ("network", "checkpoint", "preprocess", "classes", *PARTS, "output", "scores")
Plain = str | int | float | bool
Told = Plain | list[Plain] | dict[str, Plain] | None
"""What `load` then looks at itself."""


@dataclass(frozen=True)
class Remembered:
    """What such a file says, as `load` takes it; names of files are from where one stands."""

    network: str
    checkpoint: str | None = None
    preprocess: str | None = None
    classes: Told = None
    size: Told = None
    resize: Told = None
    interpolation: Told = None
    mean: Told = None
    std: Told = None
    output: str | int | bool | None = None
    scores: str | None = None

    def ready(self) -> Any:
        """The preprocessing, as `load` takes it; None where nothing is said."""
        parts = {key: getattr(self, key) for key in PARTS if getattr(self, key) is not None}
        return self.preprocess or parts or None


def remembered(path: Path | str) -> Remembered:
    """Read the file. Raises CheckpointError C417 if it cannot be read so."""
    place = Path(path)
    try:
        plain = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as fault:
        _refuse(path, f"cannot be read as TOML ({fault})")
    if unknown := [key for key in plain if key not in KEYS]:
        _refuse(path, f"has the unknown key {unknown[0]!r}; {nearest(unknown[0], KEYS)}")
    try:
        told = checked({"network": ""} | plain, Remembered)
    except ValueError as fault:
        _refuse(path, f"has a value of another kind ({fault})")
    if not told.network or told.network.endswith(SUFFIX):
        _refuse(path, "names no network", 'write network = "package.module:factory"')
    if "preprocess" in plain and any(key in plain for key in PARTS):
        _refuse(path, "has preprocess, which says all, and parts of it besides")
    return Remembered(**_moved(plain, lambda name: str(place.parent / name), place.parent))


def remember(path: Path, told: Remembered) -> Path:
    """Write such a file. Raises OutputError O501 if there is one, EnvironmentFault R602, R603."""
    require_free(path)
    kept = _moved(asdict(told), lambda name: os.path.relpath(name, path.parent), Path())
    lines = [f"{key} = {as_toml(value)}\n" for key, value in kept.items() if value is not None]
    publish_file(path, "".join(lines).encode("utf-8", "backslashreplace"))
    return path


def _refuse(path: Path | str, what: str, next_step: str = "") -> NoReturn:
    step = next_step or "mend it; docs/networks.md has an example"
    raise CheckpointError("C417", str(path), what, next_step=step)


def _moved(plain: Mapping[str, Any], moved: Callable[[str], str], folder: Path) -> dict[str, Any]:
    """The same with every name of a file as `moved` has it. Names of networks and code stay."""
    result = dict(plain)
    for key in ("network", "checkpoint", "preprocess", "classes"):
        value = plain.get(key)
        if not isinstance(value, str):
            continue
        is_file = key in ("checkpoint", "classes") or value.endswith(".json")
        result[key] = moved(value) if is_file else _network(value, moved, folder)
    return result


def _network(text: str, moved: Callable[[str], str], folder: Path) -> str:
    """A run's folder, a file of weights, or FILE.py:name, moved; anything else stays."""
    file, mark, name = text.partition(".py:")
    if mark:
        return moved(f"{file}.py") + f":{name}"
    known = text in NAMES or ":" in text
    return moved(text) if not known and (folder / text).exists() else text
