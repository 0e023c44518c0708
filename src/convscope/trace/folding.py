"""Batch normalisation folded into the convolution before it.

In evaluation mode a normalisation multiplies and shifts each map by numbers of its own, which may
as well be done to the convolution's weights. The outputs are the same but for rounding. That is
tested on the network itself each time: what else reads a convolution's output is not to be seen
from outside, and then the outputs are not the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from convscope.lens.lens import HOOK, Lens, tensors_in
from convscope.lens.torch_private import version
from convscope.lens.twin import ShadowModel

ROUNDING = 1e-4
"""Of the largest output: what rounding may add up to in a deep network. Where something else reads
a convolution's output the difference is as large as the outputs."""
Numbers = Float[Tensor, "c"]


def scale_of(var: Numbers, weight: Numbers | None, eps: float) -> Numbers:
    """By what a batch normalisation with these running statistics multiplies each map."""
    scale = (var + eps).rsqrt()
    return scale if weight is None else scale * weight


def fold(
    weight: Float[Tensor, "out in k l"],
    bias: Numbers | None,
    norm: Sequence[Numbers | None],
    eps: float,
) -> tuple[Float[Tensor, "out in k l"], Numbers]:
    """Weights and biases of a convolution that normalises its maps as well, by way of float64.

    norm: running mean, running variance, weight and bias.
    """
    wide: list[Any] = [
        one if one is None else one.detach().double() for one in (weight, bias, *norm)
    ]
    filters, added, mean, var, scale, shift = wide
    fused = fuse_conv_bn_weights(filters, added, mean, var, eps, scale, shift)
    filters, added = (one.detach().to(weight.dtype) for one in fused)
    return filters, added


def folded(
    model: nn.Module, picture: Float[Tensor, "1 c h w"], layers: Sequence[str] = ()
) -> tuple[nn.Module, int]:
    """A shadow with batch normalisations folded, and how many; the model itself is not touched.

    layers: those whose outputs are wanted, besides the network's own; a convolution among them is
    left alone. Without any to fold, or if an output differs by more than rounding, the model as it
    is and 0. Names stay as they are: a folded normalisation hands on what it is given.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *picture.shape[1:], generator=generator).to(picture)
    shadow = ShadowModel(model)
    pairs = _pairs(shadow, noise, layers)
    plain = _run(shadow.model, noise, layers) if pairs else []
    for conv, norm in pairs:
        _fold(conv, norm)
    if not pairs or not _same(plain, _run(shadow.model, noise, layers)):
        return model, 0
    return shadow.model, len(pairs)


def _pairs(
    shadow: ShadowModel, noise: Tensor, layers: Sequence[str]
) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolutions that go straight into a normalisation, each of which runs once."""
    kept = {shadow.modules.get(name.partition("#")[0]) for name in layers}
    came: dict[tuple[int, int], nn.Module] = {}  # an output not changed in place since
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()
    outputs: list[Tensor] = []  # alive, so that no two share an id

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        calls[module] += 1
        source = came.get((id(inputs[0]), version(inputs[0]))) if inputs else None
        if type(module) is nn.Conv2d and isinstance(output, Tensor):
            outputs.append(output)
            came[id(output), version(output)] = module
        elif type(module) is nn.BatchNorm2d and source is not None and _plain(module):
            pairs.append((source, module))  # type: ignore[arg-type]  # only these are in `came`

    watched = [m for m in shadow.model.modules() if type(m) in (nn.Conv2d, nn.BatchNorm2d)]
    for module in watched:
        module._forward_hooks[HOOK] = look
    with torch.inference_mode(False), torch.no_grad():
        shadow.run(noise.clone())
    for module in watched:
        del module._forward_hooks[HOOK]
    once = [p for p in pairs if calls[p[0]] == calls[p[1]] == 1 and p[0] not in kept]
    return [pair for pair in once if not any(map(_has_hooks, pair))]


def _plain(norm: nn.BatchNorm2d) -> bool:
    return norm.running_mean is not None and norm.running_var is not None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Both are shadows, whose tables of weights are their own."""
    numbers = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    with torch.no_grad():
        weight, bias = fold(conv.weight, conv.bias, numbers, norm.eps)
        conv._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        conv._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
    norm.__class__ = nn.Identity  # type: ignore[assignment]  # under all names that it has


def _run(model: nn.Module, noise: Tensor, layers: Sequence[str]) -> list[Tensor]:
    with Lens(model, layers) as lens, torch.inference_mode():
        output = [value.clone() for value in tensors_in(lens(noise.clone()))]
        return [*output, *(lens[layer] for layer in layers)]


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        bool((a - b).abs().max() <= ROUNDING * a.abs().max())
        for a, b in zip(one, other, strict=True)
        if a.is_floating_point() and a.numel()
    )
