"""Does a record come back from disk as it was, and refuse to be what it is not?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from convscope.core.errors import DataError, ModelError, OutputError
from convscope.core.units import Unit
from convscope.records.features import Pictures
from convscope.records.maps import Projection
from convscope.records.topk import TopK


def some_topk() -> TopK:
    return TopK(
        layers=("conv1", "conv2"),
        starts=np.array([0, 2, 3]),
        value=np.array([[3, 1], [0, -np.inf], [7, 7]], np.float32),
        image=np.array([[5, 2], [9, -1], [0, 4]]),
        row=np.array([[1, 0], [0, 0], [2, 2]], np.int32),
        column=np.array([[0, 3], [1, 0], [2, 5]], np.int32),
        content=np.arange(6).reshape(3, 2),
        active=np.array([4, 0, 6]),
        invalid=np.array([0, 0, 1]),
        seen=10,
        origin={"model": "toy", "batch": 4},
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = some_topk()
    loaded = TopK.load(saved.save(tmp_path / "topk"))
    assert loaded.layers == ("conv1", "conv2")
    assert loaded.origin == {"model": "toy", "batch": 4}
    for name in ("starts", "value", "image", "row", "column", "active", "invalid"):
        before, after = getattr(saved, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)


def test_tuples_in_tuples_come_back_as_tuples(tmp_path: Path) -> None:
    pictures = Pictures(
        number=np.arange(1),
        name=("<b>.jpg",),
        label=np.array([-1]),
        classes=(),
        thumbs=np.zeros((1, 4, 4, 3), np.uint8),
        size=(5, 7),
    )
    loaded = Pictures.load(pictures.save(tmp_path / "p"))
    assert (loaded.name, loaded.classes, loaded.size) == (("<b>.jpg",), (), (5, 7))


def test_a_record_is_frozen() -> None:
    with pytest.raises(ValueError, match="read-only"):
        some_topk().value[0, 0] = 1


def test_a_record_is_never_saved_over_another(tmp_path: Path) -> None:
    some_topk().save(tmp_path / "topk")
    with pytest.raises(OutputError):
        some_topk().save(tmp_path / "topk")


def test_another_kind_a_newer_schema_and_a_broken_array_are_named(tmp_path: Path) -> None:
    place = some_topk().save(tmp_path / "topk")
    with pytest.raises(DataError, match="is a TopK, not a Projection"):
        Projection.load(place)
    (place / "value.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="is not a TopK record"):
        TopK.load(place)
    index = json.loads((place / "record.json").read_text())
    (place / "record.json").write_text(json.dumps({**index, "schema": 99}))
    with pytest.raises(DataError, match="newer convscope"):
        TopK.load(place)


def test_the_units_of_a_map_are_listed_strongest_first_without_the_padding() -> None:
    topk = some_topk()
    assert list(topk.units("conv1", 1)) == [(Unit("conv1", 1, (0, 1)), 9, 0.0)]
    assert [unit.at for unit, _, _ in topk.units("conv2", 0)] == [(2, 2), (2, 5)]
    with pytest.raises(ModelError, match="did you mean conv1"):
        topk.rows("conv_1")
