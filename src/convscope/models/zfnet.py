"""What is ZFNet, the network of the paper?"""

from __future__ import annotations

from typing import Unpack

from torch import nn

from convscope.models.tower import Init, Kernel, Options, build, tower

SIZE = 224
"""Rows and columns of the input that the paper draws."""
KERNELS = (Kernel(7, stride=2, padding=1), Kernel(5, stride=2))


def zfnet(
    classes: int = 1000, *, init: Init | None = "he", seed: int = 0, **options: Unpack[Options]
) -> nn.Sequential:
    """ZFNet with named layers: conv1 relu1 pool1 [norm1] conv2 … pool5 avgpool flatten fc6 … fc8.

    On 224 × 224 pixels its maps have 110, 55, 26, 13 and 6 rows, as drawn; padding, which the
    paper does not give, follows from these: conv1 1, conv2 0, pools rounding up. `avgpool`
    changes nothing at that size and lets the network take others. Options: see `Tower`;
    `width=0.5` is the half-width network of the tutorials.

    Raises UsageError U230 for an unknown option, U231 for an impossible value.
    Source: Zeiler and Fergus 2014, figure 3.
    """
    return build(
        tower(options), KERNELS, classes=classes, norm_before_pool=False, init=init, seed=seed
    )
