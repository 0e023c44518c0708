"""How does a network run many batches of one size without moving its weights each time?

oneDNN brings the weights of a convolution into an order of its own in every call; which order
depends on the size of what comes in. For batches of a chosen number of pictures they are kept in
it, from the first one on: with weights that are laid out some sums are taken in another order, so
equal batches must all be computed in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.lens.incremental_packed import lays_out
from convscope.lens.twin import Twin


class Laid(dict[Sequence[int], Tensor]):
    """The weights as they are laid out for each size of a batch; no plain dict, so that a twin
    does not take them for a network's own."""


class LaidOut(nn.Conv2d):
    """A convolution whose weights are kept as they are wanted for batches of one size."""

    _batch: int
    _sizes: Laid

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out r k"]:
        """As nn.Conv2d; quicker for a batch of the chosen size, without gradients."""
        usual = torch.is_grad_enabled() or not _is_usual(input)
        if usual or len(input) != self._batch:
            return super().forward(input)
        size = tuple(input.shape)
        if size not in self._sizes:
            self._sizes[size] = self._laid(size)
        laid = self._sizes[size]
        call: Callable[..., Tensor] = torch.ops.mkldnn._convolution_pointwise
        how = (self.padding, self.stride, self.dilation, 1, "none", (), "")
        return call(input, laid, self.bias, *how)

    def _laid(self, size: Sequence[int]) -> Tensor:
        lay: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
        how = (self.padding, self.stride, self.dilation, 1)
        return lay(self.weight.detach().to_mkldnn(), *how, list(size))


def _is_usual(x: Tensor) -> bool:
    fits = x.dim() == 4 and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return fits and x.is_contiguous(memory_format=torch.channels_last)


def laid_out(model: nn.Module, batch: int) -> nn.Module:
    """A twin with such convolutions, where it has any that oneDNN computes; else the model.

    batch: how many pictures come at a time; any other number is computed as ever.
    For one job, in which no weight changes. Raises ModelError as `Twin`.
    """
    twin = Twin(model).model
    found = [module for module in twin.modules() if type(module) is nn.Conv2d and _can(module)]
    for module in found:
        module.__class__ = LaidOut
        module.__dict__.update(_batch=batch, _sizes=Laid())
    return twin if found else model


def _can(conv: nn.Conv2d) -> bool:
    plain = conv.groups == 1 and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    hooked = conv._forward_pre_hooks or "weight" not in conv._parameters
    return plain and not hooked and conv.weight is not None and lays_out(conv.weight)
