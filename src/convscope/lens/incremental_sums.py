"""What is a map's sum if only a window of it is new?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.lens.incremental_windows import Axis, Places


class Sums:
    """The sums of a map's windows without any patch, in float64: differences of large numbers."""

    def __init__(self, base: Float[Tensor, "1 c h w"]) -> None:
        table = base[0].double().cumsum(1).cumsum(2)
        self._table = F.pad(table, (1, 0, 1, 0)).permute(1, 2, 0).contiguous()

    def with_windows(
        self, fresh: Float[Tensor, "n c r k"], axes: tuple[Axis, Axis], at: tuple[Places, Places]
    ) -> Float[Tensor, "n c"]:
        """Sums over the whole map with each of these windows in its place."""
        device = fresh.device
        top, left = (
            torch.from_numpy(axis.at(a)).to(device) for axis, a in zip(axes, at, strict=True)
        )
        bottom, right = top + axes[0].size, left + axes[1].size
        t = self._table
        old = t[bottom, right] - t[top, right] - t[bottom, left] + t[top, left]
        return t[-1, -1] - old + fresh.sum((2, 3)).double()
