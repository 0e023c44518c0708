"""Does FullGrad count the biases of layers that see a picture in several windows?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convscope.attribution.formulas import METHODS as CAMS
from tests.nets import pictures


class Windowed(nn.Module):
    """A linear layer on four windows of a picture, as rows of one batch, in the manner of Swin."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().flatten(2).transpose(1, 2)
        b, places, maps = x.shape
        x = self.linear(x.reshape(b * 4, places // 4, maps)).relu()
        return self.fc(x.reshape(b, places, -1).mean(1))


def test_rows_of_one_picture_count_for_that_picture() -> None:
    found = CAMS["fullgrad"](Windowed().eval(), pictures(3, 22, 14))
    assert len(found) == 3
    for one in found:
        told = one.origin["completeness"]
        assert told["sum"] == pytest.approx(one.score, rel=1e-5)
        assert not one.origin["notes"]
    assert len({one.score for one in found}) == 3
