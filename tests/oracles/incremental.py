"""A network asked about changed pictures the slow way: one whole pass a position."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convscope.trace.forward.plan import Patches


def asked(model: Callable[[Tensor], Tensor], picture: Tensor, patches: Patches) -> Tensor:
    """The scores (positions, classes). The rectangle is written pixel by pixel."""
    rows, columns = patches.size
    found = []
    for top in patches.tops:
        for left in patches.lefts:
            changed = picture.clone()
            for row in range(rows):
                for column in range(columns):
                    moving = patches.fill.shape[1:] == patches.size
                    at = (row, column) if moving else (top + row, left + column)
                    changed[:, top + row, left + column] = patches.fill[:, at[0], at[1]]
            with torch.no_grad():
                found.append(model(changed[None])[0])
    return torch.stack(found)


def settled(net: nn.Module, seed: int = 0) -> nn.Module:
    """With uneven statistics in all batch norms and filters that keep signals alive, in eval mode
    and double precision."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
            if module.running_mean is not None and module.running_var is not None:
                nn.init.normal_(module.running_mean, 0.0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return net.double().eval()
