"""How does a command tell which pictures it had to leave out?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from convscope.cli.progress import say
from convscope.errors import DataError

if TYPE_CHECKING:
    from convscope.images.folder import Folder


@contextmanager
def listing_skipped(folders: Sequence[Folder], place: Path) -> Iterator[None]:
    """When too many pictures are unusable (D118), write down which and why, and say where."""
    try:
        yield
    except DataError as fault:
        if fault.code == "D118" and (written := _written(folders, place)) is not None:
            fault.kept = f"which pictures, and why, in {written}"
        raise


def tell_skipped(folders: Sequence[Folder], place: Path) -> None:
    """How many pictures were used and, if any was not, a table of them at `place`."""
    for folder in folders:
        if len(folder) > 1:
            say(folder.summary())
    if (written := _written(folders, place)) is not None:
        say(f"which, and why: {written}")


def beside(out: Path) -> Path:
    """The place of the table while the results' own folder has to stay free."""
    return out.with_name(f"{out.name}-skipped.csv")


def free(path: Path) -> Path:
    """The path, or with a number where it is taken: nothing is overwritten."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found


def _written(folders: Sequence[Folder], place: Path) -> Path | None:
    from convscope.images.skipped import table
    from convscope.publish import publish_file

    skipped = [entry for folder in folders for entry in folder.skipped]
    if not skipped:
        return None
    target = free(place)
    publish_file(target, table(skipped))
    return target
