"""Where do pictures go that we made or downloaded, so that it happens once?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from convscope.publish import publishing


def cache_folder(given: Path | str | None = None) -> Path:
    """`given`, or else convscope's folder in the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    if given is not None:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "convscope"


def publish_many(target: Path, write: Callable[[Path], None], *, sync: bool = True) -> None:
    """Like publish_folder, for thousands of small files that can be had again.

    They reach the disk together (not at all, unless `sync`), as a call for each would take half
    a minute. Raises OutputError O501, EnvironmentFault R602 or R603.
    """
    with publishing(target, sync="together" if sync else "none") as folder:
        write(folder)
