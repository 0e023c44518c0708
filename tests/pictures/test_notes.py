"""Is what changes in a picture on its way to RGB told, counted and moved when that is asked?"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from convscope.core.errors import DataError, UsageError
from convscope.pictures.decode.decode import NOTES, Decoding, decode
from convscope.pictures.decode.formats import Fault, Limits
from convscope.pictures.framing import Framing
from convscope.pictures.opening import open_pictures
from convscope.pictures.pictures import Pictures, one_picture, some_pictures
from tests.pictures import corpus

DARK = np.linspace(7, 4000, 600).round().astype(np.uint16).reshape(20, 30)
"""As of a camera of 12 bits."""


def seen(data: bytes, **ways: object) -> tuple[np.ndarray, dict[str, str]]:
    notes: dict[str, str] = {}
    way = Decoding(**ways)  # type: ignore[typeddict-item]
    return np.asarray(decode(data, Limits(), notes.__setitem__, way)), notes


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """By arithmetic: low is black, high is white, nearest in between."""
    return np.floor(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255 + 0.5)


def grey_tiff(values: np.ndarray) -> bytes:
    return corpus.saved(Image.fromarray(values), "TIFF")


@pytest.mark.parametrize("make", [corpus.grey16, grey_tiff])
@pytest.mark.parametrize(
    ("asked", "ends"),
    [("auto", (7, 4000)), ("0,4095", (0, 4095)), ((100, 200), (100, 200)), ("full", (0, 65535))],
)
def test_grey_of_16_bits_is_stretched_as_asked(make, asked, ends) -> None:
    pixels, notes = seen(make(DARK), range=asked)
    assert (pixels == stretched(DARK, *ends)[..., None]).all()
    assert ("N118" in notes) == (asked != "full")
    assert ("N117" in notes) == (asked == "full")


def test_the_note_of_a_dark_picture_says_what_to_ask_and_that_works() -> None:
    _, notes = seen(corpus.grey16(DARK))
    assert "16-bit values reach 4,000 of 65,535, nearly black" in notes["N117"]
    asked = notes["N117"].split("--range ")[1].split()[0]
    assert asked == "0,4095"
    pixels, notes = seen(corpus.grey16(DARK), range=asked)
    assert "N117" not in notes
    assert pixels.max() > 240


@pytest.mark.parametrize(("greatest", "dark"), [(16_000, True), (16_383, True), (16_384, False)])
def test_dark_begins_below_a_quarter_of_the_range(greatest, dark) -> None:
    values = np.linspace(0, greatest, 600).astype(np.uint16).reshape(20, 30)
    assert ("N117" in seen(corpus.grey16(values))[1]) == dark


@pytest.mark.parametrize("make", [corpus.colour16, corpus.colour16_tiff])
def test_colour_of_16_bits_is_stretched_by_its_upper_bytes(make) -> None:
    upper = (corpus.colours16(4_000) >> 8) * 257
    pixels, notes = seen(make(4_000), range="0,4095")
    assert (pixels == stretched(upper, 0, 4095)).all()
    assert "upper 8 bits" in notes["N110"]
    assert (seen(make(4_000))[0] == corpus.colours16(4_000) >> 8).all()


def test_float_values_are_read_once_black_and_white_are_told() -> None:
    values = np.linspace(-2.5, 3, 600, dtype=np.float32).reshape(20, 30)
    with pytest.raises(Fault, match=r"--range LOW,HIGH or auto"):
        seen(grey_tiff(values))
    assert (seen(grey_tiff(values), range="auto")[0] == stretched(values, -2.5, 3)[..., None]).all()
    assert (seen(grey_tiff(values), range="0,1")[0] == stretched(values, 0, 1)[..., None]).all()
    values[3, 4] = np.nan
    with pytest.raises(Fault, match="finite"):
        seen(grey_tiff(values), range="auto")


def test_whole_numbers_of_32_bits_are_too() -> None:
    values = (np.arange(600, dtype=np.int32).reshape(20, 30) - 300) * 1000
    found = seen(grey_tiff(values), range="auto")[0]
    assert (found == stretched(values, -300_000, 299_000)[..., None]).all()


@pytest.mark.parametrize("asked", ["auto", "0,10", "-5,-3"])
def test_a_range_leaves_8_bits_alone(asked) -> None:
    pixels, notes = seen(corpus.png(), range=asked)
    assert (pixels == np.asarray(corpus.photo())).all()
    assert notes == {}


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_picture_of_one_value_has_nothing_to_stretch(value) -> None:
    flat = np.full((20, 30), value, np.uint16)
    pixels, notes = seen(corpus.grey16(flat), range="auto")
    assert len(np.unique(pixels)) == 1
    assert "N119" in notes
    assert "N118" not in notes


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_as_pillow_does_when_asked(kind, orientation) -> None:
    data = corpus.turned(kind, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    pixels, notes = seen(data, exif="apply")
    assert (pixels == np.asarray(upright.convert("RGB"))).all()
    assert list(notes) == (["N116"] if orientation > 1 else [])
    pixels, notes = seen(data)
    assert (pixels == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()
    told = "N116" if kind == "TIFF" else "N111"  # Pillow turns TIFF by itself
    assert list(notes) == ([told] if orientation > 1 else [])


def test_transparent_pixels_are_laid_on_what_is_asked_for() -> None:
    data = corpus.clear_red()
    for asked, colour in (
        *(("black", (0, 0, 0)), ("white", (255, 255, 255)), ("grey", (128, 128, 128))),
        *(("9,8,7", (9, 8, 7)), ((1, 2, 3), (1, 2, 3)), ("none", (255, 0, 0))),
    ):
        pixels, notes = seen(data, background=asked)
        assert (pixels[:, :20] == colour).all()
        assert (pixels[:, 20:] == (0, 200, 0)).all()
        assert list(notes) == ["N112"]
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (seen(data, background="none")[0] == plain).all()


def test_a_wholly_transparent_picture_says_that_nothing_is_left() -> None:
    pixels, notes = seen(corpus.wholly_clear())
    assert (pixels == 0).all()
    assert "wholly transparent, nothing is left but black" in notes["N114"]
    pixels, notes = seen(corpus.wholly_clear(), background="none")
    assert (pixels == np.asarray(corpus.photo())).all()
    assert "colours beneath are shown" in notes["N112"]


@pytest.mark.parametrize(
    "ways",
    [
        *({"range": told} for told in ("", "x", "1", "5,5", "9,3", "nan,1", "0,inf", "1,2,3")),
        *({"range": told} for told in (None, 3, (1,), ["a", "b"], "0;9")),
        *({"exif": told} for told in ("yes", None, True)),
        *({"background": told} for told in ("pink", "1,2", "1,2,256", (0.5, 1, 2), None, -1)),
    ],
)
def test_an_unknown_way_is_refused_before_anything_is_read(ways, herd) -> None:
    with pytest.raises(UsageError) as caught:
        open_pictures(str(herd), **ways)
    assert caught.value.code == "U480"
    with pytest.raises(UsageError):
        one_picture(herd / "00.png", **ways)


def test_the_way_of_reading_belongs_to_what_the_pictures_are(herd) -> None:
    plain = Pictures(herd)
    assert plain.sha256 == Pictures(herd, range="full", exif="ignore", background="black").sha256
    others = [{"range": "auto"}, {"range": "0,9"}, {"exif": "apply"}, {"background": "white"}]
    hashes = {Pictures(herd, **ways).sha256 for ways in others}
    assert len(hashes | {plain.sha256}) == 5


def test_what_the_network_sees_may_be_flat_where_the_picture_is_not(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:3] = 200
    Image.fromarray(pixels).save(tmp_path / "edge.png")
    with Pictures(tmp_path) as folder:
        list(folder.read(Framing(40, (20, 20))))
        assert folder.noted("N119") == ["edge.png"]
        assert any("in the part that is read" in one.text for one in folder.changes)
    with Pictures(tmp_path) as folder:
        list(folder.read())
        assert folder.noted("N119") == []


def test_notes_are_counted_in_one_line_the_worst_first(tmp_path: Path) -> None:
    for name, data in (
        *(("a.png", corpus.wholly_clear()), ("b.png", corpus.grey16(DARK))),
        *(("c.png", corpus.grey16(DARK // 2)), ("=d.jpg", corpus.turned(orientation=6))),
        *(("e.jpg", corpus.turned(orientation=3)), ("f.jpg", corpus.jpeg())),
    ):
        (tmp_path / name).write_bytes(data)
    with Pictures(tmp_path, workers=2) as folder:
        assert folder.notes_line() == ""
        pictures = {picture.name: picture for picture in folder.read()}
        line = folder.notes_line()
        folder.write_notes(tmp_path / "notes.csv")
    assert line.startswith("1 × wholly transparent, nothing is left but black: --background none")
    parts = line.split("; ")
    assert parts[1] == f"2 × {NOTES['N117']} (N117)"
    assert parts[2] == f"2 × {NOTES['N111']} (N111)"
    assert parts[3:] == ["2 × 16-bit grey, divided by 257 (N110)"]
    assert pictures["f.jpg"].notes == ()
    assert "EXIF orientation 3 not applied" in pictures["e.jpg"].notes[0]
    rows = list(csv.DictReader((tmp_path / "notes.csv").read_text().splitlines()))
    assert [(row["name"], row["code"]) for row in rows if row["code"] == "N111"] == [
        ("'=d.jpg", "N111"),
        ("e.jpg", "N111"),
    ]
    assert rows[0]["path"] == "%3Dd.jpg"
    assert folder.notes == {"N114": 1, "N117": 2, "N110": 2, "N111": 2}


def test_single_files_and_parts_of_folders_bring_their_notes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(corpus.grey16(DARK))
    (tmp_path / "b.png").write_bytes(corpus.png())
    assert "reach 4,000" in one_picture(tmp_path / "a.png").notes[0]
    asked = one_picture(tmp_path / "a.png", range="auto")
    assert (asked.pixels == stretched(DARK, 7, 4000)[..., None]).all()
    with some_pictures([tmp_path / "a.png"], range="auto") as one:
        assert (one.one(0).pixels == asked.pixels).all()
    with Pictures(tmp_path, range="auto") as folder:
        part = folder.subset([0])
        assert (part.one(0).pixels == asked.pixels).all()
        assert part.notes == {"N118": 1}
        assert folder.notes == {}


def test_float_pictures_are_used_once_a_range_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(corpus.float_tiff())
    with pytest.raises(DataError, match=r"--range LOW,HIGH") as caught:
        one_picture(tmp_path / "a.tif")
    assert caught.value.code == "D111"
    assert one_picture(tmp_path / "a.tif", range="0,1").pixels.max() == 255
