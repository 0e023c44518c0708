"""What does a network answer to one picture, so that gradients reach the picture?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.attribution.reshape import as_maps
from convscope.errors import ModelError, UsageError
from convscope.lens.lens import Lens
from convscope.network.forward import forward

Look = Callable[[Float[Tensor, "c h w"]], Any]


@contextmanager
def sight(model: nn.Module, layer: str | None) -> Iterator[Look]:
    """Gives a function from one picture to the layer's output, or without a layer to the
    network's. The network runs no further than it must, in eval mode, on a twin; gradients go
    to the picture alone. Raises as Lens and `forward` do.
    """
    layers = () if layer is None else (layer,)
    with torch.inference_mode(False), torch.enable_grad(), Lens(model, layers) as lens:

        def look(picture: Tensor) -> Any:
            entering = fitted(model, picture)
            if layer is None:
                return forward(lens, entering)
            forward(lens.reach, entering)
            return lens[layer]

        yield look


def fitted(model: nn.Module, picture: Float[Tensor, "c h w"]) -> Float[Tensor, "1 c h w"]:
    """The picture where and in the precision in which the network computes."""
    like = next((weight for weight in model.parameters() if weight.is_floating_point()), picture)
    return picture[None].to(like.device, like.dtype)


def canvas(model: nn.Module, picture: Tensor) -> Float[Tensor, "c h w"]:
    """A picture to work on: where the network is, in float64 if it computes so, else float32.

    Raises UsageError U367 unless it is one picture (c, h, w) of finite numbers.
    """
    if picture.dim() == 4 and len(picture) == 1:
        picture = picture[0]
    if picture.dim() != 3 or 0 in picture.shape or not picture.is_floating_point():
        what = f"{tuple(picture.shape)} is not one preprocessed picture (colours, height, width)"
        raise UsageError("U367", "picture", what)
    if not bool(torch.isfinite(picture).all()):
        raise UsageError("U367", "picture", "has NaN or infinite numbers")
    like = next((weight for weight in model.parameters() if weight.is_floating_point()), picture)
    kind = torch.float64 if like.dtype == torch.float64 else torch.float32
    return picture.detach().clone().to(like.device, kind)


def maps(layer: str, output: Tensor, picture: Tensor) -> Float[Tensor, "k h w"]:
    """A layer's feature maps; the units of a fully connected layer are maps of one place.

    Raises ModelError M542 where there are no maps of the picture.
    """
    if output.dim() == 2:
        return output[0, :, None, None]
    try:
        return as_maps(tuple(output.shape), (picture.shape[1], picture.shape[2]))(output)[0]
    except ModelError as fault:
        raise ModelError("M542", layer, fault.what, next_step="name another layer") from fault
