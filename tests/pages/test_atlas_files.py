"""What lies in an atlas's folder: whole or nothing, small, named by numbers, safe as scripts?"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.core.errors import OutputError
from convscope.pages import describe
from convscope.pages import mark as marking
from convscope.pages.atlas import SCRIPTS, write_atlas
from convscope.pages.describe import number, safe_json, script, thumb_side
from convscope.records.features import LayerFeatures
from tests.pages.fake_records import (
    CLASSES,
    HOSTILE,
    NAMES,
    SIZE,
    atlas,
    card,
    layer,
    lazily,
    pictures,
    table,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "atlas.md"
STATIC = Path(__file__).parents[2] / "src" / "convscope" / "pages" / "static"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("files") / "atlas"
    a = atlas()
    write_atlas(
        out,
        a.card,
        a.table,
        a.pictures,
        iter(a.layers),
        training=a.training,
        evolution=a.evolution,
        occlusion=a.occlusion,
    )
    return out


def read(path: Path) -> object:
    """The data of a script, read without our own code: everything after the first `=` of it."""
    text = path.read_text(encoding="ascii")
    return json.loads(re.sub(r"^.*?\]?=(?=[{\[])", "", text.split("||{})")[-1]).rstrip(";\n"))


def test_the_page_s_path_comes_back_and_all_it_loads_is_there(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'(?:src|href)="([^#"]+)"', page)
    assert len(loaded) == len(SCRIPTS) + 5
    assert all((folder / name).is_file() for name in loaded)
    assert not re.search(r"https?:|<style|onload|<script>|<script defer>", page)


def test_every_script_of_ours_is_loaded_and_none_is_forgotten() -> None:
    assert {path.stem for path in STATIC.glob("*.js")} == {*SCRIPTS, *marking.SCRIPTS}


def test_the_documents_name_every_screen_and_key() -> None:
    scripts = "".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    screens = set(re.findall(r"c\.screens\.(\w+) =", scripts)) - {"network"}
    keys = re.findall(r'^    \["(.+?)", "', scripts, re.M)
    assert len(screens) == 8
    assert len(keys) == 7
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [screen for screen in screens if f"`#/{screen}" not in text] == []
    assert [key for key in keys if f"| {key} |" not in text] == []


def test_where_the_weights_lay_is_nobody_s_business() -> None:
    somewhere = dataclasses.replace(card(), weights="/home/me/secret/best.safetensors")
    assert describe.card(somewhere)["weights"] == "best.safetensors"
    assert describe.card(dataclasses.replace(card(), weights="random"))["weights"] == "random"


def test_the_title_is_escaped(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "ZFNet (width 0.125 &lt;script&gt;)" in page
    assert "zfnet:width=0.125 <script>" not in page


def test_no_name_of_a_picture_class_or_layer_becomes_a_path(folder: Path) -> None:
    paths = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert len(paths) > 53
    assert all(
        re.fullmatch(r"[a-z0-9_/]+\.(html|js|css|svg|webp|json|npy|npy\.gz)", path)
        for path in paths
    )


def test_the_numbers_on_the_page_are_the_record_s(folder: Path) -> None:
    data, record = read(folder / "data" / "layer1.js"), atlas().layers[1]
    assert isinstance(data, dict)
    finite = np.isfinite(record.value)
    shown = np.array([[math.nan if v is None else v for v in row] for row in data["value"]])
    assert np.allclose(shown[finite], record.value[finite], rtol=1e-4)
    assert np.isnan(shown[~finite]).all()
    assert data["box"] == record.box.tolist()
    names = np.array(pictures().name, dtype=object)
    there = record.image >= 0
    assert (np.array(data["picture"])[there] == record.image[there] // 3).all()
    assert (np.array(data["picture"])[~there] == -1).all()
    assert len(names) == 31


def test_hostile_names_arrive_as_they_are_but_control_characters_show(folder: Path) -> None:
    data = read(folder / "data" / "atlas.js")
    assert isinstance(data, dict)
    assert data["pictures"]["name"][0] == HOSTILE
    assert data["pictures"]["name"][3] == "line\\u2028separator & 'quotes'.jpg"
    assert data["pictures"]["name"][4] == "right\\u202eto left.png"
    assert data["pictures"]["classes"] == list(CLASSES)


@pytest.mark.parametrize("text", [*NAMES, "</script>", "<!--", "]]>", "\u2028\u2029", "\udc80"])
def test_no_text_can_leave_its_script(text: str) -> None:
    line = script("window.X", {text: [text]})
    assert not set(b"<>&") & set(line)
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert json.loads(safe_json(text)) == text


@pytest.mark.parametrize(
    ("value", "shown"), [(1.234567, 1.2346), (-math.inf, None), (math.nan, None), (0.0, 0.0)]
)
def test_what_is_no_finite_number_is_nothing(value: float, shown: float | None) -> None:
    assert number(value) == shown


def test_sprites_hold_patches_left_and_projections_right(folder: Path) -> None:
    record = atlas().layers[2]
    with Image.open(folder / "maps" / "2" / "0.webp") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (3 * 48, 6 * 48, 3)
    assert abs(pixels[48:96, :48] - record.patches[0, 3].astype(int)).mean() < 6
    assert abs(pixels[:48, 144:192] - record.projections[0, 0].astype(int)).mean() < 6


def test_first_layer_tiles_of_few_pixels_lose_nothing(folder: Path) -> None:
    record = atlas().layers[0]
    with Image.open(folder / "maps" / "0" / "1.webp") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels[:49:7, :49:7] == record.patches[1, 0]).all()


def test_layers_are_asked_for_one_after_another(tmp_path: Path) -> None:
    taken: list[str] = []
    done: list[int] = []

    def watched() -> Iterator[LayerFeatures]:
        for record in lazily(atlas().layers, taken):
            done.append(len(list(tmp_path.rglob("data/layer*.js"))))
            yield record

    write_atlas(tmp_path / "a", card(), table(), pictures(), watched())
    assert taken == [record.layer for record in atlas().layers]
    assert done == [0, 1, 2], "when a layer is asked for, those before it are on disk"


def test_a_failure_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[LayerFeatures]:
        yield layer("conv1", 7, 2, 2)
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        write_atlas(tmp_path / "a", card(), table(), pictures(), failing())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="nothing is overwritten"):
        write_atlas(tmp_path, card(), table(), pictures(), iter([]))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_strongest_maps_of_the_first_screen_are_alive() -> None:
    record = layer("conv3", 27, 40, 8)
    found = describe.strongest(record)
    living = [m for m in range(40) if record.active[m] > 0]
    assert found == sorted(living, key=lambda m: (-record.value[m, 0], m))[:12]
    assert 3 not in found


def test_unknown_pictures_have_no_place() -> None:
    known = np.array([2, 5, 9])
    image = np.array([[9, 2, -1], [3, 5, 10]])
    assert describe.places(image, known).tolist() == [[2, 0, -1], [-1, 1, -1]]
    assert describe.places(image, known[:0]).tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize(
    ("given", "count", "side"), [(160, 313, 160), (160, 12384, 62), (96, 10**6, 48), (32, 9, 32)]
)
def test_thumbnails_of_many_pictures_are_smaller(given: int, count: int, side: int) -> None:
    assert thumb_side(given, count) == side


def test_512_maps_take_512_pictures_and_one_script(tmp_path: Path) -> None:
    features = layer("conv4", 7, 512, 16)
    page = write_atlas(tmp_path / "a", card(), table(), pictures(), [features])
    assert len(list((page.parent / "maps" / "0").iterdir())) == 512
    assert (page.parent / "data" / "layer0.js").stat().st_size < 512 * 600


def test_the_size_of_the_network_s_input_is_height_before_width(folder: Path) -> None:
    data = read(folder / "data" / "atlas.js")
    assert isinstance(data, dict)
    assert tuple(data["pictures"]["size"]) == SIZE
    assert tuple(data["occlusion"][0]["size"]) == SIZE
