"""Are pictures elsewhere those of a folder here, and is what fails on the way told?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convscope.pictures.notes import table
from convscope.pictures.opening import open_pictures
from convscope.pictures.pictures import Pictures
from tests.pictures import corpus

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: convscope[remote]")


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes and a loose picture, beside what is none."""
    root = tmp_path / "herd"
    for number, name in enumerate(["b/2.png", "b/10.png", "a/x/1.png", "a/.hid.png", "loose.jpg"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        corpus.photo(40 + number, 30).save(root / name)
    (root / "a" / "words.txt").write_text("no picture")
    (root / "a" / "no-ending").write_bytes(corpus.jpeg())
    (root / ".git").mkdir()
    (root / ".git" / "x.png").write_bytes(corpus.png())
    return root


def same(here: Pictures, there: Pictures) -> None:
    """Whether two folders hold the same, in everything but where they lie."""
    assert (there.names, there.labels, there.classes) == (here.names, here.labels, here.classes)
    assert (there.sha256, there.remarks) == (here.sha256, here.remarks)
    for one, other in zip(here.read(), there.read(), strict=True):
        assert (one.number, one.name, one.notes) == (other.number, other.name, other.notes)
        assert np.array_equal(one.pixels, other.pixels)
    assert there.contents() == here.contents()
    assert table(there.skipped) == table(here.skipped)
    assert there.changes == here.changes


def test_a_folder_elsewhere_is_that_here(memory: Any, classes: Path) -> None:
    memory.put(str(classes), "/set", recursive=True)
    with Pictures(classes) as here, open_pictures("memory://set") as there:
        same(here, there)
        assert there.place == "memory://set"
        assert "without a class" in there.remarks[0]
        assert len(there) == 5


def test_a_dirty_folder_elsewhere_loses_the_same_pictures(memory: Any, tmp_path: Path) -> None:
    root = tmp_path / "dirty"
    root.mkdir()
    for name, (make, *_) in {**corpus.FAULTY, **corpus.USABLE}.items():
        (root / name).write_bytes(make())
    memory.put(str(root), "/dirty", recursive=True)
    with Pictures(root, workers=2) as here, Pictures("memory://dirty/", workers=2) as there:
        same(here, there)
        assert len(there.skipped) == len(corpus.FAULTY)
