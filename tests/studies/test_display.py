"""Is what is shown of a picture the part that was meant, and no more?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convscope.core.units import Box
from convscope.representations.deconvnet import cut, limit, patch, quantised

IMAGE = torch.arange(3 * 6 * 8, dtype=torch.float32).reshape(3, 6, 8)


def test_a_small_box_is_shown_pixel_by_pixel() -> None:
    assert torch.equal(cut(IMAGE, Box(1, 2, 4, 5), 3, -1.0), IMAGE[:, 1:4, 2:5])


def test_what_lies_outside_the_picture_has_the_colour_of_nothing() -> None:
    square = cut(IMAGE, Box(-1, 6, 2, 9), 3, -1.0)
    assert torch.all(square[:, 0] == -1)
    assert torch.all(square[:, :, 2] == -1)
    assert torch.equal(square[:, 1:, :2], IMAGE[:, 0:2, 6:8])
    assert torch.all(cut(IMAGE, Box(-9, -9, -6, -6), 3, -1.0) == -1)


def test_a_large_box_is_made_smaller_by_averages() -> None:
    flat = torch.full((3, 6, 8), 7.0)
    assert torch.allclose(cut(flat, Box(0, 0, 6, 6), 2, 0.0), torch.full((3, 2, 2), 7.0))
    halved = cut(IMAGE[:, :4, :4], Box(0, 0, 4, 4), 2, 0.0)
    assert float(halved.mean()) == pytest.approx(float(IMAGE[:, :4, :4].mean()), rel=1e-5)


def test_a_box_that_is_not_square_keeps_its_shape() -> None:
    square = cut(torch.ones(3, 6, 8), Box(0, 0, 4, 8), 8, -1.0)
    assert torch.all(square[:, 2:6] == 1)
    assert torch.all(square[:, [0, 1, 6, 7]] == -1)


def test_a_patch_has_the_picture_s_own_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    assert np.array_equal(patch(pixels, Box(0, 1, 5, 6), 5), pixels[0:5, 1:6])


def test_numbers_are_shown_between_the_ends_of_the_scale() -> None:
    values = np.array([-3, -2, 0, 1, 2, 9], np.float32)
    assert quantised(values, -2, 2).tolist() == [0, 0, 128, 191, 255, 255]
    assert quantised(np.zeros(3, np.float32), 0, 0).tolist() == [128] * 3


def test_a_few_bright_pixels_do_not_hide_the_rest() -> None:
    values = np.ones(1000, np.float32)
    values[:2] = -50
    assert limit(values) == pytest.approx(1)
    sparse = np.zeros(1000, np.float32)
    sparse[0] = 3
    assert limit(sparse) == 3
