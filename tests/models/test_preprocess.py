"""Does a picture come through to the network and back, number for number?"""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from convscope.errors import CheckpointError, UsageError
from convscope.images.framing import Framing
from convscope.models.preprocess import Preprocess

RNG = np.random.default_rng(1)
RAMP = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, axis=2)
"""Every value a pixel can have, in every colour."""


def paper() -> Preprocess:
    mean = RNG.uniform(80, 140, size=(3, 16, 16))
    return Preprocess(Framing(20, (16, 16)), mean, (1.0, 1.0, 1.0), scale=1.0)


KINDS = {
    "imagenet": Preprocess.imagenet(20, 16),
    "tutorials": Preprocess(Framing(20, (16, 16)), (0.5,) * 3, (0.5,) * 3),
    "paper": paper(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_value_comes_back_as_it_was(kind: str) -> None:
    preprocess = KINDS[kind]
    assert np.array_equal(preprocess.pixels(preprocess.tensor(RAMP)), RAMP)


def test_the_numbers_are_torchvisions() -> None:
    picture = Image.fromarray(RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    peer = v2.Compose(
        [
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    ours = Preprocess.imagenet().tensor(np.asarray(picture))
    torch.testing.assert_close(ours, peer(picture), rtol=1e-6, atol=1e-6)


def test_the_papers_mean_is_subtracted_pixel_by_pixel() -> None:
    mean = np.zeros((3, 2, 3))
    mean[1, 0, 2] = 100
    preprocess = Preprocess(Framing(None, (2, 3)), mean, (1, 1, 1), scale=1.0)
    pixels = np.full((2, 3, 3), 120, np.uint8)
    expected = torch.full((3, 2, 3), 120.0)
    expected[1, 0, 2] = 20
    assert torch.equal(preprocess.tensor(pixels), expected)


def test_a_batch_is_its_pictures_one_by_one() -> None:
    pixels = [RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(12)]
    batch = KINDS["imagenet"].batch(pixels)
    assert batch.shape == (12, 3, 16, 16)
    assert torch.equal(batch[7], KINDS["imagenet"].tensor(pixels[7]))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("means", ["one a colour", "one a pixel"])
def test_channels_last_changes_the_memory_and_no_number(means: str, grey: bool) -> None:
    mean = (90.0, 100.5, 110.25) if means == "one a colour" else RNG.uniform(0, 255, (3, 7, 12))
    preprocess = Preprocess(Framing(None, (7, 12)), mean, (55.5, 60, 70), scale=1.0)
    preprocess = preprocess.grey() if grey else preprocess
    pixels = [RNG.integers(0, 256, (7, 12, 3), dtype=np.uint8) for _ in range(5)]
    usual, other = preprocess.batch(pixels), preprocess.batch(pixels, channels_last=True)
    assert torch.equal(usual, other)
    assert usual.is_contiguous()
    assert other.is_contiguous(memory_format=torch.channels_last)


def test_values_no_pixel_can_have_come_back_as_the_nearest() -> None:
    preprocess = KINDS["tutorials"]
    assert preprocess.pixels(torch.full((3, 2, 2), 9.0)).tolist() == [[[255] * 3] * 2] * 2
    assert preprocess.pixels(torch.full((3, 2, 2), -9.0)).max() == 0


def test_pixels_leave_the_tensor_as_it_was() -> None:
    tensor = KINDS["imagenet"].tensor(RAMP).requires_grad_(True)
    kept = tensor.detach().clone()
    KINDS["imagenet"].pixels(tensor)
    assert torch.equal(tensor, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_json_brings_back_the_same_preprocessing(kind: str) -> None:
    preprocess = KINDS[kind]
    again = Preprocess.from_json(json.loads(json.dumps(preprocess.to_json())))
    assert again == preprocess
    assert torch.equal(again.tensor(RAMP), preprocess.tensor(RAMP))
    assert again.size == (16, 16)


def test_a_mean_a_pixel_fits_into_a_checkpoints_header() -> None:
    mean = RNG.uniform(0, 255, size=(3, 224, 224))
    preprocess = Preprocess(Framing(), mean, (1, 1, 1), scale=1.0)
    assert len(json.dumps(preprocess.to_json())) < 1_000_000


def test_it_survives_a_pickle() -> None:
    assert pickle.loads(pickle.dumps(KINDS["paper"])) == KINDS["paper"]


def test_other_numbers_make_another_preprocessing() -> None:
    assert Preprocess.imagenet(20, 16) == Preprocess.imagenet(20, 16)
    assert hash(Preprocess.imagenet(20, 16)) == hash(Preprocess.imagenet(20, 16))
    assert Preprocess.imagenet(20, 16) != Preprocess.imagenet(24, 16)
    assert paper() != KINDS["paper"]


def test_the_mean_cannot_be_changed_from_outside() -> None:
    mean = np.ones((3, 16, 16))
    preprocess = Preprocess(Framing(20, (16, 16)), mean, (1, 1, 1), scale=1.0)
    mean[:] = 7
    assert np.asarray(preprocess.mean).max() == 1
    with pytest.raises(ValueError, match="read-only"):
        preprocess.mean[0, 0, 0] = 7.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("mean", "std", "scale"),
    [
        ((1, 2), (1, 1, 1), 1.0),
        ((1, 2, float("nan")), (1, 1, 1), 1.0),
        (np.zeros((3, 5, 5)), (1, 1, 1), 1.0),
        ((1, 2, 3), (1, 0, 1), 1.0),
        ((1, 2, 3), (1, 1, 1), 0.0),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(mean: object, std: object, scale: float) -> None:
    with pytest.raises(UsageError) as caught:
        Preprocess(Framing(20, (16, 16)), mean, std, scale)  # type: ignore[arg-type]
    assert caught.value.code == "U232"


JSON = KINDS["imagenet"].to_json()
BROKEN = [
    {},
    {"framing": {"resize": 1, "crop": 5, "interpolation": "bilinear"}},
    {**JSON, "mean": {"shape": [3, 16, 16], "float32": "AAAA"}},
    {**JSON, "mean": {"shape": [3, 16], "float32": "AAAA"}},
    {**JSON, "mean": None},
    {**JSON, "framing": {"crop": [1, 2], "new": 3}},
    {**JSON, "framing": {**JSON["framing"], "crop": [10**6, 10**6]}},
    {**JSON, "framing": {**JSON["framing"], "crop": ["a", 2]}},
    {**JSON, "framing": {**JSON["framing"], "interpolation": "lanczos"}},
    [1, 2],
]


@pytest.mark.parametrize("plain", BROKEN, ids=range(len(BROKEN)))
def test_broken_json_is_one_clear_fault(plain: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        Preprocess.from_json(plain)  # type: ignore[arg-type]
    assert caught.value.code == "C414"


def test_the_description_says_all_in_one_line() -> None:
    assert KINDS["imagenet"].describe() == (
        "shorter side to 20 (bilinear), centre 16 × 16; 0 to 1, "
        "minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)"
    )
    assert KINDS["paper"].describe() == (
        "shorter side to 20 (bilinear), centre 16 × 16; pixels × 1, "
        "minus one number a pixel, divided by (1, 1, 1)"
    )


@pytest.mark.parametrize("mean", [(0.4,), RNG.uniform(0, 1, (1, 16, 16))])
def test_one_channel_is_pillows_grey_there_and_back(mean: object) -> None:
    preprocess = Preprocess(Framing(20, (16, 16)), mean, (0.25,))
    assert preprocess.shape == (1, 16, 16)
    colours = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(colours).convert("L"))
    tensor = preprocess.tensor(colours)
    offset = np.asarray(mean, np.float32).reshape(-1, 1, 1) if isinstance(mean, tuple) else mean
    expected = (grey[None].astype(np.float64) / 255 - offset) / 0.25
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-5)
    assert np.array_equal(preprocess.pixels(tensor), np.stack([grey] * 3, axis=2))
    assert np.array_equal(preprocess.seen(RAMP), RAMP)
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess


def test_imagenets_grey_is_the_grey_of_its_mean() -> None:
    grey = Preprocess.imagenet(20, 16).grey()
    assert grey.mean == pytest.approx((0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406,), abs=1e-5)
    assert grey.std == pytest.approx((0.226,))
    assert "; grey; 0 to 1" in grey.describe()


def test_colours_of_mean_and_std_must_agree() -> None:
    with pytest.raises(UsageError, match="same number of colours"):
        Preprocess(Framing(20, (16, 16)), (0.5,), (0.5, 0.5, 0.5))
