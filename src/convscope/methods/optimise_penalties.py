"""What should a picture that is made for a network not be?

Too bright, or too rough. Each penalty takes u (c, h, w): the picture less mid-grey, in halves of
the range from black to white, so that black is −1 and white 1. Each is a mean over the places, so
a weight means the same at every size; a paper's weight of a sum is ours divided by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.errors import UsageError, nearest

Penalty = Callable[[Float[Tensor, "c h w"]], Float[Tensor, ""]]


def alpha_norm(u: Float[Tensor, "c h w"], alpha: float = 6) -> Float[Tensor, ""]:
    """Σ |u|^α over the colours: a wall around what pixels can be, the steeper the larger α.

    Source: Mahendran and Vedaldi 2015, §2, R_α. With α = 2 that of Simonyan, Vedaldi and
    Zisserman 2013, equation 1.
    """
    return u.abs().pow(alpha).sum() / u[0].numel()


def total_variation(u: Float[Tensor, "c h w"], beta: float = 2) -> Float[Tensor, ""]:
    """Σ ((u_right − u)² + (u_below − u)²)^(β/2) over the colours; none beyond the border.

    Source: Mahendran and Vedaldi 2015, §2, R_Vβ.
    """
    right = F.pad(u[:, :, 1:] - u[:, :, :-1], (0, 1))
    below = F.pad(u[:, 1:] - u[:, :-1], (0, 0, 0, 1))
    squares = right.square() + below.square()
    if beta != 2:
        # Where nothing varies the root has no derivative; a hair's breadth gives it one.
        squares = (squares + torch.finfo(u.dtype).eps).pow(beta / 2)
    return squares.sum() / u[0].numel()


PENALTIES: Mapping[str, Penalty] = {
    "l2": lambda u: alpha_norm(u, 2),
    "alpha": alpha_norm,
    "tv": total_variation,
}
"""‖u‖², ‖u‖⁶ with exponent 6, and total variation with β = 2."""


def penalty(u: Float[Tensor, "c h w"], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """Σ weight × penalty. Raises UsageError U365 if there is no such penalty."""
    total = u.new_zeros(())
    for name, weight in weights.items():
        if name not in PENALTIES:
            raise UsageError("U365", name, f"no such penalty; {nearest(name, PENALTIES)}")
        total = total + weight * PENALTIES[name](u)
    return total


def blurred(u: Float[Tensor, "c h w"], sigma: float) -> Float[Tensor, "c h w"]:
    """Gaussian blur with a standard deviation of `sigma` pixels; the border's colour goes on."""
    reach = max(1, round(3 * sigma))
    places = torch.arange(-reach, reach + 1, dtype=u.dtype, device=u.device)
    bell = torch.exp(-0.5 * (places / sigma) ** 2)
    bell = (bell / bell.sum()).expand(len(u), 1, 1, -1)
    padded = F.pad(u[None], (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(padded, bell, groups=len(u))
    return F.conv2d(across, bell.transpose(2, 3), groups=len(u))[0]
