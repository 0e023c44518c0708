"""Are the flowers unpacked whole, with nothing else, and divided for good?"""

from __future__ import annotations

import hashlib
import tarfile

import pytest

from convscope.core.errors import DataError, EnvironmentFault, OutputError
from convscope.pictures import download as unpacking
from convscope.pictures.builtin import ARCHIVE, download
from convscope.pictures.download import Source, unpack
from convscope.pictures.opening import open_pictures
from convscope.pictures.pictures import Pictures, split, validation, write_class_indices
from tests.pictures import corpus
from tests.pictures.bad_server import DATA, NAMES, special, tgz


def test_flowers_are_downloaded_unpacked_and_found_again(server, tmp_path) -> None:
    with pytest.raises(DataError, match=r"Next: convscope flowers --out .*flower_photos"):
        open_pictures("flowers", cache=tmp_path)
    place = download(tmp_path / "flower_photos", source=server.source())
    assert [path.name for path in tmp_path.iterdir()] == ["flower_photos"]
    assert (place / "LICENSE.txt").read_bytes() == b"CC-BY"
    folder = open_pictures("flowers", cache=tmp_path)
    assert folder.classes == ("daisy", "roses")
    assert len(folder) == len(NAMES)
    with pytest.raises(OutputError) as caught:
        download(place, source=server.source())
    assert caught.value.code == "O501"


def test_an_archive_that_lies_there_is_used_without_a_network(tmp_path) -> None:
    (tmp_path / "here.tgz").write_bytes(DATA)
    source = Source("http://127.0.0.1:1/none", len(DATA), hashlib.sha256(DATA).hexdigest())
    assert len(Pictures(download(tmp_path / "here", source=source))) == len(NAMES)
    (tmp_path / "other.tgz").write_bytes(DATA[:-9])
    with pytest.raises(EnvironmentFault, match="wrong content"):
        download(tmp_path / "other", source=source)


def test_the_flowers_are_the_published_ones() -> None:
    assert ARCHIVE.size == 228_813_984
    assert len(ARCHIVE.sha256) == 64


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("/etc/evil", b"x"),
        ("flower_photos/../../evil", b"x"),
        ("..\\evil", b"x"),
        ("flower_photos/link", special("flower_photos/link", tarfile.SYMTYPE, "/etc/passwd")),
        ("flower_photos/hard", special("flower_photos/hard", tarfile.LNKTYPE, "/etc/passwd")),
        ("flower_photos/pipe", special("flower_photos/pipe", tarfile.FIFOTYPE)),
        ("flower_photos/tty", special("flower_photos/tty", tarfile.CHRTYPE)),
    ],
)
def test_an_archive_that_reaches_out_is_not_unpacked_at_all(name, content, tmp_path) -> None:
    (tmp_path / "a.tgz").write_bytes(tgz({"flower_photos/fine.jpg": b"x", name: content}))
    with pytest.raises(DataError) as caught:
        unpack(tmp_path / "a.tgz", tmp_path / "out")
    assert caught.value.code == "D170"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_an_archive_that_swells_or_is_damaged_is_not_unpacked(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.tgz").write_bytes(tgz({"top/zeros": bytes(100_000)}))
    for setting, value in (("MOST_BYTES", 50_000), ("MOST_FILES", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(unpacking, setting, value)
            with pytest.raises(DataError) as caught:
                unpack(tmp_path / "a.tgz", tmp_path / "out")
        assert caught.value.code == "D171"
    for damaged in (DATA[: len(DATA) // 2], corpus.flipped(DATA, 0.5), b"no archive", b""):
        (tmp_path / "a.tgz").write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            unpack(tmp_path / "a.tgz", tmp_path / "out")
        assert caught.value.code == "D172"
    assert not (tmp_path / "out").exists()


def test_the_split_is_decided_by_each_name_alone() -> None:
    # By hand: sha256("12240303_80d87f77a3_n.jpg") begins 46f3…; its first 8 bytes mod 10.
    name = "12240303_80d87f77a3_n.jpg"
    first = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
    assert validation(name) == validation(f"roses/{name}") == (first % 10 == 0)
    assert validation(f"a/b/{name}".encode()) == validation(name)
    held = sum(validation(f"{n}.jpg") for n in range(20_000))
    assert abs(held - 2_000) < 150  # 3.5 standard deviations


def test_the_two_parts_are_everything_once_and_keep_the_classes(tmp_path) -> None:
    (tmp_path / "a.tgz").write_bytes(DATA)
    unpack(tmp_path / "a.tgz", tmp_path / "photos")
    folder = Pictures(tmp_path / "photos")
    training, held = split(folder)
    assert sorted(training.names + held.names) == list(folder.names)
    assert not set(training.names) & set(held.names)
    assert training.classes == held.classes == folder.classes
    assert all(validation(name) for name in held.names)
    with pytest.raises(DataError) as caught:
        split(held)
    assert caught.value.code == "D119"


def test_class_indices_are_written_as_the_tutorials_do(tmp_path) -> None:
    write_class_indices(tmp_path / "class_indices.json", ("daisy", "rosé"))
    expected = '{\n    "0": "daisy",\n    "1": "ros\\u00e9"\n}'
    assert (tmp_path / "class_indices.json").read_text() == expected
