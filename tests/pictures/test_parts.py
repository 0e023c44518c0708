"""Are marked parts read, and what is no such file told?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convscope.core.errors import DataError
from convscope.pictures.annotations import read_parts


def test_parts_are_read_with_and_without_what_surrounds_them(tmp_path: Path) -> None:
    inner = {"a.jpg": {"nose": [3, 4.5]}}
    path = tmp_path / "parts.json"
    for told in (inner, {"about": "by hand", "images": inner}):
        path.write_text(json.dumps(told))
        assert read_parts(path) == {"a.jpg": {"nose": (3.0, 4.5)}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"a.jpg": [1, 2]}',
        '{"a.jpg": {"nose": [1]}}',
        '{"a": {"b": [1, NaN]}}',
        "{1}",
        '{"images": [1]}',
        '{"a": {"b": ["x", 1]}}',
    ],
)
def test_what_is_no_file_of_parts_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "parts.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"is not a file of parts .* Next: write") as told:
        read_parts(path)
    assert told.value.code == "D173"
    assert "attribute" not in str(told.value)
    assert "float" not in str(told.value)


def test_no_file_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_parts(tmp_path / "none.json")
