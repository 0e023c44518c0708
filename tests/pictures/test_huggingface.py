"""Are the pictures of a dataset those of its rows, and is what is no such dataset told?"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convscope.core.errors import ConvscopeError, DataError
from convscope.pictures.decode.formats import Limits
from convscope.pictures.opening import as_pictures, open_all, open_pictures
from convscope.pictures.pictures import split
from tests.pictures import corpus

datasets = pytest.importorskip("datasets", reason="datasets is not installed: convscope[datasets]")
NAMES = ("dog", "cat", "eel")


def png(number: int) -> bytes:
    return corpus.saved(corpus.photo(30 + number, 20), "PNG")


def table(root: Path, labels: tuple[int | None, ...] = (1, 0, -1, None, 1, 0)) -> Any:
    """Rows with bytes and a name, with bytes alone, a file, nothing, what is no picture, bytes."""
    corpus.photo(50, 40).save(root / "file.png")
    pictures = [
        {"bytes": png(0), "path": "some/where/cat.png"},
        {"bytes": png(1), "path": None},
        {"bytes": None, "path": str(root / "file.png")},
        None,
        {"bytes": b"words", "path": "words.jpg"},
        {"bytes": corpus.jpeg(), "path": "odd.png"},
    ]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    rows = {"image": pictures, "label": list(labels), "n": list(range(6))}
    features = datasets.Features({**kinds, "n": datasets.Value("int64")})
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """One on disk; saving takes the file's bytes, too."""
    datasets.disable_progress_bars()
    table(tmp_path).save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def test_pictures_are_the_rows_in_their_order(kept: Path, tmp_path: Path) -> None:
    given = table(tmp_path)
    rows = [str(kept), given, given.select([0, 1, 2, 3, 4, 5])]
    for folder in map(open_pictures, rows):
        with folder:
            assert folder.names[:2] == ("000000000/cat.png", "000000001")
            assert (folder.classes, folder.labels) == (NAMES, (1, 0, None, None, 1, 0))
            assert folder.remarks == ("2 pictures without a class",)
            assert not folder.numbered
            read = list(folder.read())
            assert [picture.number for picture in read] == [0, 1, 2, 5]
            for picture, row in zip(read, (0, 1, 2, 5), strict=True):
                assert np.array_equal(picture.pixels, np.asarray(given[row]["image"]))
            assert [entry.code for entry in folder.skipped] == ["D121", "D101"]
            assert folder.skipped[0].text == "the row has no picture"
            assert folder.noted("N102") == ["000000005/odd.png"]
            assert folder.digest(1) == __import__("hashlib").sha256(png(1)).digest()
    assert (open_pictures(str(kept)).place, rows[0]) == (str(kept), str(kept))
    assert open_pictures(given).place == "dataset"


def test_a_shuffled_one_is_read_as_it_was_shuffled(tmp_path: Path) -> None:
    given = table(tmp_path)
    order = [5, 1, 0]
    with as_pictures(given.select(order)) as folder:
        assert folder.labels == (0, 0, 1)
        for picture, row in zip(folder.read(), order, strict=True):
            assert np.array_equal(picture.pixels, np.asarray(given[row]["image"]))
        assert folder.sha256 != as_pictures(given.select([1, 5, 0])).sha256
        assert folder.sha256 == as_pictures(given.select(order)).sha256
        again = pickle.loads(pickle.dumps(folder.subset([2, 0])))
        assert [one.name for one in again.read(workers=2)] == [folder.names[2], folder.names[0]]


def test_a_copy_does_not_carry_the_files(kept: Path) -> None:
    many = datasets.load_from_disk(str(kept)).select([0, 1] * 500)
    many.save_to_disk(kept.parent / "many")
    folder = open_pictures(str(kept.parent / "many"))
    size = sum(path.stat().st_size for path in (kept.parent / "many").iterdir())
    copy = pickle.dumps(folder.subset([999]))
    assert len(copy) < size / 4
    code = "import pickle, sys; print(next(pickle.load(sys.stdin.buffer).read()).pixels.sum())"
    done = subprocess.run([sys.executable, "-c", code], input=copy, capture_output=True, check=True)
    assert int(done.stdout) == folder.one(999).pixels.sum()


def test_splits_columns_and_limits(tmp_path: Path) -> None:
    given = table(tmp_path)
    both = datasets.DatasetDict({"train": given, "test": given.select([1, 0])})
    datasets.disable_progress_bars()
    both.save_to_disk(tmp_path / "both")
    name = str(tmp_path / "both")
    with open_pictures(f"{name}?split=test", limits=Limits(max_bytes=len(png(0)))) as folder:
        assert (folder.place, folder.labels) == (f"{name}?split=test", (0, 1))
        assert [entry.code for entry in folder.skipped] == []
        assert len(list(folder.read())) == 1
        assert [entry.code for entry in folder.skipped] == ["D110"]
    (one,) = open_all([f"{name}?split=train"])
    assert len(one) == 6
    assert len(split(one)[0]) < 6
    assert open_pictures(both["test"]).names == open_pictures(f"{name}/test").names
    with open_pictures(f"{name}?split=train&label=n") as folder:
        assert folder.numbered
        assert (folder.classes, folder.labels[4]) == (tuple("012345"), 4)
    for asked, code, said in (
        (name, "U484", "has several splits: train, test. Next: name one, as DIR?split=NAME"),
        (f"{name}?split=val", "U484", "has no split 'val': train, test"),
        (f"{name}?splitt=val", "U484", "a dataset has no option 'splitt'; did you mean split?"),
        (f"{name}?split=test&label=labels", "U484", "no column 'labels' for ?label=; did you mean"),
        (f"{name}/test?split=train", "U484", "has no splits"),
        (both, "U484", "has several splits: train, test"),
        (given.to_iterable_dataset(), "U377", "IterableDataset has no rows by number"),
        (given.remove_columns("image"), "D100", "no pictures; its columns are label (ClassLabel)"),
        (given.select([]), "D100", "holds no pictures"),
    ):
        with pytest.raises(ConvscopeError) as fault:
            as_pictures(asked)
        assert (fault.value.code, said in str(fault.value)) == (code, True), fault.value


def test_what_is_damaged_is_told(kept: Path) -> None:
    (arrow,) = kept.glob("*.arrow")
    whole, state = arrow.read_bytes(), (kept / "state.json").read_text()
    info = json.loads((kept / "dataset_info.json").read_text())
    for path, content in (
        (arrow, whole[: len(whole) // 2]),
        (arrow, b""),
        (kept / "state.json", b"{"),
        (kept / "state.json", b"{}"),
        (kept / "dataset_info.json", json.dumps({**info, "features": {"image": 3}}).encode()),
    ):
        arrow.write_bytes(whole)
        (kept / "state.json").write_text(state)
        (kept / "dataset_info.json").write_text(json.dumps(info))
        assert len(open_pictures(str(kept))) == 6
        path.unlink()  # not written over: what is mapped must stay
        path.write_bytes(content)
        with pytest.raises(DataError, match="is a dataset that cannot be read") as fault:
            open_pictures(str(kept))
        assert fault.value.code == "D210"


def test_a_row_that_names_a_place_elsewhere_is_not_asked_for(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image()})
    urls = ["https://127.0.0.1:9/a.jpg", str(tmp_path / "gone.png"), "/dev/zero"]
    given = datasets.Dataset.from_dict({"image": urls}, features=features)
    with open_pictures(given, max_bad=1) as folder:
        assert list(folder.read()) == []
        assert [entry.code for entry in folder.skipped] == ["D121", "D121", "D109"]
        assert folder.labels == (None, None, None)


BLOCKED = """
import sys
sys.modules["datasets"] = None
from convscope.cli.app import main
main(["evaluate", "torchvision:squeezenet1_0:weights=none", {name!r}, "--out", "nowhere"])
"""


def test_without_the_library_one_line_says_what_to_install(kept: Path) -> None:
    code = BLOCKED.format(name=str(kept))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(f"convscope: error[R625]: {kept}: datasets, which reads it, is not")
    assert line.endswith("Next: pip install 'convscope[datasets]'.")
