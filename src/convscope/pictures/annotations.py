"""Annotations of pictures, read from files: boxes, parts (keypoints), class lists, labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from msgspec import Meta

from convscope.core.errors import DataError, UsageError
from convscope.core.text import (
    Openable,
    brief,
    checked_table,
    one_line,
    parsed,
    read_json,
    read_text,
)
from convscope.core.units import Box
from convscope.pictures.pictures import Pictures

BOXES_FILE = "boxes.json"
Index = Annotated[int, Meta(ge=0, lt=1 << 31)]
Place = Annotated[float, Meta(gt=-(1 << 31), lt=1 << 31)]
Pixel = Annotated[int, Meta(gt=-(1 << 31), lt=1 << 31)] | Place
"""Beyond any picture's."""
FORM = "write {name: [[xmin, ymin, xmax, ymax], …]}"


def read_boxes(path: Path | str | Openable) -> dict[str, tuple[Box, ...]]:
    """Boxes by picture name, from JSON of the form {name: [[xmin, ymin, xmax, ymax], …]}, in
    pixels of the picture as it is read (EXIF orientation applied or not).

    Raises DataError D141 if the file is not that.
    """
    try:
        told = checked_table(read_json(path), list[tuple[Pixel, Pixel, Pixel, Pixel]])
        return {name: tuple(_box(name, *box) for box in boxes) for name, boxes in told.items()}
    except ValueError as fault:
        what = f"is not a file of boxes ({fault})"
        raise DataError("D141", str(path), what, next_step=FORM) from fault


def _box(name: str, left: Pixel, top: Pixel, right: Pixel, bottom: Pixel) -> Box:
    if left >= right or top >= bottom:
        raise ValueError(f"{name}: {[left, top, right, bottom]} is empty or inverted")
    return Box(top, left, bottom, right)  # type: ignore[arg-type]  # pixels may be split


Parts = Mapping[str, Mapping[str, tuple[float, float]]]
"""By picture name, then by part: column and row (x, y) of its centre in the picture's pixels."""


def read_parts(path: Path | str) -> dict[str, dict[str, tuple[float, float]]]:
    """Parts from JSON: {"images": {name: {part: [x, y], …}, …}}, or the inner table alone.

    Raises DataError D173 if the file is not that.
    """
    try:
        told = read_json(path)
        pictures = told.get("images", told) if isinstance(told, dict) else told
        return checked_table(pictures, dict[str, tuple[Place, Place]])
    except ValueError as fault:
        what, step = f"is not a file of parts ({fault})", 'write {"images": {name: {part: [x, y]}}}'
        raise DataError("D173", str(path), what, next_step=step) from fault


SHOWN, HARD, ABSENT = 1, 0, -1
"""As VOC writes them; HARD is hard to see, and counts neither as shown nor as absent."""
HEADS = ("picture", "image", "file", "name")
FORMS = "give a .json, a .csv, or VOC's folder and part as ImageSets/Main:train"


@dataclass(frozen=True)
class Lists:
    """What a list says of pictures."""

    classes: tuple[str, ...]
    shown: Mapping[str, Mapping[str, int]]
    """Picture → class → SHOWN or HARD; other classes are ABSENT."""


def read_lists(spec: str) -> Lists:
    """`FILE.json` {"a.jpg": ["dog", "person"]}; `FILE.csv` with lines `a.jpg,dog;person`; or
    `FOLDER:PART`, VOC's own lists `FOLDER/CLASS_PART.txt` with lines `2008_000008 -1`.

    Raises DataError D208 on anything else.
    """
    folder, _, part = spec.rpartition(":")
    if folder and Path(folder).is_dir():
        return _voc(Path(folder), part)
    try:
        text = read_text(spec)
        marks = list(_from_json(text) if spec.lower().endswith(".json") else _from_csv(text))
    except (ValueError, csv.Error) as fault:
        what = f"is no list of pictures and their classes ({fault})"
        raise DataError("D208", spec, what, next_step=FORMS) from fault
    return _gathered(spec, marks)


def _from_json(text: str) -> Iterator[tuple[str, str, int]]:
    told = checked_table(parsed(text), str | list[str] | dict[str, Any])
    for name, given in told.items():
        classes = [given] if isinstance(given, str) else given
        marks = classes if isinstance(classes, dict) else dict.fromkeys(classes, SHOWN)
        yield name, "", ABSENT
        for key, value in marks.items():
            yield name, key, _mark(value, name)


def _from_csv(text: str) -> Iterator[tuple[str, str, int]]:
    for line, row in enumerate(csv.reader(text.splitlines())):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (line == 0 and cells[0].lower() in HEADS):
            continue
        if len(cells) != 2 or not cells[0]:
            raise ValueError(f"line {line + 1} is not PICTURE,CLASS;CLASS")
        yield cells[0], "", ABSENT
        for key in cells[1].split(";"):
            if key.strip():
                yield cells[0], key.strip(), SHOWN


def _voc(folder: Path, part: str) -> Lists:
    ending = f"_{part}.txt"
    files = sorted(folder.glob(f"*{ending}"))
    marks: list[tuple[str, str, int]] = []
    for path in files:
        try:
            lines = read_text(path).splitlines()
            for number, line in enumerate(lines):
                words = line.split()
                if len(words) != 2:
                    raise ValueError(f"line {number + 1} is not NAME -1, 0 or 1")
                marks.append((words[0], path.name.removesuffix(ending), _mark(words[1], words[0])))
        except ValueError as fault:
            raise DataError("D208", str(path), f"is no list of VOC ({fault})") from fault
    if not files:
        raise DataError("D208", f"{folder}:{part}", f"holds no CLASS{ending}", next_step=FORMS)
    return _gathered(f"{folder}:{part}", marks)


def _mark(value: object, name: str) -> int:
    if type(value) not in (int, str) or str(value) not in ("-1", "0", "1"):
        raise ValueError(f"{name} is marked {brief(value)}, not -1, 0 or 1")
    return int(str(value))


def _gathered(spec: str, marks: list[tuple[str, str, int]]) -> Lists:
    said: dict[str, dict[str, int]] = {}
    for name, key, value in marks:
        of_picture = said.setdefault(one_line(name), {})
        if value != ABSENT:
            of_picture[key] = max(value, of_picture.get(key, value))
    classes = sorted({key for of_picture in said.values() for key in of_picture})
    if not classes:
        raise DataError("D208", spec, "names no picture of any class", next_step=FORMS)
    return Lists(tuple(classes), said)


def numbers_of(folder: Pictures, lists: Lists) -> dict[str, int]:
    """The number in the folder of each listed picture: by name, file name, or that without ending.

    Raises DataError D209 if one is not there, or if it may be several.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(folder.names):
        file = PurePosixPath(name)
        for key in {file.name, file.stem}:
            places[key] = place if key not in places else -1
    places |= {name: number for number, name in enumerate(folder.names)}
    result = {name: places.get(name) for name in lists.shown}
    missing = [name for name, number in result.items() if number is None or number < 0]
    if missing:
        many = f"{len(missing):,} of {len(result):,}"
        what = f"{many} listed pictures are not in the folder, or twice"
        step = "name the folder with all of them, or take them off the list"
        raise DataError("D209", missing[0], what, next_step=step)
    return {name: number for name, number in result.items() if number is not None}


def read_labels(path: Path | str) -> dict[str, int]:
    """Class indices by file name or class folder, from JSON {name: index}, or
    {"0": ["n01440764", …], …}, as lists of ImageNet's classes are kept.

    Raises UsageError U313 on anything else.
    """
    try:
        told = read_json(path)
        if isinstance(told, dict) and told and all(_is_class(*entry) for entry in told.items()):
            told = {value[0]: int(key) for key, value in told.items()}
        return checked_table(told, Index)
    except ValueError as fault:
        what = f"does not hold a class index for each name ({fault})"
        raise UsageError("U313", str(path), what, next_step='write {"name": 0, …}') from fault


def _is_class(key: str, value: object) -> bool:
    """Whether this is `"0": ["n01440764", …]`."""
    number = key.isdecimal() and len(key) < 10
    return number and isinstance(value, list) and bool(value) and type(value[0]) is str
