"""Does a table come out of each kind of file as it went in, whatever stands in its cells?"""

from __future__ import annotations

import csv
import io
import json

import pytest

from convscope.core.text import Table, lines, read_tables, tables_json

HARD = ("cat|dog", "a\nb", "|", "", "ä ☃", '"', "x, y", "\\|", "-3")
TABLE = Table.of(("name", "count"), [(name, "1") for name in HARD], "How many:")


def test_pages_get_every_cell_as_it_is() -> None:
    assert read_tables(tables_json(["Words.", TABLE, "More.", TABLE])) == (TABLE, TABLE)


def test_markdown_has_one_cell_where_a_name_has_bars() -> None:
    title, _, *rows = TABLE.markdown()
    assert title == "How many:"
    assert len({len(row) for row in rows}) == 1
    for row in rows:
        assert row.replace("\\|", "").count("|") == 3
    assert "cat\\|dog" in rows[2]


def test_csv_gives_the_rows_back_and_runs_nothing() -> None:
    table = Table.of(("name", "value"), [("cat|dog", "-3"), ("=1+1", "2")])
    rows = list(csv.reader(io.StringIO(table.csv().decode())))
    assert rows == [["name", "value"], ["cat|dog", "-3"], ["'=1+1", "2"]]


def test_parts_stand_apart_and_nothing_is_at_the_ends() -> None:
    short = Table.of(("a",), [("1",)])
    rows = ["| a   |", "| --- |", "| 1   |"]
    assert lines([short, "Said.", "More.", short]) == [*rows, "", "Said.", "More.", "", *rows]
    assert lines(["Said.", "", short, "", short]) == ["Said.", "", *rows, "", *rows]


def test_a_row_of_another_length_is_no_row() -> None:
    with pytest.raises(ValueError, match="as many cells"):
        Table.of(("a", "b"), [("1",)])


@pytest.mark.parametrize(
    "told",
    ["{", '{"kind": "convscope tables"}', '{"kind": "convscope tables", "tables": [{"head": 3}]}',
     '{"kind": "convscope tables", "tables": [{"title": "", "head": ["a"], "rows": [["1", "2"]]}]}',
     '{"kind": "convscope tables", "tables": [{"title": "", "head": "ab", "rows": []}]}'],
)  # fmt: skip
def test_what_is_no_list_of_tables_is_said(told: str) -> None:
    with pytest.raises(ValueError, match=r"tables|JSON|head|cells|row"):
        read_tables(told.encode())


def test_json_of_another_kind_has_no_tables() -> None:
    assert read_tables(json.dumps({"boxes": [1]}).encode()) == ()
    assert read_tables(b"[1]") == ()
