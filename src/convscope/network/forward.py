"""Forward pass: run a network on pictures where it is and in its precision; refuse NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError
from convscope.lens.lens import run_with_hooks
from convscope.lens.twin import bare
from convscope.network.network import Network
from convscope.trace.batch_size import fitting, sizes

T = TypeVar("T")
MADE = "network.preprocess.tensor(network.preprocess.framing(picture))"


NOT_IN_THIS_ORDER = "view size is not compatible"
"""How torch says that code wants numbers channel by channel in memory."""


def prepared(model: nn.Module | Network, images: Tensor) -> Float[Tensor, "b c h w"]:
    """Pictures where and in the precision in which the network computes; one picture is a batch
    of one. model: or what holds it, as `load` returns it. Raises UsageError U355 on anything but
    preprocessed pictures."""
    if not isinstance(images, Tensor):
        what = f"this is no picture for a network: {type(images).__name__}"
        raise UsageError("U355", "", what, next_step=f"preprocess it to a tensor: {MADE}")
    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or not images.is_floating_point() or not len(images):
        got = f"{tuple(images.shape)} in {str(images.dtype).removeprefix('torch.')}"
        step = "preprocess them to floating point, as (pictures, channels, height, width)"
        raise UsageError("U355", "", f"these are no pictures for a network: {got}", next_step=step)
    model = bare(model)
    known = model.parameters() if isinstance(model, nn.Module) else ()  # else Lens refuses it
    weights = (weight for weight in known if weight.is_floating_point())
    like = next(weights, images)
    images = images.detach().clone() if images.is_inference() else images.detach()
    return images.to(like.device, like.dtype)


def forward(network: Callable[[Tensor], Any], images: Float[Tensor, "b c h w"]) -> Any:
    """Run the network on a copy of pictures, as it may work in place, that lies pixel by pixel in
    memory, which is up to twice as fast on a CPU; channel by channel where its code needs that.

    network: a Lens, or what calls one. Raises ModelError M522 where it does not take pictures of
    this size, M574 where its code fails.
    """
    try:
        return network(images.clone(memory_format=torch.channels_last))
    except ModelError as fault:
        if NOT_IN_THIS_ORDER not in fault.what:
            raise
        return network(images.clone(memory_format=torch.contiguous_format))


def finite(layer: str, maps: Tensor) -> Tensor:
    """Raises ModelError M543 where there is a NaN or an infinity."""
    if not bool(torch.isfinite(maps).all()):
        raise ModelError(
            "M543", layer, "has NaN or infinite numbers", next_step="check the weights"
        )
    return maps


def wide(values: Tensor) -> Tensor:
    """In float32, unless it is more precise already."""
    return values if values.dtype == torch.float64 else values.float()


def surveyed(
    model: nn.Module, images: Float[Tensor, "b c h w"], see: Callable[[nn.Module, Tensor], T]
) -> tuple[list[tuple[str, T]], Any]:
    """As `run_with_hooks`. Raises ModelError M522 where the network cannot take such pictures."""
    found: tuple[list[tuple[str, T]], Any] = forward(
        lambda seen: run_with_hooks(model, seen, see), images
    )
    return found


def batch_size(model: nn.Module, images: Float[Tensor, "b c h w"]) -> int:
    """Variations of a picture at once. On an accelerator no more than on a CPU: where gradients
    are asked for, all layers' outputs are held."""
    return fitting(sizes(model, images[:1].clone()).largest, torch.device("cpu"))
