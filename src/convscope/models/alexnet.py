"""What is AlexNet, as one dense tower?"""

from __future__ import annotations

from typing import Unpack

from torch import nn

from convscope.models.tower import Init, Kernel, Options, build, tower

SIZE = 227
"""Rows and columns of the input; the printed 224 does not give 55 rows after conv1."""
KERNELS = (Kernel(11, stride=4), Kernel(5, padding=2))


def alexnet(
    classes: int = 1000, *, init: Init | None = "he", seed: int = 0, **options: Unpack[Options]
) -> nn.Sequential:
    """AlexNet with named layers: conv1 relu1 [norm1] pool1 conv2 … pool5 avgpool flatten fc6 … fc8.

    On 227 × 227 pixels its maps have 55, 27, 13 and 6 rows. One tower that sees all maps, where
    the original splits conv2, conv4 and conv5 over two graphics cards. Options: see `Tower`.

    Raises UsageError U230 for an unknown option, U231 for an impossible value.
    Source: Krizhevsky, Sutskever and Hinton 2012, §3.5; one tower: Zeiler and Fergus 2014, §3.
    """
    return build(
        tower(options), KERNELS, classes=classes, norm_before_pool=True, init=init, seed=seed
    )
