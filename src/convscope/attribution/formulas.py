"""How do activations and gradients become a map? The formulas of the CAM family.

Notation: A_k(i, j) is feature map k of the layer, y the target's score, g = ∂y/∂A. Each formula
takes a `Request` and a layer's name and gives the raw maps (b, h, w) at the layer's own size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.attribution.base import ForwardPass

Map = Float[Tensor, "b h w"]
Formula = Callable[[ForwardPass, str], Tensor]
CANCELLED = 1e-3
"""|ΣA_k| below this part of Σ|A_k| means that XGrad-CAM divides by what is left of a difference."""


def weighted(weights: Float[Tensor, "b k"], A: Float[Tensor, "b k h w"]) -> Map:
    """ReLU(Σ w_k A_k)."""
    return F.relu((weights[:, :, None, None] * A).sum(1))


def gradcam(sight: ForwardPass, layer: str) -> Map:
    return weighted(sight.gradient(layer).mean((2, 3)), sight.activation(layer))


def gradcam_plus_plus(sight: ForwardPass, layer: str) -> Map:
    """As in the authors' code, 0/0 counts as 0, and α is normalised where the gradient is
    positive. The factor e^y of the exponential score scales the whole map; it is left out."""
    A, g = sight.activation(layer), sight.gradient(layer)
    below = 2 * g**2 + A.sum((2, 3), keepdim=True) * g**3
    alpha = g**2 / torch.where(below != 0, below, 1)
    norm = torch.where(g > 0, alpha, 0).sum((2, 3), keepdim=True)
    alpha = alpha / torch.where(norm != 0, norm, 1)
    return weighted((alpha * F.relu(g)).sum((2, 3)), A)


def gradcam_plus_plus_of_pgc(sight: ForwardPass, layer: str) -> Map:
    """1e-6 in the denominator, which outweighs the gradients' own squares; α not normalised."""
    A, g = sight.activation(layer), sight.gradient(layer)
    alpha = g**2 / (2 * g**2 + A.sum((2, 3), keepdim=True) * g**3 + 1e-6)
    return weighted((torch.where(g != 0, alpha, 0) * F.relu(g)).sum((2, 3)), A)


def xgradcam(sight: ForwardPass, layer: str) -> Map:
    """A map that adds up to exactly 0 gets no weight. Notes where the quotient is unstable."""
    A, g = sight.activation(layer), sight.gradient(layer)
    total = A.sum((2, 3))
    unstable = (total.abs() < CANCELLED * A.abs().sum((2, 3))) | (total < 0)
    for picture in unstable.any(1).nonzero()[:, 0].tolist():
        count = int(unstable[picture].sum())
        text = f"unstable: {count} of {A.shape[1]} maps of {layer} add up to almost 0 or less"
        sight.case.note(picture, text)
    w = (A * g).sum((2, 3)) / torch.where(total != 0, total, 1)
    return weighted(torch.where(total != 0, w, 0), A)


def xgradcam_of_pgc(sight: ForwardPass, layer: str) -> Map:
    """1e-7 added to every sum."""
    A, g = sight.activation(layer), sight.gradient(layer)
    return weighted((g * A / (A.sum((2, 3), keepdim=True) + 1e-7)).sum((2, 3)), A)


def layercam(sight: ForwardPass, layer: str) -> Map:
    return F.relu((F.relu(sight.gradient(layer)) * sight.activation(layer)).sum(1))


def eigencam(sight: ForwardPass, layer: str) -> Map:
    """Signed: where the projection is negative, the layer is active in another way."""
    A = sight.activation(layer)
    return torch.stack([_principal(maps, maps.norm(dim=0), centred=False) for maps in A])


def eigencam_of_pgc(sight: ForwardPass, layer: str) -> Map:
    """Centred. The library leaves the sign to chance; here it agrees with activation strength."""
    A = sight.activation(layer)
    return torch.stack([_principal(maps, maps.norm(dim=0), centred=True) for maps in A])


def eigengradcam(sight: ForwardPass, layer: str) -> Map:
    """The sign is the one that agrees with Σ g∘A, what speaks for the target."""
    both = sight.gradient(layer) * sight.activation(layer)
    return torch.stack([_principal(maps, maps.sum(0), centred=True) for maps in both])


def _principal(
    maps: Float[Tensor, "k h w"], strength: Float[Tensor, "h w"], *, centred: bool
) -> Float[Tensor, "h w"]:
    """The (hw × k) matrix times its first right singular vector.

    From the Gram matrix of its smaller side, in float64, which is faster than a singular value
    decomposition and more precise than one in float32. Of the two signs, which mean the same to
    the mathematics, the one that agrees with `strength`.
    """
    rows = maps.flatten(1).T.cpu().double()  # not every device computes in float64
    rows = rows - rows.mean(0) if centred else rows
    if rows.shape[0] <= rows.shape[1]:
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        projection = vectors[:, -1] * values[-1].clamp(min=0).sqrt()
    else:
        projection = rows @ torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]
    agrees = bool((projection * strength.flatten().cpu().double()).sum() >= 0)
    turned: Tensor = projection if agrees else -projection
    return turned.reshape(maps.shape[1:]).to(maps)
