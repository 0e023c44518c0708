"""Split pictures into training and validation sets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from convscope.errors import DataError
from convscope.pictures.pictures import Folder
from convscope.publish import publish_file


def validation(name: str | bytes) -> bool:
    """Whether a picture of that name is one of the tenth kept for validation.

    Decided by the file's own name alone, whatever else is in the folder or which class it is
    in: it never moves, and every class gives about a tenth.
    """
    last = os.fsencode(name).rsplit(b"/", 1)[-1]
    return int.from_bytes(hashlib.sha256(last).digest()[:8], "big") % 10 == 0


def split(folder: Folder) -> tuple[Folder, Folder]:
    """(training, validation) of a folder, 9:1 by name.

    A folder `train` with a folder `val` beside it is divided already, as the built-in
    photographs are. Raises DataError D119 if a part would be empty.
    """
    beside = folder.root.parent / "val"
    if folder.root.name == "train" and beside.is_dir():
        kept = Folder(beside, limits=folder.limits, workers=folder.workers, max_bad=folder.max_bad)
        return folder, kept
    chosen = [validation(path) for path in folder.paths]
    if all(chosen) or not any(chosen):
        raise DataError(
            "D119", str(folder.root), f"{len(folder)} pictures are too few to keep a tenth back"
        )
    parts = ([n for n, held in enumerate(chosen) if held is part] for part in (False, True))
    training, held_back = (folder.subset(numbers) for numbers in parts)
    return training, held_back


def write_class_indices(path: Path | str, classes: Sequence[str]) -> None:
    """class_indices.json as the tutorials write it: {"0": "daisy", …}, indented by 4."""
    told = {str(number): name for number, name in enumerate(classes)}
    publish_file(Path(path), json.dumps(told, indent=4).encode("utf-8"))
