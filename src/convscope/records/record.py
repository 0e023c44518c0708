"""What do all results share: frozen, named, with an origin, saved whole or not at all?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np

from convscope.errors import DataError
from convscope.publish import publish_folder
from convscope.texts import parsed

SCHEMA = 1
INDEX = "record.json"


@dataclass(frozen=True, eq=False)
class Record:
    """NumPy arrays and plain fields under one name, with what made them.

    A subclass is a frozen dataclass whose fields are arrays or what JSON can hold. Arrays are
    made read-only. `origin` says where the record comes from: method, variant, model, weights'
    hash, layer, pictures, version and whatever else decides the numbers.
    """

    mapped: ClassVar[frozenset[str]] = frozenset()
    """Arrays that `load` leaves on disk, to be read as they are used."""

    origin: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.ndarray):
                view = value.view()
                view.flags.writeable = False
                object.__setattr__(self, entry.name, view)

    def save(self, folder: Path | str) -> Path:
        """Write `record.json` and one `.npy` per array to the new folder; return its path.

        Raises OutputError O501 if the folder holds anything, EnvironmentFault on a full disk.
        """
        publish_folder(Path(folder), self.write)
        return Path(folder)

    def write(self, folder: Path) -> None:
        """Fill a folder that is there; an array that stands in it already is left as it is."""
        plain: dict[str, Any] = {}
        arrays: list[str] = []
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.ndarray):
                if not (folder / f"{entry.name}.npy").exists():
                    np.save(folder / f"{entry.name}.npy", value, allow_pickle=False)
                arrays.append(entry.name)
            else:
                plain[entry.name] = value
        index = {"schema": SCHEMA, "kind": type(self).__name__, "arrays": arrays, "plain": plain}
        (folder / INDEX).write_text(json.dumps(index, indent=1, allow_nan=True), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read what `save` wrote. Raises DataError D140 if it is not such a record."""
        place = Path(folder)
        try:
            index = parsed((place / INDEX).read_text(encoding="utf-8"))
            if index["kind"] != cls.__name__:
                raise DataError("D140", str(place), f"is a {index['kind']}, not a {cls.__name__}")
            if index["schema"] > SCHEMA:
                raise DataError("D140", str(place), "was written by a newer convscope")
            arrays: dict[str, Any] = {name: cls._array(place, name) for name in index["arrays"]}
            return cls(**arrays, **cls._revive(index["plain"]))
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise DataError(
                "D140", str(place), f"is not a {cls.__name__} record ({fault})"
            ) from fault

    @classmethod
    def _array(cls, place: Path, name: str) -> np.ndarray:
        mode: Literal["r"] | None = "r" if name in cls.mapped else None
        return cast(np.ndarray, np.load(place / f"{name}.npy", mmap_mode=mode, allow_pickle=False))

    @classmethod
    def _revive(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """JSON knows only lists: fields annotated as tuples become tuples again."""
        kinds = {entry.name: str(entry.type) for entry in dataclasses.fields(cls)}
        return {
            name: _tuples(value) if kinds.get(name, "").startswith("tuple") else value
            for name, value in plain.items()
        }


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
