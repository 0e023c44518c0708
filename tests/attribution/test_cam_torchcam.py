"""Do the maps agree with torch-cam where that library keeps to the authors' definitions?

It scales its maps to [0, 1], which is undone by comparing up to scale and shift.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convscope.attribution.formulas import METHODS

torchcam = pytest.importorskip("torchcam.methods")


class Net(nn.Module):
    """Not square, rectified, two layers worth looking at, a global average pool."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv1 = nn.Conv2d(3, 6, 5, stride=2, padding=2)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(self.pool(maps).flatten(1))


def theirs(kind: str, net: nn.Module, layer: str, image: Tensor, target: int) -> np.ndarray:
    for weight in net.parameters():
        weight.requires_grad_(True)
    with getattr(torchcam, kind)(net, layer) as method:
        scores = net(image)
        (found,) = method(target, scores, normalized=False)
    return np.asarray(found[0].detach())


@pytest.mark.parametrize(
    ("name", "kind"), [("gradcam", "GradCAM"), ("xgradcam", "XGradCAM"), ("layercam", "LayerCAM")]
)
@pytest.mark.parametrize("layer", ["relu1", "relu2"])
@pytest.mark.parametrize("target", [0, 3])
def test_gradient_cams_equal_torchcam_s(name: str, kind: str, layer: str, target: int) -> None:
    net = Net().double().eval()
    image = torch.randn(
        1, 3, 34, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    ours = METHODS[name](net, image, target=target, layer=layer)[0].raw
    peer = theirs(kind, net, layer, image, target)
    assert ours is not None
    if ours.max() == 0:
        assert peer.max() == 0
        return
    assert np.allclose(ours / ours.max(), peer / peer.max(), atol=1e-9)


def test_gradcam_plus_plus_differs_from_torchcam_s_as_the_documents_say() -> None:
    """It multiplies the sum of A and g³, not the sum of A by g³."""
    net = Net().double().eval()
    image = torch.randn(
        1, 3, 34, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    ours = METHODS["gradcam++"](net, image, target=1, layer="relu1")[0].raw
    peer = theirs("GradCAMpp", net, "relu1", image, 1)
    assert ours is not None
    assert ours.max() > 0
    assert not np.allclose(ours / ours.max(), peer / peer.max(), atol=1e-3)
