"""How is a long study over pictures stopped and gone on with, and no picture computed twice?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convscope.errors import DataError, OutputError
from convscope.publish import publish_file, require_folder, unfinished
from convscope.records.occlusion import Occlusions
from convscope.texts import parsed

PLAN = "plan.json"


class Kept:
    """A folder with one record a picture, and what decides their numbers."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        """Raises OutputError O501 (a file is there), O580 (parts of another study are)."""
        require_folder(folder)
        self.folder, self.plan = folder, json.loads(json.dumps(plan))
        self.begun = folder.is_dir() and not all(unfinished(path.name) for path in folder.iterdir())
        if self.begun:
            _require_same(folder, self.plan)

    def part(self, number: int) -> Occlusions | None:
        """What was kept of this picture; None if nothing usable was."""
        try:
            return Occlusions.load(self._place(number), whole=True)
        except DataError:
            return None

    def keep(self, number: int, found: Occlusions) -> None:
        if not self.begun:
            publish_file(self.folder / PLAN, json.dumps(self.plan, indent=1).encode("ascii"))
            self.begun = True
        shutil.rmtree(self._place(number), ignore_errors=True)  # damaged, or it would be used
        found.save(self._place(number))

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:06d}"


def _require_same(folder: Path, plan: Mapping[str, Any]) -> None:
    try:
        before = parsed((folder / PLAN).read_text(encoding="ascii"))
        differs = [name for name in plan if before.get(name) != plan[name]]
    except (OSError, ValueError, AttributeError):
        differs = ["no plan is there"]
    if differs:
        what = f"holds parts of another study ({', '.join(differs)})"
        step = "name another place for the results, or remove this one"
        raise OutputError("O580", str(folder), what, next_step=step)
