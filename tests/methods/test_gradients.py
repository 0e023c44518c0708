"""Is every map of the gradient family what its authors define?"""

from __future__ import annotations

import numpy as np
import torch

from convscope.methods.gradients import METHODS
from tests.methods.cam_nets import net_of, pictures


def test_saliency_is_the_largest_size_of_the_colours_gradients() -> None:
    net, images = net_of("linear layers, as VGG"), pictures(2)
    found = METHODS["saliency"](net, images, target=2)
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net.eval()(x)[:, 2].sum(), x)
    assert expected.abs().max() > 1e-3
    for one, gradient in zip(found, expected.numpy(), strict=True):
        assert np.allclose(one.pixels, gradient, atol=1e-9)
        assert np.allclose(one.values, np.abs(gradient).max(0), atol=1e-9)
