"""Do a study's figures and numbers come into the atlas, and nothing that runs?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope import records
from convscope.cli.app import main
from convscope.errors import UsageError
from convscope.pages.atlas import write_atlas
from convscope.pages.studies import ABOUT, add_studies, read_study
from tests.pages.conftest import Window
from tests.pages.fake_records import HOSTILE, atlas

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="90">'
    "<script>parent.ran = 1</script><rect width='100%' height='90' fill='tomato'/></svg>"
)


def study(place: Path, kind: str, *, rows: str = "", wide: int = 800) -> Path:
    """As a command leaves it."""
    (place / "network").mkdir(parents=True)
    (place / "figure.svg").write_text(SVG.format(wide=wide))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(place / "figure.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(place / "another.png")
    (place / "table.md").write_text(
        f"About it\n\n| map | {HOSTILE} |\n|---|---|\n| conv1:3 | 0.5 |\n{rows}\nBorder: mean.\n"
    )
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
    assert shown.locator("#screen tbody").inner_text().split() == ["conv1:3", "0.5"]
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
    (first / "table.md").write_text("| a | b |\n|---|---|\n| 1 | 2 |\n")
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


def test_every_study_that_is_explained_is_a_record_of_ours() -> None:
    home = Path(records.__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in home.glob("*.py"))
    assert [kind for kind in ABOUT if f"class {kind}(Record)" not in text] == []
