"""Which classes does each picture show, if a list says so and a picture may show several?"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from convscope.errors import DataError, UsageError
from convscope.images.folder import Folder
from convscope.texts import brief, index, one_line, parsed, read_json, read_text

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
    told = parsed(text)
    if not isinstance(told, dict):
        raise ValueError(f"{brief(told)} is no table of pictures")
    for name, given in told.items():
        plain = [given] if isinstance(given, str) else given
        if isinstance(plain, list) and all(isinstance(key, str) for key in plain):
            plain = dict.fromkeys(plain, SHOWN)
        if not isinstance(plain, dict):
            raise ValueError(f"{name}: {brief(plain)} is no list of classes")
        yield name, "", ABSENT
        for key, value in plain.items():
            yield name, key, _mark(value, name)


def _from_csv(text: str) -> Iterator[tuple[str, str, int]]:
    for number, row in enumerate(csv.reader(text.splitlines())):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 0 and cells[0].lower() in HEADS):
            continue
        if len(cells) != 2 or not cells[0]:
            raise ValueError(f"line {number + 1} is not PICTURE,CLASS;CLASS")
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


def numbers_of(folder: Folder, lists: Lists) -> dict[str, int]:
    """The number in the folder of each listed picture: by name, file name, or that without ending.

    Raises DataError D209 if one is not there, or if it may be several.
    """
    places: dict[str, int] = {}
    for number, name in enumerate(folder.names):
        file = PurePosixPath(name)
        for key in {file.name, file.stem}:
            places[key] = number if key not in places else -1
    places |= {name: number for number, name in enumerate(folder.names)}
    found = {name: places.get(name) for name in lists.shown}
    missing = [name for name, number in found.items() if number is None or number < 0]
    if missing:
        what = f"{len(missing):,} of {len(found):,} listed pictures are not in the folder, or twice"
        step = "name the folder with all of them, or take them off the list"
        raise DataError("D209", missing[0], what, next_step=step)
    return {name: number for name, number in found.items() if number is not None}


def read_labels(path: Path | str) -> dict[str, int]:
    """Class indices by file name or class folder, from JSON {name: index}, or
    {"0": ["n01440764", …], …}, as lists of ImageNet's classes are kept.

    Raises UsageError U313 on anything else.
    """
    try:
        told = read_json(path)
        if not isinstance(told, dict):
            raise ValueError(f"{brief(told)} is no table of names")
        if told and all(_is_class(key, value) for key, value in told.items()):
            told = {value[0]: int(key) for key, value in told.items()}
        return {one_line(name): _index(name, value) for name, value in told.items()}
    except ValueError as fault:
        what = f"does not hold a class index for each name ({fault})"
        raise UsageError("U313", str(path), what, next_step='write {"name": 0, …}') from fault


def _is_class(key: str, value: object) -> bool:
    """Whether this is `"0": ["n01440764", …]`."""
    number = key.isdecimal() and len(key) < 10
    return number and isinstance(value, list) and bool(value) and type(value[0]) is str


def _index(name: str, value: object) -> int:
    try:
        return index(value)
    except ValueError as fault:
        raise ValueError(f"{name}: {fault}") from None
