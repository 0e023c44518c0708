"""Does a result appear whole or not at all, whatever fails on the way?"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from convscope.errors import EnvironmentFault, OutputError
from convscope.publish import publish_file, publish_folder


def left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    publish_file(tmp_path / "a" / "b.txt", b"one")
    publish_file(tmp_path / "a" / "b.txt", b"two")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"two"
    assert left(tmp_path / "a") == ["b.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    publish_file(tmp_path / "b.txt", b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if call == "fsync" else Path, call, full)
    with pytest.raises(EnvironmentFault, match="disk is full") as caught:
        publish_file(tmp_path / "b.txt", b"new")
    assert caught.value.code == "R602"
    assert (tmp_path / "b.txt").read_bytes() == b"old"
    assert left(tmp_path) == ["b.txt"]


def test_a_folder_with_something_in_it_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="nothing is overwritten"):
        publish_folder(tmp_path / "run", lambda folder: None)
    assert left(tmp_path / "run") == ["mine.txt"]


def test_a_writer_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        publish_folder(tmp_path / "run", write)
    assert left(tmp_path) == []


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    publish_folder(tmp_path / "run", lambda folder: (folder / "a").write_text("x") and None)
    assert left(tmp_path / "run") == ["a"]
