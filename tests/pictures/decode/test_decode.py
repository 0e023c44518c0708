"""What becomes of each kind of awkward file?"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.core.errors import DataError, UsageError
from convscope.core.text import one_line
from convscope.pictures.decode.decode import decode
from convscope.pictures.decode.formats import Fault, Limits
from convscope.pictures.pictures import Picture, Pictures, one_picture
from tests.pictures import corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pictures]:
    """The whole corpus, not read yet."""
    root = tmp_path_factory.mktemp("corpus")
    corpus.write(root)
    with Pictures(root, workers=2) as found:
        yield found


@pytest.fixture(scope="module")
def pictures(folder: Pictures) -> dict[str, Picture]:
    return {picture.name: picture for picture in folder.read()}


def test_names_are_those_of_the_corpus_on_one_line(pictures) -> None:
    assert "line\\nbreak.jpg" in pictures


def reference(name: str) -> Image.Image:
    return Image.open(io.BytesIO(corpus.USABLE[name][0]())).convert("RGB")


@pytest.mark.parametrize("name", corpus.FAULTY)
def test_a_faulty_file_is_left_out_under_its_code(name, folder, pictures) -> None:
    _, code, text = corpus.FAULTY[name]
    [entry] = [entry for entry in folder.skipped if entry.name == name]
    assert (entry.code, name in pictures) == (code, False)
    assert text in entry.text
    assert len(entry.text) < 160


@pytest.mark.parametrize("name", corpus.SPECIAL)
def test_what_is_no_regular_file_is_never_opened(name, folder, pictures) -> None:
    code, text = corpus.SPECIAL[name]
    [entry] = [entry for entry in folder.skipped if entry.name == name]
    assert entry.code == code
    assert text in entry.text


@pytest.mark.parametrize("name", corpus.USABLE)
def test_an_odd_but_usable_file_is_used_and_what_was_adapted_is_noted(
    name, folder, pictures
) -> None:
    name, expected = one_line(name), corpus.USABLE[name][1].split()
    assert pictures[name].pixels.ndim == 3
    assert pictures[name].pixels.dtype == np.uint8
    assert pictures[name].pixels.shape[2] == 3
    assert sorted(code for code in folder.notes if name in folder.noted(code)) == expected
    assert [note.rpartition(" (")[2] for note in sorted(pictures[name].notes, key=_code)] == [
        f"{code})" for code in expected
    ]


def _code(note: str) -> str:
    return note.rpartition(" (")[2]


def test_every_file_is_either_used_or_recorded(folder, pictures) -> None:
    skipped = {entry.name for entry in folder.skipped}
    assert skipped | set(pictures) == set(folder.names)
    assert skipped == set(corpus.FAULTY) | set(corpus.SPECIAL)
    assert "bad\\xff\\xfe.jpg" in pictures


@pytest.mark.parametrize("name", ["no-end.jpg", "half-an-end.jpg", "no-end-progressive.jpg"])
def test_a_jpeg_without_its_end_mark_has_the_pixels_of_the_whole_one(name, pictures) -> None:
    whole = corpus.PROGRESSIVE if "progressive" in name else corpus.jpeg()
    expected = np.asarray(Image.open(io.BytesIO(whole)))
    assert (pictures[name].pixels == expected).all()


def test_any_cut_of_a_jpeg_gives_its_own_pixels_or_a_fault() -> None:
    for progressive in (False, True):
        data = corpus.jpeg(progressive=progressive)
        expected = np.asarray(Image.open(io.BytesIO(data)))
        usable, codes = 0, set()
        for length in [*range(2, len(data), 97), *range(len(data) - 12, len(data))]:
            for ending in (b"",) if progressive else (b"", b"\xff\xd9"):
                try:
                    picture = decode(data[:length] + ending, Limits())
                except Fault as fault:
                    codes.add(fault.code)
                else:
                    usable += 1
                    off = np.abs(np.asarray(picture).astype(int) - expected)
                    off[-16:, -16:] = 0  # one half block is not noticed
                    assert off.max() <= 2
        assert codes <= {"D101", "D104"}
        assert 2 <= usable <= 20


def test_a_truncated_jpeg_says_how_far_it_goes() -> None:
    data = corpus.saved(corpus.photo(640, 480), "JPEG", quality=90)
    shares = []
    for part in (0.3, 0.5, 0.8):
        with pytest.raises(Fault, match="of the scan") as caught:
            decode(corpus.cut(data, part), Limits())
        shares.append(float(caught.value.text.split("ends at ")[1].split(" %")[0]) / 100)
    assert np.abs(np.array(shares) - (0.3, 0.5, 0.8)).max() < 0.08


def test_one_wrong_byte_in_a_png_is_never_wrong_pixels() -> None:
    data = corpus.png()
    expected = np.asarray(Image.open(io.BytesIO(data)))
    faults = 0
    for place in range(0, len(data), 23):
        damaged = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        try:
            pixels = np.asarray(decode(damaged, Limits()))
        except Fault:
            faults += 1
        else:
            assert (pixels == expected).all()
    assert faults > 0.9 * len(data) / 23


def test_whatever_is_done_to_a_file_it_is_a_picture_or_a_fault() -> None:
    chance = np.random.default_rng(1)
    kinds = {
        "JPEG": {},
        "PNG": {},
        "WEBP": {},
        "BMP": {},
        "GIF": {},
        "TIFF": {"compression": "tiff_lzw"},
    }
    seen = set()
    for kind, options in kinds.items():
        whole = corpus.saved(corpus.photo(40, 30), kind, **options)
        for _ in range(60):
            data = bytearray(whole)
            for place in chance.integers(0, len(data), 1 + chance.integers(8)):
                data[place] = chance.integers(256)
            try:
                assert decode(bytes(data), Limits()).mode == "RGB"
            except Fault as fault:
                seen.add(fault.code)
    assert {"D105", "D101"} <= seen <= {f"D10{n}" for n in range(1, 8)}


def test_sixteen_bit_grey_keeps_its_shades(pictures) -> None:
    expected = np.round(corpus.GREY16 / 257)
    for name in ("grey16.png", "grey16.tif"):
        assert (pictures[name].pixels == expected[..., None]).all()
    assert len(np.unique(expected)) > 200


def test_invisible_pixels_come_out_black(pictures) -> None:
    pixels = pictures["clear-red.png"].pixels
    assert (pixels[:, :20] == 0).all()
    assert (pixels[:, 20:] == (0, 200, 0)).all()
    pixels = pictures["palette-hole.png"].pixels
    assert (pixels[:, :15] == 0).all()
    assert (pixels[:, 15:] == (0, 0, 255)).all()


def test_half_transparent_pixels_are_half_as_bright() -> None:
    colours = np.arange(20 * 20 * 4).reshape(20, 20, 4) % 256
    data = corpus.saved(Image.fromarray(colours.astype(np.uint8)), "PNG")
    expected = np.round(colours[..., :3] * (colours[..., 3:] / 255))
    assert np.abs(np.asarray(decode(data, Limits())) - expected).max() <= 1


@pytest.mark.parametrize("name", ["animated.gif", "animated.png", "animated.webp"])
def test_of_an_animation_the_first_frame_is_taken(name, pictures) -> None:
    assert np.abs(pictures[name].pixels.astype(int) - (250, 0, 0)).max() < 12


def test_exif_turns_nothing(pictures) -> None:
    assert pictures["turned.jpg"].pixels.shape == (60, 90, 3)
    assert (pictures["turned.jpg"].pixels == pictures["plain.jpg"].pixels).all()


@pytest.mark.parametrize(
    "name", ["cmyk.jpg", "grey.jpg", "one-bit.png", "palette.png", "opaque.png"]
)
def test_other_colour_modes_become_pillows_rgb(name, pictures) -> None:
    assert (pictures[name].pixels == np.asarray(reference(name))).all()


def test_the_table_of_skipped_pictures_is_exact_and_printable(folder, pictures, tmp_path) -> None:
    folder.write_skipped(tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(folder.skipped)
    by_name = {row["name"]: row for row in rows}
    assert by_name["page.jpg"]["size"] == str(len(corpus.HTML))
    assert by_name["words.png"]["text"] == 'not an image (starts with "just words\\n")'
    assert len(by_name["cut50.jpg"]["sha256"]) == 64
    assert by_name["pipe.jpg"]["sha256"] == ""


def test_the_summary_counts_by_code(folder, pictures) -> None:
    used, all_ = len(pictures), len(folder)
    cut = sum(code == "D104" for _, code, _ in corpus.FAULTY.values())
    assert folder.summary().startswith(
        f"{used} of {all_} pictures used; {all_ - used} skipped ({cut} D104 truncated, "
    )


def test_too_many_unusable_pictures_are_an_error_that_names_three(folder, pictures) -> None:
    more = len(folder.skipped) - 3
    told = rf"used.*: 100Mpx\.png \(10000x.*, 1x1.png \(.*, circle.jpg \(.* and {more} more; all"
    with pytest.raises(DataError, match=told) as caught:
        folder.check_bad()
    assert caught.value.code == "D118"


def test_identical_files_are_known_by_content(folder, pictures) -> None:
    lowest = folder.names.index("%2e%2e.jpg")
    same = {folder.names[n] for n, first in folder.duplicates().items() if first == lowest}
    assert {"plain.jpg", "link.jpg", "-rf.jpg", "no-ending"} <= same
    assert "turned.jpg" not in same


def test_a_single_file_is_decoded_the_same_way(folder, tmp_path: Path) -> None:
    picture = one_picture(folder.root / "plain.jpg")
    assert (picture.number, picture.name, picture.label) == (0, "plain.jpg", None)
    assert (picture.pixels == np.asarray(reference("plain.jpg"))).all()
    with pytest.raises(DataError, match=r"page\.jpg: not an image") as caught:
        one_picture(folder.root / "page.jpg")
    assert caught.value.code == "D101"
    gone = tmp_path / "none.jpg"
    with pytest.raises(DataError, match=f"^{re.escape(str(gone))}: there is no such file"):
        one_picture(gone)
    (tmp_path / "link.jpg").symlink_to(gone)
    with pytest.raises(DataError, match="leads nowhere: a dangling link"):
        one_picture(tmp_path / "link.jpg")
    with pytest.raises(UsageError, match="empty name"):
        one_picture("")


def test_a_file_that_is_too_large_is_not_read(folder) -> None:
    with pytest.raises(DataError, match="exceeds 0 MiB") as caught:
        one_picture(folder.root / "plain.jpg", limits=Limits(max_bytes=100))
    assert caught.value.code == "D110"
