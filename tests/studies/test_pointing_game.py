"""Does the pointing game count as one would by hand?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.attribution.registry import own
from convscope.core.errors import DataError
from convscope.core.units import Box
from convscope.network.load import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.studies.pointing.study import pointing_game

SIZE = (40, 60)


def brightest(model: nn.Module, images: Tensor) -> Tensor:
    """A method that points at the brightest pixel and at nothing else."""
    total = images.sum(1)
    return (total == total.amax((1, 2), keepdim=True)).float()


def nowhere(model: nn.Module, images: Tensor) -> Tensor:
    return torch.zeros_like(images[:, 0])


@pytest.fixture
def network() -> Network:
    plain = Preprocess(Framing(None, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return Network(model, plain, ("a", "b"), "made", "by hand", "")


@pytest.fixture
def spots(tmp_path: Path) -> Path:
    """Three pictures of twice the network's size with a white spot at (20, 30), (20, 30) and
    (70, 110), and one without a box."""
    for number, (row, column) in enumerate(((20, 30), (20, 30), (70, 110), (0, 0))):
        pixels = np.zeros((2 * SIZE[0], 2 * SIZE[1], 3), np.uint8)
        pixels[row : row + 2, column : column + 2] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def test_peaks_are_counted_in_the_network_s_pixels(network: Network, spots: Path) -> None:
    boxes = {
        "0.png": (Box(16, 26, 26, 36),),  # around the spot: (8, 13) to (13, 18) when halved
        "1.png": (Box(16, 44, 26, 54),),  # 7 halved pixels to the right of it
        "2.png": (Box(0, 0, 20, 20),),  # in the far corner
    }
    methods = {"spot": own(brightest, "spot"), "nothing": own(nowhere, "nothing")}
    found = pointing_game(network, Pictures(spots), boxes, methods, target=0, margin=8)
    assert found.pictures == ("0.png", "1.png", "2.png")
    assert found.exact[:, 0].tolist() == [1, 0, 0]
    assert found.near[:, 0].tolist() == [1, 1, 0]
    assert found.energy[:, 0].tolist() == [1, 0, 0]
    assert np.isnan(found.exact[:, 1]).all()
    assert found.boxed[0] == pytest.approx(5 * 5 / (SIZE[0] * SIZE[1]))
    assert found.boxed_near[0] == pytest.approx(21 * 21 / (SIZE[0] * SIZE[1]))
    assert found.middle.tolist() == [0, 0, 0]


def test_a_file_of_boxes_of_other_pictures_is_told(network: Network, spots: Path) -> None:
    with pytest.raises(DataError, match="no usable picture has boxes") as fault:
        pointing_game(network, Pictures(spots), {"x.png": (Box(0, 0, 5, 5),)}, {}, target=0)
    assert fault.value.code == "D196"


def test_boxes_that_the_framing_cuts_off_leave_the_picture_out(
    network: Network, spots: Path
) -> None:
    cut = Network(
        network.model,
        Preprocess(Framing(40, (40, 40)), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        network.classes,
        "made",
        "by hand",
        "",
    )
    boxes = {"0.png": (Box(0, 0, 4, 4),), "1.png": (Box(0, 50, 80, 70),)}
    found = pointing_game(cut, Pictures(spots), boxes, {"spot": own(brightest, "spot")}, target=0)
    assert found.pictures == ("1.png",)
