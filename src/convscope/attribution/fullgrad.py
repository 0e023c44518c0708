"""FullGrad: what the input and every bias bring to the score, and where.

Source: Srinivas and Fleuret 2019, "Full-Gradient Representation for Neural Network
Visualization". For a network of linear layers, rectifiers and pools the score is exactly
f(x) = ∇f·x + Σ b·∂f/∂b over all biases; how well that holds is part of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convscope.attribution.base import Request, enlarged
from convscope.attribution.cam import Map
from convscope.core.errors import ModelError
from convscope.lens.lens import Lens, gradients_of
from convscope.network.network import finite, forward, wide

SHOWN_BY_PGC = frozenset({"conv2d", "batch_norm"})
"""Of the biases, pytorch-grad-cam counts only those of convolutions and batch norms."""
COMPLETE = 1e-3
"""A relative gap larger than this is no rounding: the network is not piecewise linear."""
INCOMPLETE = (
    "incomplete: input and biases add up to {:.4g}, the score is {:.4g}; the network is not made "
    "of linear layers and rectifiers"
)
BIAS_AT = {
    "conv1d": 2, "conv2d": 2, "conv3d": 2, "linear": 2,
    "conv_transpose1d": 2, "conv_transpose2d": 2, "conv_transpose3d": 2,
}  # fmt: skip
"""Calls with a bias, and its place among their arguments."""
BATCH_NORM = (
    "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps",
)  # fmt: skip
"""Its arguments by place."""
Scale = Callable[[Float[Tensor, "b c h w"]], Tensor]


def all_biases(request: Request, scale: Scale, calls: frozenset[str] | None = None) -> Map:
    """One variant's map: how each layer's maps are scaled, and which calls count."""
    biases = Biases(request, scale, calls)
    images = request.images.clone().requires_grad_()
    with torch.enable_grad(), Lens(request.model, ()) as lens:
        with biases:
            output = forward(lens, images * 1)
        score = request.settle(output)
        if not score.requires_grad:
            raise ModelError("M540", "the score", "has no gradient with respect to the picture")
        (gradient,) = gradients_of(wide(score).sum(), [images])
        assert gradient is not None
    biases.take(finite("the picture", wide(gradient)) * wide(request.images.detach()))
    for number, total in enumerate(biases.sum):
        request.completeness(number, total, float(request.scores[number]), COMPLETE, INCOMPLETE)
    return biases.total


class Biases(TorchFunctionMode):
    """Sees every call that adds a bias, however it is spelled, and adds up what they bring."""

    def __init__(self, request: Request, scale: Scale, calls: frozenset[str] | None) -> None:
        super().__init__()
        self.request = request
        self.scale = scale
        self.calls = calls
        self.total = wide(request.images.new_zeros(len(request.images), *request.images.shape[2:]))
        # Millions of terms want float64, which Apple's devices do not have.
        exact = torch.float32 if request.images.device.type == "mps" else torch.float64
        self.sum = torch.zeros(len(request.images), dtype=exact, device=request.images.device)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        bias = _bias(getattr(func, "__name__", ""), args, kwargs)
        if bias is not None and isinstance(result, Tensor) and result.requires_grad:
            axis = result.dim() - 1 if func.__name__ == "linear" else 1
            shape = [1] * result.dim()
            shape[axis] = -1
            shown = self.calls is None or func.__name__ in self.calls
            bias = wide(bias.detach()).reshape(shape)
            turn = axis == 3  # a linear layer on (b, h, w, maps)

            def see(gradient: Tensor) -> None:
                part = wide(gradient) * bias
                self.take(part.permute(0, 3, 1, 2) if turn else part, shown=shown)

            result.register_hook(see)  # type: ignore[no-untyped-call]
        return result

    def take(self, part: Float[Tensor, "b ..."], *, shown: bool = True) -> None:
        """Add one layer's bias-gradients, or the picture's own part."""
        # Of windows of a picture (Swin) there are several rows, those of one picture together.
        self.sum += part.reshape(len(self.sum), -1).sum(1, dtype=self.sum.dtype)
        if shown and part.dim() == 4 and len(part) == len(self.sum):
            small = self.scale(part.abs()).sum(1)
            self.total += enlarged(small, self.total.shape[1:])


def _bias(name: str, args: Any, kwargs: Any) -> Tensor | None:
    """What this call adds whatever its input: a bias, or what eval-mode batch norm amounts to."""
    if name in BIAS_AT:
        place = BIAS_AT[name]
        bias: Tensor | None = args[place] if len(args) > place else kwargs.get("bias")
        return bias
    if name != "batch_norm":
        return None
    given: dict[str, Any] = {"weight": None, "bias": None, "eps": 1e-5}
    given |= dict(zip(BATCH_NORM, args, strict=False)) | kwargs
    if given.get("training"):
        return None
    scale = (given["running_var"] + given["eps"]).rsqrt()
    scale = scale if given["weight"] is None else scale * given["weight"]
    shift: Tensor = -given["running_mean"] * scale
    return shift if given["bias"] is None else shift + given["bias"]


def together(part: Float[Tensor, "b c h w"]) -> Tensor:
    """Scaled to [0, 1] over all maps of the layer together, so that the biases' sizes count."""
    flat = part.flatten(1)
    low, high = flat.amin(1)[:, None, None, None], flat.amax(1)[:, None, None, None]
    return (part - low) / torch.where(high > low, high - low, 1)


def alone(part: Float[Tensor, "b c h w"]) -> Tensor:
    """Each map scaled to [0, 1] alone, after which the biases' sizes are gone."""
    low = part.amin((2, 3), keepdim=True)
    return (part - low) / (1e-7 + (part - low).amax((2, 3), keepdim=True))
