"""Is each picture decoded once, whatever is asked for and how often?"""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope.core.errors import DataError, EnvironmentFault
from convscope.core.run import Run
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.studies.features.study import Framed

FRAMING = Framing(None, (6, 9))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for number in range(5):
        pixels = draw.integers(0, 256, (18, 17, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    return tmp_path


def test_pictures_come_as_asked_and_are_decoded_once(root: Path) -> None:
    with Pictures(root, max_bad=1.0) as folder:
        expected = {picture.number: picture.pixels for picture in folder.read(FRAMING)}
        before = folder.readings
        framed = Framed(folder, FRAMING)
        found = [*framed.read([4, 0, 3]), *framed.read([0, 1, 3]), *framed.read([4])]
        assert [number for number, _ in found] == [4, 0, 0, 1, 4]  # 3 cannot be used
        for number, pixels in found:
            assert np.array_equal(pixels, expected[number])
            assert pixels.flags.writeable
        assert folder.readings == before + 2


def test_a_full_disk_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pictures(root, max_bad=1.0) as folder:
        framed = Framed(folder, FRAMING)

        class Full(io.BytesIO):
            def flush(self) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(framed, "_file", Full())
        with pytest.raises(EnvironmentFault) as fault:
            list(framed.read([0]))
    assert fault.value.code == "R602"


def test_pictures_of_another_pass_are_kept_while_there_is_room(root: Path) -> None:
    with Pictures(root, max_bad=1.0) as folder:
        framed = Framed(folder, FRAMING)
        framed._room = 3 * 6 * 9 * 3
        for batch in folder.batches(2, FRAMING):
            framed.keep(batch)
        before = folder.readings
        assert [number for number, _ in framed.read([1, 0])] == [1, 0]
        assert folder.readings == before
        assert [number for number, _ in framed.read([1, 4])] == [1, 4]  # 4 had no room
        assert folder.readings == before + 1


def test_batches_are_aligned_to_numbers_or_filled_up(root: Path) -> None:
    def told(**how: Any) -> list[list[int]]:
        return [[p.number for p in batch] for batch in folder.batches(2, **how)]

    ticks: list[tuple[int, int]] = []
    with Pictures(root, max_bad=1.0) as folder:
        assert told() == [[0, 1], [2, 4]]
        assert told(aligned=True, run=Run(progress=lambda *at: ticks.append(at))) == [
            [0, 1],
            [2],
            [4],
        ]
        assert told(numbers=[4, 3, 1, 0]) == [[4, 1], [0]]
        assert told(numbers=[3], may_be_empty=True) == []
        with pytest.raises(DataError) as fault:
            told(numbers=[])
        assert fault.value.code == "D161"
    assert ticks == [(2, 5), (4, 5), (5, 5)]
