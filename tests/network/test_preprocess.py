"""Does a picture come through to the network and back, number for number?"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from convscope.core.errors import CheckpointError, UsageError
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing

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
    {**JSON, "framing": {**JSON["framing"], "interpolation": "area"}},
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


GUESSED = Preprocess.imagenet().guessed()


@pytest.mark.parametrize(
    ("told", "framing", "assumed"),
    [
        ({"size": 64}, Framing(73, (64, 64)), ("resize", "interpolation", "mean", "std")),
        ({"size": "96x128"}, Framing(110, (96, 128)), ("resize", "interpolation", "mean", "std")),
        ({"size": 64, "resize": "none"}, Framing(None, (64, 64)), ("interpolation", "mean", "std")),
        ({"size": [64, 48], "resize": 70}, Framing(70, (64, 48)), ("interpolation", "mean", "std")),
        (
            {"size": 64, "resize": "80x90"},
            Framing((80, 90), (64, 64)),
            ("interpolation", "mean", "std"),
        ),
        (
            {"interpolation": "bicubic"},
            Framing(256, (224, 224), "bicubic"),
            ("size", "resize", "mean", "std"),
        ),
    ],
)
def test_what_is_told_is_taken_and_the_rest_stays_assumed(
    told: dict, framing: Framing, assumed: tuple[str, ...]
) -> None:
    found = GUESSED.changed(told)
    assert found.framing == framing
    assert found.assumed == assumed
    assert "assumed: " in found.describe()


def test_the_size_alone_of_a_known_preprocessing_leaves_the_resize_assumed() -> None:
    found = Preprocess.imagenet().changed({"size": 112})
    assert found.framing == Framing(128, (112, 112))
    assert found.assumed == ("resize",)
    assert found.assumption() == "of the preprocessing was not told, and assumed: resize 128"
    assert Preprocess.imagenet().assumption() == ""


@pytest.mark.parametrize(
    ("told", "mean", "std"),
    [
        ({"mean": "0.5", "std": 0.25}, (0.5,) * 3, (0.25,) * 3),
        ({"mean": "0.1,0.2,0.3", "std": [1, 2, 3]}, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
        ({"mean": "none", "std": "none"}, (0.0,) * 3, (1.0,) * 3),
        ({"mean": "ImageNet", "std": "imagenet"}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_mean_and_std_as_people_write_them(told: dict, mean: tuple, std: tuple) -> None:
    found = GUESSED.changed(told)
    assert (found.mean, found.std, found.scale) == (mean, std, 1 / 255)


def test_a_grey_network_takes_one_number_and_imagenets_grey() -> None:
    grey = GUESSED.grey()
    assert grey.changed({"mean": "0.13", "std": "0.31"}).mean == (0.13,)
    assert grey.changed({"mean": "imagenet"}).mean == grey.mean
    with pytest.raises(UsageError, match="is one number"):
        grey.changed({"mean": "0.1,0.2,0.3"})


def test_a_mean_above_two_is_of_pixels() -> None:
    found = GUESSED.changed({"mean": "123.675,116.28,103.53", "std": "58.395,57.12,57.375"})
    ours, imagenets = found.tensor(RAMP), Preprocess.imagenet().tensor(RAMP)
    torch.testing.assert_close(ours, imagenets, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match="std is needed too"):
        GUESSED.changed({"mean": 123})


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({"size": "big"}, "U320"),
        ({"size": 0}, "U320"),
        ({"size": True}, "U320"),
        ({"size": "64x64x3"}, "U320"),
        ({"size": 9000}, "U320"),
        ({"resize": "some"}, "U320"),
        ({"mean": "red"}, "U233"),
        ({"mean": "1,2"}, "U233"),
        ({"mean": "nan"}, "U233"),
        ({"mean": {}}, "U233"),
        ({"std": 0}, "U232"),
        ({"interpolation": "area"}, "U233"),
        ({"crop": 3}, "U233"),
    ],
)
def test_what_cannot_be_read_is_refused(told: dict, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        GUESSED.changed(told)
    assert caught.value.code == code


def test_json_keeps_what_was_assumed_and_greyed() -> None:
    kept = replace(GUESSED, greyed=True, assumed=("mean", "std"))
    again = Preprocess.from_json(json.loads(json.dumps(kept.to_json())))
    assert (again.assumed, again.greyed) == (("mean", "std"), True)
    assert Preprocess.imagenet() == GUESSED


def test_greyed_pictures_keep_three_channels() -> None:
    found = replace(KINDS["tutorials"], greyed=True)
    picture = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))
    assert torch.equal(found.tensor(picture), KINDS["tutorials"].tensor(grey))
    assert "grey" in found.describe()
