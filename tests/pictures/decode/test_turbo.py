"""Has the quicker decoder for plain JPEGs the same pixels, and does it leave the rest alone?"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope.pictures.decode import decode as decoding
from convscope.pictures.decode.decode import Turbo, decode
from convscope.pictures.decode.formats import Fault, Limits
from tests.pictures import corpus

FILES: dict[str, Callable[[], bytes]] = {
    name: made for name, (made, *_) in {**corpus.USABLE, **corpus.FAULTY}.items()
}


def answer(data: bytes) -> tuple[Any, ...]:
    """Pixels and notes, or the fault."""
    notes: dict[str, str] = {}
    try:
        picture = decode(data, Limits(), notes.__setitem__)
    except Fault as fault:
        return fault.code, fault.text
    return picture.mode, picture.size, picture.tobytes(), tuple(notes.items())


def awake(*modes: str) -> Turbo:
    """As a process has it that has seen many pictures."""
    turbo = Turbo(after=0)
    for mode in ("RGB", "L"):
        data = corpus.saved(corpus.photo(mode=mode), "JPEG")
        for _ in range(2):
            turbo.load(data, Image.open(io.BytesIO(data)))
    assert turbo.fit == {"RGB": True, "L": True}
    return turbo


@pytest.mark.parametrize("name", FILES)
def test_every_odd_file_has_the_same_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FILES[name]()
    monkeypatch.setattr(decoding, "TURBO", Turbo(after=1_000))
    before = answer(data)
    monkeypatch.setattr(decoding, "TURBO", awake())
    assert answer(data) == before


@pytest.mark.parametrize("sampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(90, 60), (1, 1), (17, 33), (9, 8)])
def test_pixels_are_those_of_pillow_whatever_the_sampling(
    size: tuple[int, int], progressive: bool, sampling: int
) -> None:
    made = corpus.photo(*size)
    data = corpus.saved(made, "JPEG", subsampling=sampling, progressive=progressive, quality=71)
    ours = awake().load(data, Image.open(io.BytesIO(data)))
    assert np.array_equal(ours, Image.open(io.BytesIO(data)))


def test_it_is_used_once_it_is_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus.jpeg()
    turbo = awake()
    assert turbo.load(data, Image.open(io.BytesIO(data))).format is None  # not Pillow's own
    young = Turbo(after=2)
    loaded = [young.load(data, Image.open(io.BytesIO(data))).format for _ in range(4)]
    assert loaded == ["JPEG", "JPEG", "JPEG", None]


def test_a_decoder_with_other_pixels_is_not_used() -> None:
    data = corpus.jpeg()
    turbo = awake()
    turbo.fit.clear()
    turbo.decode = lambda data, **_: np.zeros((60, 90, 3), np.uint8)
    loaded = [turbo.load(data, Image.open(io.BytesIO(data))) for _ in range(2)]
    assert all(np.array_equal(one, Image.open(io.BytesIO(data))) for one in loaded)
    assert turbo.fit == {"RGB": False}
