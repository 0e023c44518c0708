"""Are pictures in shards those of a folder, and is what is wrong with a shard told?"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.core.errors import ConvscopeError, DataError, UsageError
from convscope.pictures.decode.formats import Limits
from convscope.pictures.framing import Framing
from convscope.pictures.opening import open_all, open_pictures
from convscope.pictures.pictures import Pictures, validation
from convscope.pictures.shards import Shards, expanded, is_shards

Files = dict[str, bytes]


def png(number: int) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (15, 20 + number, 3))
    Image.fromarray(noise.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def shard(path: Path, files: Files, kind: bytes = tarfile.REGTYPE, mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = len(data), kind
            archive.addfile(entry, io.BytesIO(data))
    return path


def samples(first: int, last: int) -> Files:
    files: Files = {}
    for number in range(first, last):
        files[f"{number:04}.png"] = png(number)
        files[f"{number:04}.cls"] = str(number % 3).encode()
    return files


@pytest.fixture
def set_of_two(tmp_path: Path) -> str:
    shard(tmp_path / "val-00.tar", samples(0, 4))
    shard(tmp_path / "val-01.tar", samples(4, 7))
    return str(tmp_path / "val-{00..01}.tar")


def test_pictures_of_shards_are_those_of_a_folder(set_of_two: str, tmp_path: Path) -> None:
    for number in range(7):
        place = tmp_path / "folder" / str(number % 3) / f"{number:04}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(number))
    framing = Framing(14, (11, 13))
    with open_pictures(set_of_two) as ours, Pictures(tmp_path / "folder", workers=2) as theirs:
        assert ours.names[3:5] == ("val-00.tar/0003.png", "val-01.tar/0004.png")
        assert ours.classes == theirs.classes == ("0", "1", "2")
        assert ours.labels == (0, 1, 2, 0, 1, 2, 0)
        assert ours.numbered
        seen = {picture.name[-8:]: picture for picture in ours.read(framing, workers=2)}
        for picture in theirs.read(framing):
            same = seen[picture.name[-8:]]
            assert np.array_equal(same.pixels, picture.pixels)
            assert same.label == picture.label
            assert ours.digest(same.number) == theirs.digest(picture.number)
        assert len(seen) == 7
        assert ours.one(6).pixels.shape == (15, 26, 3)
        ours.check_bad()


def test_parts_copies_and_splits_of_shards_are_those_of_folders(set_of_two: str) -> None:
    with Shards(set_of_two) as whole:
        part = whole.subset([5, 1])
        assert part.names == ("val-01.tar/0005.png", "val-00.tar/0001.png")
        assert part.labels == (2, 1)
        assert [picture.pixels.shape[1] for picture in part.read()] == [25, 21]
        copied = pickle.loads(pickle.dumps(part))
        assert [picture.pixels.shape[1] for picture in copied.read()] == [25, 21]
        copied.close()
        assert [validation(path) for path in part.paths] == [
            validation("0005.png"),
            validation("0001.png"),
        ]


def test_other_labels_are_other_pictures(tmp_path: Path) -> None:
    found = []
    for labels in ((b"0", b"1"), (b"1", b"0"), (b"0", b"1")):
        files = {
            f"{n}{end}": data
            for n in (0, 1)
            for end, data in ((".png", png(n)), (".cls", labels[n]))
        }
        found.append(Shards(shard(tmp_path / "a.tar", files)).sha256)
        (tmp_path / "a.tar").unlink()
    assert found[0] == found[2] != found[1]


def test_labels_come_from_cls_or_json_and_are_missed_otherwise(tmp_path: Path) -> None:
    files: Files = {}
    sides = {
        "a.cls": b" 7\n",
        "b.json": json.dumps({"label": 5, "width": 9}).encode(),
        "c.json": b'{"cls": 2}',
        "d.cls": b"4",
        "d.json": b'{"label": 9}',
        "e.cls": b"cat",
        "f.json": b'{"label": true}',
        "g.json": b"[" * 100_000,
        "h.cls": b"-1",
        "i.txt": b"3",
        "j.cls": b"9" * 12,
        "k.json": b'{"label": 12345678901234567890}',
    }
    for name, data in sides.items():
        files[f"in/{name[0]}.PNG"] = png(1)
        files[f"in/{name}"] = data
    with Shards(shard(tmp_path / "x.tar", files)) as found:
        assert found.labels == (7, 5, 2, 4, *[None] * 7)
        assert found.classes == tuple("01234567")
        assert found.names[0] == "x.tar/in/a.PNG"
    assert found.remarks == (
        "7 pictures without a class: x.tar/in/e.PNG (no class index in its .cls), "
        "x.tar/in/f.PNG (no class index in its .json), "
        "x.tar/in/g.PNG (no class index in its .json), …",
        "1 file ignored: of no picture, or a second of a sample",
    )


def test_a_sample_has_one_picture(tmp_path: Path) -> None:
    files = {"a.jpg": png(3), "a.cls": b"0", "a.mask.png": png(4), "b.c.png": png(5), "b.cls": b"1"}
    with Shards(shard(tmp_path / "x.tar", files)) as found:
        assert found.names == ("x.tar/a.jpg", "x.tar/b.c.png")
        assert found.labels == (0, 1)
        assert [picture.pixels.shape[1] for picture in found.read()] == [23, 25]
        assert found.notes == {"N102": 1}


def test_members_that_may_do_harm_are_left_out_and_told(tmp_path: Path) -> None:
    bad = {"../up.png": png(0), "/etc/x.png": png(0), "a/../../b.png": png(0), "a\\b.png": png(0)}
    place = shard(tmp_path / "x.tar", {"good.png": png(1), **bad})
    shard(place, {"link.png": b""}, tarfile.SYMTYPE, "a")
    shard(place, {"pipe.png": b""}, tarfile.FIFOTYPE, "a")
    shard(place, {"good.png": png(2)}, mode="a")
    with Shards(place) as found:
        assert found.names == ("x.tar/good.png",)
        assert next(iter(found.read())).pixels.shape == (15, 21, 3)
        assert [entry.code for entry in found.skipped] == ["D207"] * 7
        assert found.skipped[-1].text == "a second member of this name"
        assert "1 of 1 pictures used; 7 skipped (7 D207 unsafe member)" in found.summary()


@pytest.mark.parametrize("keep", [0.35, 0.6, 0.75])
def test_a_truncated_shard_is_told_and_what_is_whole_of_it_can_be_used(
    tmp_path: Path, keep: float
) -> None:
    place = shard(tmp_path / "x.tar", samples(0, 9))
    place.write_bytes(place.read_bytes()[: int(place.stat().st_size * keep)])
    with Shards(place) as found:
        assert [entry.code for entry in found.skipped] == ["D206"]
        used = list(found.read())
        assert len(used) in (len(found), len(found) - 1)
        assert 2 <= len(used) < 9
        for picture in used:
            assert picture.pixels.shape[1] == 20 + int(picture.name[-8:-4])
        assert {entry.code for entry in found.skipped[1:]} <= {"D104"}
        with pytest.raises(DataError) as fault:
            found.check_bad()
        assert fault.value.code == "D118"
        assert "damaged archive" in str(fault.value)
        found.max_bad = 1
        found.check_bad()


def test_a_lost_end_mark_a_damaged_header_and_data_after_the_end_are_told(tmp_path: Path) -> None:
    whole = shard(tmp_path / "x.tar", samples(0, 5)).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as archive:
        members = archive.getmembers()
    last = members[-1]
    cut = whole[: last.offset_data + 512]
    third = members[4].offset
    damaged = whole[: third + 10] + b"\xff" + whole[third + 11 :]
    told = {}
    for name, data in {"cut": cut, "damaged": damaged, "two": whole + whole}.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
        with Shards(tmp_path / f"{name}.tar") as found:
            told[name] = (len(found), found.skipped[0].code, found.skipped[0].text)
    assert told["cut"] == (5, "D206", "it ends without an end mark, so it may be truncated")
    assert told["damaged"][:2] == (2, "D206")
    assert f"damaged header at byte {third:,}" in told["damaged"][2]
    assert told["two"] == (5, "D206", "more data follows its end mark")


def header(name: str, size: int, kind: bytes) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def test_headers_that_lie_neither_hang_nor_fill_the_memory(tmp_path: Path) -> None:
    good = header("a.png", len(png(1)), tarfile.REGTYPE) + png(1)
    good += b"\0" * (-len(good) % 512)
    records = b"17 size=-1000000\n"
    back = header("x", len(records), b"x") + records.ljust(512, b"\0")
    cases = {
        "long": header("././@LongLink", 1 << 40, tarfile.GNUTYPE_LONGNAME),
        "records": header("y", 1 << 33, b"x"),
        "minus": header("z.png", -512, tarfile.REGTYPE),
        "circle": back + header("z.png", 0, tarfile.REGTYPE),
        "deep": header("x", 0, b"x") * 3000,
        "huge": header("big.png", 1 << 50, tarfile.REGTYPE),
    }
    for name, data in cases.items():
        place = tmp_path / f"{name}.tar"
        place.write_bytes(good + data + b"\0" * 1024)
        with Shards(place, limits=Limits(max_bytes=1 << 30)) as found:
            assert found.skipped[0].code == "D206", name
            assert [picture.name for picture in found.read()] == [f"{name}.tar/a.png"]


def test_large_members_are_left_out_by_the_limits_of_files(tmp_path: Path) -> None:
    files = {"big.png": bytes(5000), "small.png": png(0)}
    with Shards(shard(tmp_path / "x.tar", files), limits=Limits(max_bytes=4000)) as found:
        assert [picture.name for picture in found.read()] == ["x.tar/small.png"]
        assert [entry.code for entry in found.skipped] == ["D110"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b\x08\0" + bytes(600), "compressed (gzip)"),
        (b"<!DOCTYPE html>" + b"x" * 1000, "is no tar archive"),
        (bytes(10240), "holds no pictures"),
        (None, "no such file"),
    ],
)
def test_what_is_no_shard_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    place = tmp_path / "x.tar"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(ConvscopeError) as fault:
        open_pictures(str(place))
    assert said in str(fault.value)
    assert fault.value.code in ("D205", "D100")


def test_a_shard_of_the_range_that_is_not_there_ends_it(set_of_two: str) -> None:
    with pytest.raises(DataError, match=r"val-02\.tar: cannot be read \(no such file"):
        open_pictures(set_of_two.replace("..01", "..02"))


def test_ranges_are_written_out_with_all_their_digits() -> None:
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("{1..2}/b-{0..1}.tar") == [
        *("1/b-0.tar", "1/b-1.tar"),
        *("2/b-0.tar", "2/b-1.tar"),
    ]
    assert expanded("plain.tar") == ["plain.tar"]
    for wrong in (
        *("a-{3..1}.tar", "a-{0..999999999999}.tar", "a-{x,y}.tar", "{0..1.tar"),
        "pipe:cat a.tar",
    ):
        with pytest.raises(UsageError) as fault:
            expanded(wrong)
        assert fault.value.code == "U405", wrong


def test_a_folder_whose_name_ends_like_a_shard_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "odd.tar").mkdir()
    (tmp_path / "odd.tar" / "a.png").write_bytes(png(0))
    assert not is_shards(str(tmp_path / "odd.tar"))
    shard(tmp_path / "b.tar", samples(0, 2))
    lone = tmp_path / "odd.tar" / "a.png"
    found = open_all([str(tmp_path / "odd.tar"), str(tmp_path / "b.tar"), str(lone)])
    assert [len(folder) for folder in found] == [1, 2, 1]
