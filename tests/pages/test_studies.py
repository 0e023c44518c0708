"""Do a study's figures and numbers come into the atlas, and nothing that runs?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope.cli.app import main
from convscope.core.errors import DataError, UsageError
from convscope.core.text import Table, tables_json
from convscope.pages.atlas import add_studies, read_study, write_atlas
from tests.pages.conftest import Window
from tests.pages.fake_records import HOSTILE, atlas

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="90">'
    "<script>parent.ran = 1</script><rect width='100%' height='90' fill='tomato'/></svg>"
)


BARS = "cat|dog"


def study(place: Path, kind: str, *, wide: int = 800) -> Path:
    """As a command leaves it."""
    (place / "network").mkdir(parents=True)
    (place / "figure.svg").write_text(SVG.format(wide=wide))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(place / "figure.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(place / "another.png")
    table = Table.of(("map", HOSTILE), [("conv1:3", "0.5"), (BARS, "0.25")], "About it")
    (place / "table.json").write_bytes(tables_json([table, "Border: mean."]))
    origin = {"model": "<i>net</i>", "convscope": "0.0", "layers": ["a"]}
    index = {"schema": 1, "kind": kind, "arrays": [], "plain": {"origin": origin}}
    (place / "network" / "record.json").write_text(json.dumps(index))
    return place


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, made = tmp_path_factory.mktemp("atlas"), atlas()
    written = write_atlas(home / "out", made.card, made.table, made.pictures, made.layers)
    with pytest.raises(SystemExit) as end:
        main(
            [
                "attach",
                str(home / "out"),
                str(study(home / "filters", "Filters")),
                str(study(home / HOSTILE.replace("/", "-"), "Unheard", wide=3000)),
            ]
        )
    assert end.value.code in (0, None)
    return written


def test_studies_are_screens_of_the_atlas(browser: Any, page: Path) -> None:
    window = Window(browser, page.as_uri())
    shown = window.open("#/study/0")
    assert shown.locator("#screen h1").inner_text() == "Filters"
    window.loaded()
    assert shown.locator("figure.study img").count() == 2
    assert shown.locator("#screen caption").inner_text() == "About it"
    assert shown.locator("#screen thead th").all_inner_texts() == ["map", HOSTILE]
    assert shown.locator("#screen tbody").inner_text().split() == ["conv1:3", "0.5", BARS, "0.25"]
    shown.locator("#screen details.honest summary").click()
    assert "model <i>net</i>; convscope 0.0" in shown.locator("#screen details").inner_text()
    shown.get_by_role("link", name=HOSTILE.replace("/", "-")).click()
    window.shown(HOSTILE.replace("/", "-"))
    window.press("[", "Filters")
    assert shown.evaluate("() => window.ran") is None
    window.closed()


def test_a_wide_figure_stays_within_a_small_phone(browser: Any, page: Path) -> None:
    window = Window(browser, page.as_uri(), viewport={"width": 320, "height": 640})
    for place in ("#/study/0", "#/study/1"):
        shown = window.open(place)
        assert shown.evaluate("() => document.documentElement.scrollWidth") <= 320
    window.closed()


def test_a_study_put_in_again_takes_its_own_place(tmp_path: Path) -> None:
    made = atlas()
    first = study(tmp_path / "filters", "Filters")
    given = {"studies": [read_study(first)]}
    write_atlas(tmp_path / "out", made.card, made.table, made.pictures, made.layers, **given)
    (first / "table.json").write_bytes(tables_json([Table.of(("a", "b"), [("1", "2")])]))
    add_studies(tmp_path / "out", [read_study(first)])
    listed = (tmp_path / "out" / "data" / "studies.js").read_text()
    (only,) = json.loads(listed.removeprefix("window.CONVSCOPE_STUDIES=").rstrip(";\n"))
    assert only["tables"] == [{"caption": "", "rows": [["a", "b"], ["1", "2"]]}]
    assert [path.name for path in (tmp_path / "out" / "studies").iterdir()] == ["1"]


def test_what_is_no_study_and_what_is_no_atlas_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no figure"):
        read_study(tmp_path)
    whole = study(tmp_path / "filters", "Filters")
    with pytest.raises(UsageError, match="is not an atlas"):
        add_studies(tmp_path, [read_study(whole)])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "studies.js").write_text("window.CONVSCOPE_STUDIES=[{}];")
    (tmp_path / "index.html").touch()
    with pytest.raises(UsageError, match="is not an atlas"):
        add_studies(tmp_path, [read_study(whole)])


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def device(path: Path, _: Path) -> None:
    path.symlink_to("/dev/zero")


def pointing(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def upwards(path: Path, secret: Path) -> None:
    path.symlink_to(Path("..") / secret.name)


def inside(path: Path, _: Path) -> None:
    path.symlink_to("record.json")


def nowhere(path: Path, _: Path) -> None:
    path.symlink_to("none")


def directory(path: Path, _: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("name", ["figure.svg", "another.png", "table.json", "more.json"])
@pytest.mark.parametrize("stands", [fifo, device, pointing, upwards, inside, nowhere, directory])
def test_what_is_not_a_file_of_the_study_is_not_shown(
    tmp_path: Path, name: str, stands: Callable[[Path, Path], None]
) -> None:
    place, secret = study(tmp_path / "filters", "Filters"), tmp_path / "secret"
    secret.write_bytes(tables_json([Table.of(("somebody's",), [("secret",)])]))
    (place / name).unlink(missing_ok=True)
    stands(place / name, secret)
    with pytest.raises(UsageError) as told:
        read_study(place)
    assert told.value.code == "U440"


def test_a_figure_exchanged_for_a_link_after_a_look_at_it_is_not_copied(tmp_path: Path) -> None:
    made = atlas()
    write_atlas(tmp_path / "at", made.card, made.table, made.pictures, made.layers)
    found = read_study(study(tmp_path / "filters", "Filters"))
    (tmp_path / "secret").write_text("a secret")
    for figure in found.figures:
        figure.unlink()
        figure.symlink_to(tmp_path / "secret")
    before = (tmp_path / "at" / "data" / "studies.js").read_bytes()
    with pytest.raises(UsageError):
        add_studies(tmp_path / "at", [found])
    assert (tmp_path / "at" / "data" / "studies.js").read_bytes() == before
    assert not list((tmp_path / "at").glob("studies/*"))


def test_a_record_behind_a_link_or_damaged_is_told(tmp_path: Path) -> None:
    place = study(tmp_path / "filters", "Filters")
    (place / "network").rename(tmp_path / "elsewhere")
    (place / "network").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link") as told:
        read_study(place)
    assert told.value.code == "D140"
    (place / "network").unlink()
    (place / "record.json").write_text("")
    with pytest.raises(DataError, match="is damaged"):
        read_study(place)


def test_an_atlas_whose_parts_lie_elsewhere_is_not_written_to(tmp_path: Path) -> None:
    made, shown = atlas(), read_study(study(tmp_path / "filters", "Filters"))
    for name in ("data", "studies"):
        home = tmp_path / name / "at"
        write_atlas(home, made.card, made.table, made.pictures, made.layers)
        (home / "studies").mkdir(exist_ok=True)
        (home / name).rename(tmp_path / name / "far")
        (home / name).symlink_to(tmp_path / name / "far")
        before = sorted((tmp_path / name / "far").rglob("*"))
        with pytest.raises(UsageError) as told:
            add_studies(home, [shown])
        assert told.value.code == "U441"
        assert sorted((tmp_path / name / "far").rglob("*")) == before


def test_a_figure_or_a_page_too_large_is_told(tmp_path: Path) -> None:
    for name in ("figure.svg", "table.json"):
        place = study(tmp_path / name, "Filters")
        with (place / name).open("r+b") as file:
            file.truncate(30_000_001)
        with pytest.raises(UsageError, match="more than"):
            read_study(place)


def test_what_a_killed_attach_copied_is_no_study_and_in_nobody_s_way(tmp_path: Path) -> None:
    made, shown = atlas(), read_study(study(tmp_path / "filters", "Filters"))
    write_atlas(tmp_path / "at", made.card, made.table, made.pictures, made.layers)
    (tmp_path / "at" / "studies" / "0").mkdir(parents=True)
    (tmp_path / "at" / "studies" / "0" / "0.svg").write_text("half")
    for _ in range(2):
        add_studies(tmp_path / "at", [shown])
    assert sorted(path.name for path in (tmp_path / "at" / "studies").iterdir()) == ["1"]
    assert not list((tmp_path / "at" / "data").glob(".*"))


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    place = study(tmp_path / "filters", "Filters")
    (place / "table.json").write_text('{"kind": "convscope tables", "tables": [{}]}')
    with pytest.raises(UsageError, match="not a list of tables") as told:
        read_study(place)
    assert told.value.code == "U440"


def test_no_table_is_cut_off_on_a_laptop_s_screen(browser: Any, tmp_path: Path) -> None:
    place, made = study(tmp_path / "wide", "Invariance"), atlas()
    head = ["change", *(f"a rather long head of column {n}" for n in range(11))]
    rows = [["vertical translation", *["0.123 ± 0.045"] * 11]]
    (place / "table.json").write_bytes(tables_json([Table.of(head, rows)]))
    written = write_atlas(
        tmp_path / "at",
        made.card,
        made.table,
        made.pictures,
        made.layers,
        studies=[read_study(place)],
    )
    sizes = "e => e.scrollWidth - e.clientWidth"
    for width in (1280, 360):
        window = Window(browser, written.as_uri(), viewport={"width": width, "height": 800})
        page = window.open("#/study/0")
        assert (page.locator(".scroller").evaluate(sizes) > 0) == (width == 360)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        window.closed()
