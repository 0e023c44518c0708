"""Are projections of real networks right, where another library or arithmetic can tell?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from convscope.core.units import Unit
from convscope.representations.deconvnet import deconvnet, project

torchvision = pytest.importorskip("torchvision")
attr = pytest.importorskip("captum.attr")
DATA = Path(__file__).parents[2].parent / "shared" / "data"


def not_in_place(net: nn.Module) -> nn.Module:
    """Captum asks for it."""
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return net


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    weights = DATA / "squeezenet1_0_imagenet.safetensors"
    if not weights.exists():
        pytest.skip("the trained SqueezeNet is not on this machine")
    net = torchvision.models.squeezenet1_0()
    net.load_state_dict(load_file(weights))
    return net.eval()


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """A goldfish."""
    folder = DATA / "imagenet-samples"
    if not folder.exists():
        pytest.skip("the ImageNet samples are not on this machine")
    from PIL import Image

    with Image.open(folder / "n01443537_goldfish.jpg") as file:
        picture = file.convert("RGB").resize((240, 224))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels - mean[:, None, None]) / std[:, None, None])[None]


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_captum_draws_the_same_of_a_trained_squeezenet(squeezenet, photograph, rule):
    units = [
        Unit("features.3.expand3x3", 37),
        Unit("features.8.expand1x1", 12),
        Unit("features.12.expand3x3", 92),
    ]
    # Of a class score nothing gets past this network's ninth layer under the deconvnet's rule:
    # all of its signal is negative there, but for rounding.
    target = 1 if rule == "guided" else None
    ours = deconvnet(squeezenet, photograph, units, target=target, rule=rule)
    captums = not_in_place(torchvision.models.squeezenet1_0()).eval()
    captums.load_state_dict(squeezenet.state_dict())
    Layered = attr.NeuronDeconvolution if rule == "deconvnet" else attr.NeuronGuidedBackprop
    Whole = attr.Deconvolution if rule == "deconvnet" else attr.GuidedBackprop
    x = photograph.clone().requires_grad_()

    def theirs(unit: Unit) -> Tensor:
        if unit.layer == "class":
            return Whole(captums).attribute(x, target=unit.channel)
        layer = captums.get_submodule(unit.layer)
        return Layered(captums, layer).attribute(x, (unit.channel, *unit.at))

    for record in ours:
        unit = Unit.parse(record.unit)
        with pytest.warns(UserWarning, match="backward hooks"):
            drawn = theirs(unit)[0].detach().numpy()
        expected = drawn if unit.layer == "class" else drawn * record.value
        largest = np.abs(expected).max()
        assert largest > 0
        assert np.abs(record.pixels - expected).max() <= 1e-5 * largest
    met = [2, 14, 23, 26][: len(ours)]  # 1 after conv1, 3 a fire module, 1 in its squeeze
    assert [record.rewritten for record in ours] == met
    assert [record.rectifiers for record in ours] == met


def test_the_strongest_first_layer_unit_of_a_photograph_is_drawn_as_its_own_filter(
    squeezenet, photograph
):
    """Seven by seven pixels of the filter, times the activation, and nothing else."""
    (record,) = deconvnet(squeezenet, photograph, [Unit("features.0", 78)])
    row, column = Unit.parse(record.unit).at
    patch = record.pixels[:, 2 * row : 2 * row + 7, 2 * column : 2 * column + 7]
    expected = record.value * squeezenet.features[0].weight[78].detach().numpy()
    assert np.allclose(patch, expected, rtol=1e-5, atol=0)
    assert np.count_nonzero(record.pixels) == np.count_nonzero(patch) > 0


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "googlenet", "densenet121", "alexnet"])
@pytest.mark.slow
def test_networks_of_torchvision_are_covered_and_windows_agree_with_autograd(name):
    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, weights=None, **options).train()
    x = torch.randn(1, 3, 224, 200)
    layers = [key for key, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    for layer in (layers[len(layers) // 4], layers[len(layers) // 2]):
        single = project(net, x[0], layer, [(3, 4, 5)])
        (guided,) = deconvnet(net, x, [Unit(layer, 3, (4, 5))], rule="guided")
        (record,) = deconvnet(net, x, [Unit(layer, 3, (4, 5))])
        assert record.rewritten == record.rectifiers == guided.rewritten > 0
        assert np.abs(single[0].numpy() - record.pixels).max() <= 1e-5 * record.origin["peak"]
    assert net.training
