"""Are a folder's pictures in one order, complete, and the same for any number of workers?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Two classes of three pictures, 20 + number px wide, of one grey each."""
    for number, name in enumerate(["b/x", "b/deep/a", "b/Y", "a/2", "a/10", "a/é"]):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 15), (number, 100, 200)).save(path)
    return tmp_path


def test_pictures_are_in_byte_order_of_their_paths_with_their_top_folder_as_class(zoo) -> None:
    with Pictures(zoo) as folder:
        assert folder.names == (
            *("a/10.png", "a/2.png", "a/é.png"),
            *("b/Y.png", "b/deep/a.png", "b/x.png"),
        )
        assert folder.classes == ("a", "b")
        assert folder.labels == (0, 0, 0, 1, 1, 1)
        pictures = list(folder.read())
    assert [picture.number for picture in pictures] == [0, 1, 2, 3, 4, 5]
    assert [picture.pixels[0, 0, 0] for picture in pictures] == [4, 3, 5, 2, 1, 0]
    assert next(picture.pixels.shape for picture in pictures) == (15, 24, 3)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_pictures_in_the_order_asked_for(zoo, workers) -> None:
    order = [5, 0, 0, 3, 1, 4, 2] * 9
    with Pictures(zoo, workers=workers) as folder:
        pictures = list(folder.read(Framing(12, (10, 11)), order))
    assert [picture.number for picture in pictures] == order
    red = dict(enumerate([4, 3, 5, 2, 1, 0]))
    for picture in pictures:
        assert picture.pixels.shape == (10, 11, 3)
        assert (picture.pixels == (red[picture.number], 100, 200)).all()


def test_any_function_may_frame(zoo) -> None:
    with Pictures(zoo) as folder:
        picture = folder.one(2, lambda image: np.asarray(image.rotate(90, expand=True)))
    assert picture.pixels.shape == (25, 15, 3)
