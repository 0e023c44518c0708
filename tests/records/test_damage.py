"""Is every damage to a saved record told as one, D140, and no lie of a file believed?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convscope.core.errors import DataError
from convscope.core.record import Record, open_inside, read_inside, seal
from convscope.records.features import Embedding
from convscope.records.topk import TopK
from tests.records.test_record import some_topk

GOLDEN = Path(__file__).parent / "schema-1"


def some_embedding() -> Embedding:
    return Embedding(
        layer="fc",
        values=np.arange(6, dtype=np.float32).reshape(3, 2),
        shape=(2,),
        vector="flat",
        number=np.arange(3),
        name=("a", "b", "c"),
        label=np.array([0, 0, -1]),
        classes=("x",),
        digest=np.zeros((3, 32), np.uint8),
    )


def told(kind: type[Record], place: Path, *, whole: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        kind.load(place, whole=whole)
    assert caught.value.code == "D140"
    line = caught.value.line()
    assert "\n" not in line
    return line


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def gone(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked(path: Path) -> None:
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, value=np.zeros(3))


def objects(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([{"a": 1}], object), allow_pickle=True)


DAMAGES = [emptied, cut, longer, flipped, gone, folder, fifo, linked, archive, objects]


@pytest.mark.parametrize("name", ["value.npy", "record.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    place = some_topk().save(tmp_path / "topk")
    damage(place / name)
    told(TopK, place)


@pytest.mark.parametrize("damage", [one for one in DAMAGES if one is not flipped])
def test_an_array_that_stays_on_disk_is_looked_at_too(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    place = some_embedding().save(tmp_path / "e")
    damage(place / "values.npy")
    told(Embedding, place)


def test_a_changed_number_on_disk_is_found_by_a_look_at_the_whole(tmp_path: Path) -> None:
    place = some_embedding().save(tmp_path / "e")
    assert isinstance(Embedding.load(place, whole=True).values, np.memmap)
    flipped(place / "values.npy")
    assert Embedding.load(place).values.shape == (3, 2)
    assert "values.npy" in told(Embedding, place, whole=True)


def resaved(place: Path, **changes: object) -> None:
    """Arrays of other kinds, with the checksums of a writer that means it."""
    index = json.loads((place / "record.json").read_text())
    for name, value in changes.items():
        np.save(place / f"{name}.npy", np.asarray(value))
        index["arrays"] = list(index["arrays"])
    del index["sha256"]
    (place / "record.json").write_text(json.dumps({**index, "schema": 1}))


@pytest.mark.parametrize(
    "change",
    [
        {"value": np.zeros((3, 2), np.float64)},
        {"value": np.zeros((3, 2, 1), np.float32)},
        {"value": np.zeros((4, 2), np.float32)},
        {"value": np.float32(1)},
        {"value": np.array([["a", "b"]] * 3)},
        {"row": np.zeros((3, 2), bool)},
    ],
)
def test_an_array_of_another_kind_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    place = some_topk().save(tmp_path / "topk")
    resaved(place, **change)
    assert "is of another kind" in told(TopK, place)


@pytest.mark.parametrize(
    "change",
    [
        {"seen": "10"},
        {"seen": True},
        {"layers": "conv1"},
        {"layers": [1, 2]},
        {"origin": [1]},
        {"strange": 1},
        {"../value": 1},
    ],
)
def test_a_plain_field_of_another_kind_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    place = some_topk().save(tmp_path / "topk")
    index = json.loads((place / "record.json").read_text())
    index["plain"].update(change)
    rest = {name: value for name, value in index.items() if name != "sha256"}
    (place / "record.json").write_text(json.dumps({**rest, "sha256": seal(rest)}))
    told(TopK, place)


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        '{"schema": 1}',
        '{"schema": true, "plain": {}}',
        '{"schema": 1, "kind": "TopK", "arrays": ["../value"], "plain": {}}',
        '{"schema": 1, "kind": "TopK", "arrays": 7, "plain": {}}',
        '{"schema": ' + "9" * 5000 + "}",
        "\ufeff{}",
    ],
)
def test_an_index_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    place = some_topk().save(tmp_path / "topk")
    (place / "record.json").write_text(text)
    told(TopK, place)


def test_an_index_may_be_laid_out_anew_but_says_the_same(tmp_path: Path) -> None:
    place = some_topk().save(tmp_path / "topk")
    text = (place / "record.json").read_text()
    (place / "record.json").write_text(json.dumps(json.loads(text), indent=None))
    assert TopK.load(place).seen == 10
    (place / "record.json").write_text(text.replace('"seen": 10', '"seen": 11'))
    assert "not what was written" in told(TopK, place)


def test_an_array_that_lies_about_its_size_takes_no_memory(tmp_path: Path) -> None:
    place = some_topk().save(tmp_path / "topk")
    head = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 20)}
    with (place / "value.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
    assert "bytes" in told(TopK, place)


def test_a_record_without_checksums_is_read_as_before() -> None:
    """The files were written by version 0.1.0 before records had them."""
    loaded, now = TopK.load(GOLDEN), some_topk()
    assert json.loads((GOLDEN / "record.json").read_text())["schema"] == 1
    assert (loaded.layers, loaded.seen, loaded.origin) == (now.layers, now.seen, now.origin)
    for name in ("starts", "value", "image", "row", "column", "content", "active", "invalid"):
        assert np.array_equal(getattr(loaded, name), getattr(now, name))
        assert getattr(loaded, name).dtype == getattr(now, name).dtype


def test_empty_and_scalar_arrays_and_any_order_come_back(tmp_path: Path) -> None:
    for number, values in enumerate(
        (np.zeros((0, 2), np.float32), np.asfortranarray(np.eye(3, 2, dtype=np.float32)))
    ):
        made = some_embedding()
        count = len(values)
        place = Embedding(
            **{
                **made.__dict__,
                "values": values,
                "number": made.number[:count],
                "label": made.label[:count],
                "digest": made.digest[:count],
            }
        ).save(tmp_path / str(number))
        assert np.array_equal(Embedding.load(place, whole=True).values, values)


def test_what_lies_behind_a_link_or_outside_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    study = tmp_path / "study"
    (study / "in").mkdir(parents=True)
    (study / "in" / "a").write_text("a")
    (study / "link").symlink_to("../secret")
    (study / "far").symlink_to(tmp_path)
    (tmp_path / "also").symlink_to(study)
    assert read_inside(tmp_path / "also", ["in", "a"]) == b"a"
    for parts in (
        ["link"],
        ["far", "secret"],
        ["..", "secret"],
        [str(tmp_path / "secret")],
        ["in"],
        ["in/a"],
        [""],
    ):
        with pytest.raises((ValueError, OSError)):
            open_inside(study, parts)
    with pytest.raises(ValueError, match="more than 0"):
        open_inside(study, ["in", "a"], most=0)
