"""Which layers of a network hold its feature maps?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from convscope.lens.lens import layers_in_order
from convscope.lens.twin import Twin


def feature_layers(model: nn.Module, *args: Any) -> list[str]:
    """All two-dimensional convolutions, in the order in which this input meets them.

    A convolution that goes straight into a batch normalisation is represented by that: its scale
    may be negative, and then what excites the convolution silences the feature.
    """
    args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
    names = layers_in_order(model, *args)
    modules = Twin(model).modules  # also of what a wrapper holds
    found = []
    for name, following in zip(names, [*names[1:], ""], strict=True):
        layer, after = (modules.get(n.partition("#")[0]) for n in (name, following))
        if isinstance(layer, nn.Conv2d):
            normed = isinstance(after, nn.BatchNorm2d) and after.num_features == layer.out_channels
            found.append(following if normed else name)
    return found


def chosen_layers(
    model: nn.Module, layers: Sequence[str] | str | None, picture: Tensor
) -> list[str]:
    """The layers named, one or several; by default the `feature_layers`.

    Raises ModelError M522 if the network does not take the picture.
    """
    if layers is None:
        return feature_layers(model, picture)
    return [layers] if isinstance(layers, str) else list(layers)
