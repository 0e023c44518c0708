"""Does docs/pictures.md say what the code does?"""

from __future__ import annotations

import re
from pathlib import Path

from convscope.pictures.builtin import PHOTOS
from convscope.pictures.decode.decode import NOTES
from convscope.pictures.notes import CODES

PAGE = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text(encoding="utf-8")


def test_every_photograph_has_its_source_and_licence_on_the_page() -> None:
    rows = [f"| {photo.name} | {photo.source} | {photo.licence} |" for photo in PHOTOS]
    assert "\n".join(rows) in PAGE


def test_every_fault_and_every_note_is_on_the_page() -> None:
    assert set(re.findall(r"^\| (D\d+) \|", PAGE, re.MULTILINE)) == set(CODES)
    assert dict(re.findall(r"^\| (N\d+) \| (.+) \|$", PAGE, re.MULTILINE)) == NOTES
