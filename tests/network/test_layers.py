"""Are the layers counted as on paper?"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convscope.cli.predict import lines
from convscope.core.errors import ModelError
from convscope.network.layers import layer_table
from convscope.network.zfnet import zfnet
from tests.nets import Residual, state_of


class Sharing(nn.Module):
    """One convolution used twice, a weight of its own, two layers with the same weights, a
    transposed convolution, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.one = nn.Conv2d(3, 5, (1, 3), stride=(2, 1))
        self.same = nn.Conv2d(3, 5, (1, 3), stride=(2, 1))
        self.same.weight = self.one.weight
        self.up = nn.ConvTranspose2d(5, 2, 2, stride=2)
        self.idle = nn.Linear(1000, 1000)
        self.scale = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x))
        return self.up(self.one(x) + self.same(x)) * self.scale


def test_zfnet_costs_what_the_paper_s_architecture_implies() -> None:
    table = layer_table(zfnet(), (3, 224, 224))
    parameters = dict(zip(table.name, table.parameters.tolist(), strict=True))
    assert [parameters[f"conv{i}"] for i in range(1, 6)] == [14208, 614656, 885120, 1327488, 884992]
    assert [parameters[f"fc{i}"] for i in (6, 7, 8)] == [37752832, 16781312, 4097000]
    assert table.parameters.sum() == 62_357_608
    assert round(table.multiply_adds.sum() / 1e9, 3) == 1.168
    shapes = dict(zip(table.name, table.shape, strict=True))
    assert [shapes[n][1] for n in ("conv1", "pool1", "conv2", "pool2", "pool5")] == [
        *(110, 55, 26, 13, 6)
    ]
    conv5 = table.name.index("conv5")
    assert table.field[conv5].tolist() == [139, 139]
    assert table.stride[conv5].tolist() == [16, 16]
    assert table.field[table.name.index("fc6")].tolist() == [0, 0]


def test_shared_weights_and_reused_modules_are_counted_once_and_each_run_costs() -> None:
    table = layer_table(Sharing(), (3, 8, 10))
    assert table.name == ("twice", "one", "same", "up", "")
    assert table.parameters.tolist() == [27, 45 + 5, 5, 40 + 2, 2]
    # twice: 2 runs × 8·10 places × 3 maps × 9; one: 4·8 places × 5 maps × 3·3 weights;
    # up: each of 4·8·5 inputs goes to 2 maps × 2·2 places
    assert table.multiply_adds.tolist() == [4320, 1440, 1440, 1280, 0]
    assert table.shape[3] == (2, 8, 16)


def test_the_model_is_left_as_found() -> None:
    model = Residual()
    before = state_of(model)
    layer_table(model, (3, 19, 24))
    assert state_of(model) == before


def test_the_table_as_text_lines_up_and_says_what_sees_everything() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000)
    )
    text = lines(layer_table(model, (3, 20, 30)))
    assert [line.split() for line in text] == [
        ["layer", "kind", "kernel", "output", "parameters", "multiply-adds", "field", "stride"],
        ["input", "3×20×30"],
        ["0", "Conv2d", "3×5", "8×18×26", "368", "168,480", "3×5", "1"],
        ["1", "AdaptiveAvgPool2d", "8×1×1", "all"],
        ["2", "Flatten", "8"],
        ["3", "Linear", "1000", "9,000", "8,000"],
        ["sum", "9,368", "176,480"],
    ]
    ends = {
        line.index(cell) + len(cell)
        for line, cell in zip(text[2:4], ("8×18×26", "8×1×1"), strict=True)
    }
    assert len(ends) == 1


def test_a_normalisation_is_told_with_the_convolution_that_it_follows() -> None:
    torch.manual_seed(0)
    parts = OrderedDict(
        lone=nn.BatchNorm2d(3),  # follows nothing
        conv=nn.Conv2d(3, 6, (5, 3)),
        bn=nn.BatchNorm2d(6),
        pool=nn.MaxPool2d(2),
        other=nn.BatchNorm2d(6),  # follows a pool
    )
    table = layer_table(nn.Sequential(parts), (3, 20, 30))
    assert table.of == ("", "", "conv", "", "")
    assert table.kernel == ((), (5, 3), (), (2, 2), ())
    cells = [line.split("  ") for line in lines(table)]
    assert [cell.strip() for cell in cells[4] if cell][:3] == [
        "bn",
        "BatchNorm2d of conv",
        "6×16×28",
    ]


def test_a_picture_that_the_network_does_not_take_is_told() -> None:
    with pytest.raises(ModelError, match="does not take a picture of 4 × 20 × 30") as fault:
        layer_table(Sharing(), (4, 20, 30))
    assert fault.value.code == "M522"
    assert np.all(layer_table(Sharing(), (3, 20, 30)).multiply_adds >= 0)
