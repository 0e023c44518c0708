"""How does text become a recipe, and a recipe text again?"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from convscope.errors import UsageError, nearest
from convscope.training.recipe import FIELDS, Recipe
from convscope.training.recipe_check import as_toml


def recipe(source: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """The recipe of that name (`tutorial`, `paper`, `best`, `demo`) or in that TOML file.

    changes: `FIELD=VALUE` each, e.g. `epochs=3`. Raises UsageError U301 to U305.
    """
    return changed(from_toml(_text(source), str(source)), changes)


def names() -> tuple[str, ...]:
    """Recipes that come with convscope."""
    files = resources.files("convscope.training").joinpath("recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files))


def from_toml(text: str, name: str = "recipe") -> Recipe:
    """Read TOML, one line a field. Raises UsageError U301 (unknown), U302, U303 (value), U304."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise UsageError("U304", name, f"is not TOML: {fault}") from fault
    return _build(Recipe(), values)


def changed(old: Recipe, changes: Iterable[str]) -> Recipe:
    """The recipe with fields changed by `FIELD=VALUE`; text needs no quotes."""
    values = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals:
            raise UsageError("U304", change, "is not a change; write FIELD=VALUE, as in epochs=3")
        values[field.strip()] = _value(value.strip())
    return _build(old, values)


def to_toml(made: Recipe) -> str:
    """Every field and its value; `from_toml` gives the same recipe back."""
    return "".join(f"{field} = {as_toml(getattr(made, field))}\n" for field in FIELDS)


def to_json(made: Recipe) -> dict[str, Any]:
    return {
        field: list(value) if isinstance(value := getattr(made, field), tuple) else value
        for field in FIELDS
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """`field theirs → ours` for every field that two recipes, as JSON, do not share."""
    keys = sorted(set(ours) | set(theirs))
    return [
        f"{key} {theirs.get(key)} → {ours.get(key)}"
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]


def _text(source: str | Path) -> str:
    if str(source) in names():
        file = resources.files("convscope.training").joinpath("recipes", f"{source}.toml")
        return file.read_text(encoding="utf-8")
    if Path(source).suffix != ".toml":
        hint = nearest(str(source), names()).replace("it has", "there are")
        raise UsageError(
            "U305", str(source), f"no such recipe; {hint}", next_step="or name a .toml file"
        )
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        reason = (getattr(fault, "strerror", None) or "it is not UTF-8 text").lower()
        raise UsageError("U305", str(source), f"cannot be read: {reason}") from fault


def _build(old: Recipe, values: Mapping[str, Any]) -> Recipe:
    for key in values:
        if key not in FIELDS:
            raise UsageError("U301", key, f"no such field in a recipe; {nearest(key, FIELDS)}")
    return dataclasses.replace(old, **values)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
