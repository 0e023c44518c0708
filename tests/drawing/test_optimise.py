"""Are optimised pictures drawn as the network sees them, and is what is told beside them true?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from convscope.drawing.tiles import caption, optimised_figure, optimised_picture
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.records.maps import OptimisedPicture


def record(pixels: np.ndarray, **more: Any) -> OptimisedPicture:
    told = {"kind": "unit", "subject": "conv5:41", "value": 12.345, **more}
    return OptimisedPicture(pixels=pixels.astype(np.float32), **told)


def test_the_picture_is_the_one_that_preprocessing_would_make_these_pixels_of() -> None:
    preprocess = Preprocess(Framing(None, (5, 7)), (0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    levels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    mean, std = (np.array(n, np.float32)[:, None, None] for n in (preprocess.mean, preprocess.std))
    pixels = preprocess.tensor(levels)
    drawn = optimised_picture(record(pixels.numpy(), black=-mean / std, white=(1 - mean) / std))
    assert np.array_equal(drawn, levels)
    assert np.array_equal(drawn, preprocess.pixels(torch.as_tensor(pixels)))


def test_one_channel_is_grey_and_an_unknown_range_is_stretched() -> None:
    drawn = optimised_picture(record(np.linspace(-3, 9, 35).reshape(1, 5, 7)))
    assert drawn.shape == (5, 7, 3)
    assert drawn[0, 0].tolist() == [0, 0, 0]
    assert drawn[-1, -1].tolist() == [255, 255, 255]
    assert (np.diff(drawn[..., 0].ravel().astype(int)) >= 0).all()


def test_the_caption_tells_how_well_it_does_and_whether_it_was_stopped() -> None:
    pixels = np.zeros((3, 4, 4))
    assert caption(record(pixels, natural=10.0)) == "conv5:41\n12.35; best photograph 10"
    stopped = record(pixels, values=np.zeros(3), asked=9)
    assert caption(stopped) == "conv5:41\n12.35; stopped after 3 of 9 steps"
    inverted = record(pixels, kind="inversion", value=0.04, subject="conv5")
    assert caption(inverted) == "conv5\n20% off the photograph's features"
    assert "\x1b" not in caption(record(pixels, subject="a\x1bb"))
    assert math.isnan(record(pixels).natural)


def test_an_inversion_stands_beside_its_photograph() -> None:
    light, dark = np.ones((3, 60, 200)), np.zeros((3, 60, 200))
    scale = {"black": np.zeros((3, 1, 1)), "white": np.ones((3, 1, 1))}
    shown = record(dark, original=light.astype(np.float32), kind="inversion", value=1.0, **scale)
    sheet = np.asarray(optimised_figure([shown]))
    assert (sheet[8:68, 8:208] == 255).all()
    assert (sheet[8:68, 208:408] == 0).all()


def test_pictures_of_several_sizes_share_a_sheet() -> None:
    small, large = record(np.zeros((3, 20, 30))), record(np.zeros((1, 50, 90)))
    sheet = optimised_figure([small, large, small], columns=2)
    assert sheet.width > 2 * 90
    assert sheet.height > 2 * 50
