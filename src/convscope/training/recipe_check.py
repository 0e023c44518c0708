"""Which values may the fields of a recipe have?"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from convscope.errors import UsageError

NEEDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


class Between(NamedTuple):
    """The values a number may have, ends included."""

    low: float
    high: float


def check(made: Any) -> None:
    """Raise UsageError U302 (wrong kind of value) or U303 (out of range, or against another)."""
    kinds = get_type_hints(type(made), include_extras=True)
    for field in made.__dataclass_fields__:
        object.__setattr__(made, field, _checked(field, kinds[field], getattr(made, field)))
    if made.pixel_mean and made.size != made.test_size:
        raise _bad("pixel_mean", "needs test_size equal to size: the mean is one picture", "U303")
    if made.pixel_mean and made.size_start:
        raise _bad("pixel_mean", "does not go with size_start: the mean has one size", "U303")
    if made.crop != "resized" and made.test_resize < made.size:
        raise _bad("crop", f'"{made.crop}" needs test_resize of at least size', "U303")
    if 0 < made.test_resize < made.test_size:
        raise _bad("test_resize", "must be 0 or at least test_size", "U303")
    if min(made.std) <= 0:
        raise _bad("std", "must be above 0", "U303")


def _checked(field: str, kind: Any, value: Any) -> Any:
    """The value, as the field's own type, if it is one that the field may have."""
    if get_origin(kind) is Literal:
        if not any(value == one and type(value) is type(one) for one in get_args(kind)):
            choices = " or ".join(as_toml(choice) for choice in get_args(kind))
            raise _bad(field, f"must be {choices}, not {as_toml(value)}", "U302")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(get_args(kind)):
            raise _bad(field, f"must be three numbers, not {as_toml(value)}", "U302")
        return tuple(_checked(field, float, item) for item in value)
    if get_origin(kind) is Annotated:
        plain, limits = get_args(kind)
        return _within(field, limits, _checked(field, plain, value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _bad(field, f"must be {NEEDS[kind]}, not {as_toml(value)}", "U302")
    return value


def _within(field: str, limits: Between, value: float) -> float:
    if not limits.low <= value <= limits.high:
        raise _bad(field, f"must be {limits.low:g} to {limits.high:g}, not {value}", "U303")
    return value


def _bad(field: str, what: str, code: str) -> UsageError:
    return UsageError(code, field, what)


def as_toml(value: Any) -> str:
    """As TOML writes it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
