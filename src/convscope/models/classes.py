"""What are the classes called, in which order, and how many are there?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from convscope.errors import UsageError, shown
from convscope.texts import one_line, parsed, read_text, unusable

MOST = 1_000_000
"""Classes that are taken; more are no names but a mistake."""
FORMS = 'a name a line, ["daisy", …], {"0": "daisy", …} or {"daisy": 0, …}'


def classes_asked(classes: object) -> tuple[int | None, tuple[str, ...]]:
    """Number and names of the classes, from what was given as `classes`.

    classes: their number, their names in the order of the outputs, or in a text "5",
    "cat,dog" or the name of a file: a name a line, or JSON as ["daisy"], {"0": "daisy"}
    (tutorials), {"daisy": 0} (Keras, torchvision's class_to_idx) or {"0": ["n01440764",
    "tench"]} (ImageNet). Raises UsageError U231, and U235 for a file that cannot be read so.
    """
    if classes is None:
        return None, ()
    if isinstance(classes, str | Path):
        classes = _read(classes)
    if isinstance(classes, int) and not isinstance(classes, bool) and 0 < classes <= MOST:
        return classes, ()
    if isinstance(classes, Mapping):
        classes = _ordered(classes, "classes")
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        raise UsageError(
            "U231",
            f"classes={shown(classes)}",
            "is neither a whole number from 1 nor a list of names",
        )
    return len(classes) or None, tuple(one_line(str(name)) for name in classes)


def _read(text: str | Path) -> object:
    """A number, names with commas between, or what a file holds."""
    if unusable(text) or not Path(text).is_file():
        plain = str(text).strip()
        if plain.isascii() and plain.isdecimal():
            return int(plain) if len(plain) < len(str(MOST)) + 1 else plain
        if "," in plain:
            return [name.strip() for name in plain.split(",")]
        what = "is no number of classes, no names with commas between, and no file"
        raise UsageError("U231", f"classes={plain}", what)
    try:
        whole = read_text(text)
        if not whole.lstrip().startswith(("{", "[")):
            return [line.strip() for line in whole.splitlines() if line.strip()]
        return _ordered(parsed(whole), text)
    except ValueError as fault:
        _refuse(text, f"cannot be read ({fault})")


def _ordered(plain: Any, name: str | Path) -> list[Any]:
    """The names in the order of the outputs, out of what JSON may hold."""
    if isinstance(plain, list):
        if plain and all(isinstance(one, str) for one in plain):
            return plain
        _refuse(name, "holds no list of names")
    if not isinstance(plain, dict) or not plain:
        _refuse(name, "holds no names of classes")
    pairs = list(plain.items())
    if all(type(number) is int for number in plain.values()):
        pairs = [(number, word) for word, number in pairs]
    found = {int(key) if _whole(key) else key: _word(word) for key, word in pairs}
    if found.keys() != set(range(len(pairs))):
        _refuse(name, f"does not number {len(pairs)} classes from 0 to {len(pairs) - 1}")
    names = [found[place] for place in range(len(pairs))]
    if not all(isinstance(one, str) for one in names):
        _refuse(name, "has a class without a name")
    return names


def _whole(key: object) -> bool:
    text = str(key)
    return not isinstance(key, bool) and len(text) < 8 and text.isascii() and text.isdecimal()


def _word(word: object) -> object:
    """The name itself, or the last of ["n01440764", "tench"]."""
    return word[-1] if isinstance(word, list) and word else word


def _refuse(name: str | Path, what: str) -> NoReturn:
    raise UsageError("U235", str(name), what, next_step=f"write {FORMS}")
