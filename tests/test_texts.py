"""Does text of strangers come in as plain values or one clear fault, and go out harmless?"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from convscope.core.errors import ConvscopeError, UsageError
from convscope.core.text import brief, csv_table, one_line, read_json
from convscope.network.conversion import converted
from convscope.network.load import classes_asked
from convscope.pictures.annotations import read_boxes, read_labels, read_lists, read_parts

READERS: tuple[Callable[[Path], object], ...] = (
    *(read_boxes, read_parts, read_labels),
    lambda path: read_lists(str(path)),
)
HOSTILE = {
    "nested-lists": b"[" * 100_000,
    "nested-objects": b'{"a":' * 100_000,
    "nested-closed": b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
    "long-number": b'{"a": ' + b"9" * 5_000 + b"}",
    "large-number": b'{"a": ' + b"9" * 400 + b"}",
    "large-in-list": b'{"a": [[' + b"9" * 400 + b", 0, 1, 1]]}",
    "infinite": b'{"a": [[1e999, 0, 1, 1]]}',
    "nan": b'{"a": [[NaN, 0, 1, 1]]}',
    "true": b'{"a": [[true, 0, 2, 2]]}',
    "utf-16": '{"a": 0}'.encode("utf-16"),
    "utf-32": '{"a": 0}'.encode("utf-32"),
    "no-text": b'{"\xff": 0}',
    "list": b"[1, 2]",
    "null": b"null",
    "number": b"7",
    "text": b'"a"',
    "nothing": b"",
    "cut": b'{"a": [[1, 2, 3',
    "twice": b'{"a": [[0, 0, 1, 1]], "a": [[0, 0, 2, 2]]}',
    "wrong-types": b'{"a": {"b": {"c": [{}]}}}',
    "nul": b'{"a": 0}\0',
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_one_line_that_names_it(tmp_path, reader, content) -> None:
    path = tmp_path / "told.json"
    path.write_bytes(content)
    with pytest.raises(ConvscopeError) as caught:
        reader(path)
    assert caught.value.exit_status in (2, 3)
    line = caught.value.line()
    assert "told.json" in line
    assert "\n" not in line
    assert len(line) < 500


@pytest.mark.parametrize(
    "name", ["nested-lists", "nested-objects", "nested-closed", "long-number", "utf-16", "twice"]
)
def test_files_of_classes_and_of_preprocessing_are_read_the_same_way(tmp_path, name) -> None:
    path = tmp_path / "told.json"
    path.write_bytes(HOSTILE[name])
    for reader in (classes_asked, converted):
        with pytest.raises(UsageError, match=r"told\.json"):
            reader(str(path))


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_not_there_or_a_folder_is_told_in_words(tmp_path, reader) -> None:
    for path, why in ((tmp_path / "no.json", "no such file"), (tmp_path, "director")):
        with pytest.raises(ConvscopeError, match=why):
            reader(path)


def test_the_mark_that_windows_puts_before_utf8_is_no_fault(tmp_path) -> None:
    path = tmp_path / "told.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"é": 3}).encode())
    assert read_labels(path) == {"é": 3}


def test_a_fault_names_the_picture_it_stands_at(tmp_path) -> None:
    path = tmp_path / "told.json"
    path.write_text('{"a.png": [[0, 0, 1, 1]], "b.png": [[0, 0, "x", 1]]}')
    with pytest.raises(ConvscopeError, match=r"b\.png: .*'x'"):
        read_boxes(path)
    path.write_text('{"roses": 0, "tulips": -1}')
    with pytest.raises(ConvscopeError, match="tulips: -1"):
        read_labels(path)
    path.write_text('{\n "roses": 0,\n}')
    with pytest.raises(ConvscopeError, match=r"line [23] column"):
        read_labels(path)


def test_names_in_files_are_spelled_as_those_of_pictures_are(tmp_path) -> None:
    path = tmp_path / "told.json"
    path.write_text(json.dumps({"a\nb.png": 1, "Screen\u202fshot.png": 2}))
    assert read_labels(path) == {"a\\nb.png": 1, "Screen\u202fshot.png": 2}


def test_a_value_is_shown_in_a_few_words_however_large() -> None:
    deep: list[object] = []
    for _ in range(90):
        deep = [deep] * 3
    assert len(brief(deep)) < 100
    assert len(brief("x" * 9_999)) < 100
    assert len(brief(10**4_000)) < 100
    assert len(brief({str(n): n for n in range(999)})) < 100


def test_a_number_of_5000_digits_does_not_tell_about_python(tmp_path) -> None:
    path = tmp_path / "told.json"
    path.write_bytes(HOSTILE["long-number"])
    with pytest.raises(ValueError, match="thousands of digits"):
        read_json(path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("gnp.\u202exe", "gnp.\\u202exe"),
        ("\u2028", "\\u2028"),
        ("\x9b", "\\x9b"),
        ("\udcff", "\\udcff"),
        ("日本\u3000語 é\u00a0\u200d", "日本\u3000語 é\u00a0\u200d"),
    ],
)
def test_letters_that_move_what_is_shown_become_escapes_and_no_others(name, told) -> None:
    assert one_line(name) == told


def cells(*row: object) -> list[str]:
    return next(csv.reader(csv_table([row]).decode().splitlines(keepends=True)))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "＝", "－"])
def test_no_spreadsheet_runs_a_cell(start) -> None:
    assert cells(f"{start}HYPERLINK(1)") == [f"'{start}HYPERLINK(1)"]


@pytest.mark.parametrize("start", ["\t", "\r", "\n", "\r\n"])
def test_control_letters_neither_start_a_cell_nor_a_line(start) -> None:
    told = start.encode("unicode_escape").decode()
    assert cells(f"{start}=1", "b") == [f"{told}=1", "b"]


@pytest.mark.parametrize(
    "value", [-0.5, "-0.5", "+3", "-1e-05", 7, "nan", "-inf", "a=b", "", "-.5"]
)
def test_numbers_and_other_text_stay_as_they_are(value) -> None:
    assert cells(value) == [str(value)]


def test_a_number_with_more_behind_it_is_text() -> None:
    assert cells("-1+cmd|' /C calc'!A0") == ["'-1+cmd|' /C calc'!A0"]
    assert cells("-1\n") == ["'-1\\n"]
