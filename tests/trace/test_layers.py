"""Are the paper's layers 1, 5 and 7 found in networks of many kinds?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convscope.core.errors import ModelError
from convscope.network.load import load
from convscope.trace.layers import Ends, ends
from tests import nets

KNOWN = {
    "zfnet:width=0.0625,fc=64": ("pool1", "pool5", "relu7"),
    "alexnet:width=0.0625,fc=64,norm=lrn": ("pool1", "pool5", "relu7"),
    "torchvision:squeezenet1_0:weights=none": ("features.2", "features.12", "features.12"),
    "torchvision:resnet18:weights=none": ("maxpool", "layer4.1", "avgpool"),
}


@pytest.mark.parametrize("spec", KNOWN)
def test_layers_1_5_and_7_are_found(spec: str) -> None:
    network = load(spec)
    before = nets.state_of(network.model)
    assert ends(network.model, network.preprocess.shape) == Ends(*KNOWN[spec])
    assert nets.state_of(network.model) == before


def test_a_lone_convolution_is_all_three() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    assert ends(net, (3, 9, 7)) == Ends("1", "1", "1")


def test_a_network_without_convolution_is_refused() -> None:
    with pytest.raises(ModelError, match="no convolution"):
        ends(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))


def test_a_network_of_double_precision_is_asked_in_it() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).to(torch.float64)
    assert ends(net, (3, 9, 7)) == Ends("0", "0", "0")


def test_flattening_and_dropout_are_no_layers() -> None:
    head = (nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), *head).train()
    assert ends(net, (3, 9, 7)) == Ends("0", "0", "1")
