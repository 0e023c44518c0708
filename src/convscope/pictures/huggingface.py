"""Hugging Face datasets: pictures in the rows of one on disk, or of one in memory.

`datasets` reads the table; pictures are taken out of it as they were stored, and decoded where all
others are. Nothing of a dataset's folder is run, and no place that a row names elsewhere is asked.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Int64

from convscope.core.errors import DataError, EnvironmentFault, UsageError, nearest
from convscope.pictures.decode.formats import Fault, Limits, require_bytes
from convscope.pictures.decode.pool import Source
from convscope.pictures.decode.prefetch import Elsewhere
from convscope.pictures.listing import many
from convscope.pictures.pictures import Options, Pictures

WAYS = ("split", "image", "label")
"""What may be asked for behind the folder's name, as `DIR?split=train`."""
NAMES = ("label", "labels")
"""Of the column with classes, where several could be."""
MOST_CLASSES = 1_000_000
DIGITS = 9
"""Of a row's number in a name."""


def is_dataset(given: object) -> bool:
    """Whether this is a dataset of that library, or the name of one on disk."""
    if isinstance(given, str | Path):
        try:
            folder = _folder(str(given))
            return bool(str(given)) and (_is_one(folder) or _has_splits(folder))
        except OSError:  # a name that is too long
            return False
    return type(given).__module__.partition(".")[0] == "datasets"


def _folder(name: str) -> Path:
    return Path(name if Path(name).is_dir() else name.partition("?")[0])


def _is_one(folder: Path) -> bool:
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _has_splits(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file()


class Table:
    """Pictures of a dataset by row. A copy in another process opens the dataset's files again."""

    def __init__(self, dataset: Any, image: str) -> None:
        self.dataset, self._image = dataset, image
        self._column = dataset.data.table.column(image)
        given = dataset._indices  # of one that was shuffled, or is a part
        self.rows = np.arange(len(dataset)) if given is None else _flat(given.column(0))

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self.dataset, self._image)

    def picture(self, row: int) -> dict[str, Any]:
        """Bytes, or path, or nothing."""
        result: dict[str, Any] = self._column[int(self.rows[row])].as_py() or {}
        return result

    def files(self) -> list[tuple[bytes, int]]:
        """Name and bytes of each row's picture; of files that are only named, 0."""
        pc = import_module("pyarrow.compute")
        field = partial(pc.struct_field, self._column)
        sizes = _flat(pc.fill_null(pc.binary_length(field("bytes")), 0))[self.rows]
        paths = field("path").take(self.rows).to_pylist()
        names = (path.rpartition("/")[2] if path else "" for path in paths)
        return [
            (f"{row:0{DIGITS}}{'/' if name else ''}{name}".encode(), int(size))
            for row, (name, size) in enumerate(zip(names, sizes, strict=True))
        ]

    def column(self, name: str) -> Int64[np.ndarray, "rows"]:
        """Whole numbers by row, -1 for what is not known."""
        column = self.dataset.data.table.column(name)
        return _flat(import_module("pyarrow.compute").fill_null(column, -1))[self.rows]


def _flat(column: Any) -> Int64[np.ndarray, "rows"]:
    return np.asarray(column.to_numpy(), np.int64)


@dataclass(frozen=True, slots=True)
class Row(Elsewhere):
    """A picture in a row of a table."""

    name: bytes
    size: int
    table: Table
    row: int

    def fetch(self, limits: Limits) -> bytes:
        require_bytes(self.size, limits)
        data = self.table.picture(self.row).get("bytes")
        if data is None:
            raise Fault("D121", "the row has no picture")
        return bytes(data)


class HuggingFace(Pictures):
    """The pictures of a dataset, in the order of its rows.

    Names are `ROW` or `ROW/FILE`. Classes are those of a ClassLabel, in its order; those of a
    column of whole numbers are class indices as the network counts them.
    """

    def __init__(self, given: Any, **options: Unpack[Options]) -> None:
        """given: a Dataset, or the folder that `save_to_disk` wrote, as `DIR` or `DIR?split=train`
        (also `image=` and `label=`, the columns to take).

        Raises UsageError U484 (no such split or column), U377 (no table), DataError D100 (no
        pictures), D210 (damaged), EnvironmentFault R625 (`datasets` is not installed).
        """
        root, asked = Path(), dict[str, str]()
        if isinstance(given, str | Path):
            root, place = _folder(str(given)), str(given)
            asked = _asked(place, place.removeprefix(str(root)).removeprefix("?"))
            dataset = _loaded(root, place, asked.get("split"))
        else:
            place, dataset = _called(given), _one(given, _called(given), None)
        self._begin(root, **options)
        self.place = place
        try:
            self._take(dataset, asked)
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise _damaged(place, fault) from fault

    def _take(self, dataset: Any, asked: dict[str, str]) -> None:
        pictures = [name for name, kind in dataset.features.items() if _kind(kind) == "Image"]
        if not pictures or not len(dataset):
            has = ", ".join(f"{name} ({_kind(kind)})" for name, kind in dataset.features.items())
            raise DataError("D100", self.place, f"holds no pictures; its columns are {has}")
        image = self._chosen("image", asked, pictures, pictures)
        label = self._label_column(dataset.features, asked)
        self._table = Table(dataset, image)
        self.stamp = str(dataset._fingerprint)
        none: list[int | None] = [None] * len(dataset)
        self._contain(self._table.files(), none if label is None else self._labels(label))

    def _chosen(
        self, way: str, asked: dict[str, str], known: list[str], first: Sequence[str]
    ) -> str:
        """The column asked for, or else the first of these."""
        name = asked.get(way)
        if name is not None and name not in known:
            what = f"has no column {name!r} for ?{way}=; {nearest(name, known)}"
            raise UsageError("U484", self.place, what)
        if name is None and len(known) > 1:
            others = ", ".join(one for one in known if one != first[0])
            self.remarks += (f"{way} is {first[0]}; ?{way}= takes another: {others}",)
        return name or first[0]

    def _label_column(self, features: Any, asked: dict[str, str]) -> str | None:
        classes = [name for name, kind in features.items() if _kind(kind) == "ClassLabel"]
        numbers = [name for name, kind in features.items() if "int" in getattr(kind, "dtype", "")]
        if "label" in asked:
            return self._chosen("label", asked, [*classes, *numbers], classes)
        if not classes:
            return next((name for name in NAMES if name in numbers), None)
        usual = [name for name in NAMES if name in classes]
        return self._chosen("label", asked, classes, [*usual, *classes])

    def _labels(self, name: str) -> list[int | None]:
        told = self._table.column(name)
        names = getattr(self._table.dataset.features[name], "names", None)
        self.numbered = names is None
        most = MOST_CLASSES if names is None else len(names)
        if told.max() >= most:
            raise ValueError(f"a class {told.max():,} in column {name}, of {most:,}")
        self.classes = tuple(map(str, range(told.max() + 1) if names is None else names))
        unknown = int((told < 0).sum())
        self.remarks += (f"{many(unknown, 'picture')} without a class",) if unknown else ()
        return [int(label) if label >= 0 else None for label in told]

    def _contain(
        self,
        files: Sequence[tuple[bytes, int]],
        labels: Sequence[int | None],
        numbers: Sequence[int] | None = None,
    ) -> None:
        super()._contain(files, labels, numbers)
        self.sources = tuple(map(self._source, self.files))
        told = f"{self.sha256} {' '.join(map(str, self.labels))}"
        self.sha256 = hashlib.sha256(told.encode()).hexdigest()

    def _source(self, file: tuple[bytes, int]) -> Source:
        name, size = file
        row = int(name[:DIGITS])
        path = "" if size else self._table.picture(row).get("path")
        return os.fsencode(path) if path else Row(name, size, self._table, row)


def _kind(feature: object) -> str:
    return type(feature).__name__


def _asked(name: str, query: str) -> dict[str, str]:
    asked = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    for way in asked:
        if way not in WAYS:
            raise UsageError("U484", name, f"a dataset has no option {way!r}; {nearest(way, WAYS)}")
    return asked


def _loaded(folder: Path, name: str, split: str | None) -> Any:
    try:
        datasets = import_module("datasets")
    except ImportError as fault:
        what, step = (
            "datasets, which reads it, is not installed",
            "pip install 'convscope[datasets]'",
        )
        raise EnvironmentFault("R625", name, what, next_step=step) from fault
    noisy = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return _one(datasets.load_from_disk(str(folder)), name, split)
    except (UsageError, DataError, MemoryError):
        raise
    except Exception as fault:  # of whatever library reads a part of it
        raise _damaged(name, fault) from fault
    finally:
        if noisy:
            datasets.enable_progress_bars()


def _one(given: Any, name: str, split: str | None) -> Any:
    """The one table that is meant."""
    if isinstance(given, dict):
        if split is None and len(given) == 1:
            return next(iter(given.values()))
        if split in given:
            return given[split]
        said = "has several splits" if split is None else f"has no split {split!r}"
        step = "name one, as DIR?split=NAME, or dataset[NAME]"
        raise UsageError("U484", name, f"{said}: {', '.join(given)}", next_step=step)
    if not hasattr(given, "data") or not hasattr(given, "features"):
        what, step = f"{_kind(given)} has no rows by number", "give a Dataset, or save it to disk"
        raise UsageError("U377", name, what, next_step=step)
    if split is not None and split != str(given.split):
        raise UsageError("U484", name, "has no splits", next_step="leave out ?split=")
    return given


def _called(given: Any) -> str:
    """What to call a dataset that has no folder."""
    info, split = getattr(given, "info", None), getattr(given, "split", None)
    told = [str(part) for part in (getattr(info, "dataset_name", None), split) if part]
    return " ".join(told) or "dataset"


def _damaged(name: str, fault: Exception) -> DataError:
    said = " ".join(str(fault).split())[:200] or type(fault).__name__
    return DataError("D210", name, f"is a dataset that cannot be read ({said})")
