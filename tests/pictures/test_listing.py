"""Which files are a folder's pictures, whatever else lies among them?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convscope.core.errors import DataError, EnvironmentFault
from convscope.pictures import listing
from convscope.pictures.pictures import Pictures
from tests.pictures import corpus

PICTURE = corpus.flat_png(20, 10)


def plant(root: Path, *names: str, content: bytes = PICTURE) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_what_systems_leave_behind_is_neither_picture_nor_class(tmp_path) -> None:
    plant(tmp_path, "b/1.png", "a/2.png")
    plant(tmp_path, "a/._2.png", "a/.DS_Store", "a/Thumbs.db", "__MACOSX/a/2.png", ".git/x.png")
    plant(tmp_path, "a/@eaDir/2.png", "lost+found/3.png", "b/.ipynb_checkpoints/1.png")
    folder = Pictures(tmp_path)
    assert folder.names == ("a/2.png", "b/1.png")
    assert folder.classes == ("a", "b")
    assert folder.remarks == ("8 hidden or system items ignored",)


def test_content_decides_where_the_name_does_not(tmp_path) -> None:
    plant(tmp_path, "plain", "odd.picture", "UPPER.PNG", "Pic.JfIf")
    plant(tmp_path, "new.avif", content=b"\0\0\0\x1cftypavif\0\0\0\0")
    plant(tmp_path, "boxes.json", "LICENSE.txt", "empty", content=b"")
    plant(tmp_path, "paper.pdf", content=b"%PDF-1.7")
    os.mkfifo(tmp_path / "pipe")
    folder = Pictures(tmp_path)
    assert folder.names == ("Pic.JfIf", "UPPER.PNG", "new.avif", "odd.picture", "plain")
    assert folder.remarks == ("5 files ignored: no picture by name or content",)
    assert folder.classes == ()
    assert set(folder.labels) == {None}


def test_an_empty_class_keeps_its_place(tmp_path) -> None:
    plant(tmp_path, "a/1.png", "c/2.png")
    (tmp_path / "b").mkdir()
    folder = Pictures(tmp_path)
    assert folder.classes == ("a", "b", "c")
    assert folder.labels == (0, 2)
    assert "class b has no pictures" in folder.remarks


def test_classes_are_in_byte_order_and_odd_names_are_remarked_on(tmp_path) -> None:
    names = ["10", "9", "B", "a", "a ", "b", "É"]
    plant(tmp_path, *(f"{name}/x.png" for name in names))
    folder = Pictures(tmp_path)
    assert folder.classes == tuple(names)
    remarks = " | ".join(folder.remarks)
    assert "byte order, not counting: 10, 9, B" in remarks
    assert "2 class names differ only in case, space or form: a" in remarks
    assert "2 class names differ only in case, space or form: b" in remarks


def test_pictures_beside_class_folders_have_no_class(tmp_path) -> None:
    folder = Pictures(plant(tmp_path, "a/1.png", "m.png", "z/2.png"))
    assert folder.labels == (0, None, 1)
    assert folder.remarks == ("without a class, beside the class folders: 1 picture",)


def test_a_folder_of_splits_is_remarked_on(tmp_path) -> None:
    folder = Pictures(plant(tmp_path, "train/cat/1.png", "val/cat/2.png"))
    assert folder.remarks == ("the classes are train, val: is one of these the folder meant?",)


def test_links_to_pictures_are_followed_and_loops_are_named(tmp_path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    plant(root, "a/1.png", "b/2.png")
    plant(outside, "deep/3.png")
    (root / "a" / "loop").symlink_to("..")
    (root / "a" / "again").symlink_to("../b")
    (root / "c").symlink_to(outside)
    (root / "d").symlink_to(outside)
    (outside / "deep" / "round").symlink_to(outside)
    (root / "a" / "link.png").symlink_to(outside / "deep" / "3.png")
    folder = Pictures(root)
    assert folder.names == ("a/1.png", "a/link.png", "b/2.png", "c/deep/3.png")
    assert folder.classes == ("a", "b", "c", "d")
    assert {entry.name: entry.code for entry in folder.skipped} == dict.fromkeys(
        ["a/loop", "a/again", "c/deep/round", "d"], "D120"
    )
    assert all(entry.number == -1 for entry in folder.skipped)
    folder.check_bad()


def test_an_unreadable_folder_is_named_and_more_than_may_be_missing(tmp_path, monkeypatch) -> None:
    plant(tmp_path, "a/1.png", "b/2.png")
    honest = os.scandir

    def guarded(path: bytes) -> object:
        if path.endswith(b"/b"):
            raise PermissionError(13, "Permission denied")
        return honest(path)

    monkeypatch.setattr(listing.os, "scandir", guarded)
    folder = Pictures(tmp_path)
    assert folder.classes == ("a", "b")
    [entry] = folder.skipped
    assert (entry.name, entry.code) == ("b", "D122")
    with pytest.raises(DataError, match="permission denied") as caught:
        folder.check_bad()
    assert caught.value.exit_status == 3


def test_a_failing_disk_is_not_an_empty_folder(tmp_path, monkeypatch) -> None:
    def failing(path: bytes) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(listing.os, "scandir", failing)
    with pytest.raises(EnvironmentFault) as caught:
        Pictures(plant(tmp_path, "a.png"))
    assert caught.value.code == "R605"


@pytest.mark.parametrize(
    ("name", "text"),
    [("none", "does not exist"), ("file", "is a file"), ("bare", "no pictures; 1 file ignored")],
)
def test_a_folder_without_pictures_is_an_error_that_says_what_is_there(
    name, text, tmp_path
) -> None:
    plant(tmp_path, "file")
    plant(tmp_path, "bare/notes.txt", content=b"")
    with pytest.raises(DataError, match=text) as caught:
        Pictures(tmp_path / name)
    assert caught.value.code == "D100"


def test_undecodable_names_become_valid_text_and_keep_their_bytes(tmp_path) -> None:
    plant(tmp_path, os.fsdecode(b"\xffclass/bad\xfe.png"))
    with Pictures(tmp_path) as folder:
        assert folder.names == ("\\xffclass/bad\\xfe.png",)
        assert folder.paths == (bytes(tmp_path) + b"/\xffclass/bad\xfe.png",)
        assert folder.classes == ("\\xffclass",)
        assert folder.one(0).pixels.shape == (10, 20, 3)
    "".join(folder.names).encode("utf-8")


def test_the_manifests_hash_moves_with_names_sizes_and_classes_only(tmp_path) -> None:
    first = Pictures(plant(tmp_path / "1", "a/1.png", "b/2.png")).sha256
    assert Pictures(plant(tmp_path / "2", "b/2.png", "a/1.png")).sha256 == first
    assert Pictures(plant(tmp_path / "3", "a/1.png", "b/3.png")).sha256 != first
    assert Pictures(plant(tmp_path / "2", "b/2.png", content=PICTURE + b"x")).sha256 != first
    (tmp_path / "1" / "c").mkdir()
    assert Pictures(tmp_path / "1").sha256 != first


def test_a_subset_keeps_classes_and_counts_anew(tmp_path) -> None:
    folder = Pictures(plant(tmp_path, "a/1.png", "b/2.png", "b/3.png"))
    part = folder.subset(lambda name: name.startswith("b/"))
    assert (part.names, part.labels, part.classes) == (("b/2.png", "b/3.png"), (1, 1), ("a", "b"))
    assert folder.subset([2, 0]).names == ("b/3.png", "a/1.png")
    assert len(folder) == 3


def test_every_fault_of_a_picture_has_words_for_the_summary() -> None:
    from convscope.pictures.notes import CODES

    raised = {code for _, code, _ in corpus.FAULTY.values()}
    raised |= {code for code, _ in corpus.SPECIAL.values()}
    assert raised <= set(CODES)
