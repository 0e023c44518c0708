"""CAM formulas: Grad-CAM, Grad-CAM++, XGrad-CAM, LayerCAM, Eigen-CAM and others, in one table.

Notation: A_k(i, j) is feature map k of the layer, y the target's score, usually the logit,
g = ∂y/∂A. Each formula takes a forward pass and a layer's name and gives the raw maps (b, h, w) at
the layer's own size. Each is by its authors' definition; a library's different habit is a variant
by name. Nothing is scaled, except by the variant pytorch-grad-cam, which does as that library does.

To add a CAM: its formula here, whose docstring becomes the method's and names the source; one entry
in `CAMS` below, under `AUTHORS` in its variants; the same by hand in `tests/oracles/cam.py`, with
one line in `FROM_GRADIENTS` of `tests/attribution/test_cam.py`; and its name in the help of
`cli/explain.py`. Its function, its name in `attribute`, in commands, pages and checks, and its row
in docs/cam.md follow from the entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.attribution import cam_passes
from convscope.attribution.base import AUTHORS, ForwardPass, Method
from convscope.attribution.cam import PGC, Definition, Enlarge, Map, method, to_one, weighted
from convscope.core.text import Table

CANCELLED = 1e-3
"""|ΣA_k| below this part of Σ|A_k| means that XGrad-CAM divides by what is left of a difference."""


def gradcam(run: ForwardPass, layer: str) -> Map:
    """ReLU(Σ w_k A_k) with w_k = mean_ij g: maps, each as important as its mean gradient.

    Source: Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.
    """
    return weighted(run.gradient(layer).mean((2, 3)), run.activation(layer))


def gradcam_plus_plus(run: ForwardPass, layer: str) -> Map:
    """As Grad-CAM with w_k = Σ_ij α ReLU(g), α = g² / (2g² + (ΣA_k) g³): each place of a map
    counts for itself, so that several objects of the class are found.

    Valid where the score is an exponential of y, as the authors assume; its factor e^y scales the
    whole map and is left out. α is normalised where g > 0, and 0/0 counts as 0, as in their code.
    Source: Chattopadhyay et al. 2018, "Grad-CAM++", equation 19.
    """
    A, g = run.activation(layer), run.gradient(layer)
    below = 2 * g**2 + A.sum((2, 3), keepdim=True) * g**3
    alpha = g**2 / torch.where(below != 0, below, 1)
    norm = torch.where(g > 0, alpha, 0).sum((2, 3), keepdim=True)
    alpha = alpha / torch.where(norm != 0, norm, 1)
    return weighted((alpha * F.relu(g)).sum((2, 3)), A)


def gradcam_plus_plus_of_pgc(run: ForwardPass, layer: str) -> Map:
    """1e-6 in the denominator, which outweighs the gradients' own squares; α not normalised."""
    A, g = run.activation(layer), run.gradient(layer)
    alpha = g**2 / (2 * g**2 + A.sum((2, 3), keepdim=True) * g**3 + 1e-6)
    return weighted((torch.where(g != 0, alpha, 0) * F.relu(g)).sum((2, 3)), A)


def xgradcam(run: ForwardPass, layer: str) -> Map:
    """As Grad-CAM with w_k = Σ_ij (A_k / ΣA_k) g: gradients weighed by where the map is active.

    Equal to Grad-CAM behind a rectifier and before a global average pool. A map that adds up to
    exactly 0 gets no weight. Unstable, with a note in the result, where ΣA_k is almost 0 or
    negative, as before a rectifier.
    Source: Fu et al. 2020, "Axiom-based Grad-CAM", equation 11.
    """
    A, g = run.activation(layer), run.gradient(layer)
    total = A.sum((2, 3))
    unstable = (total.abs() < CANCELLED * A.abs().sum((2, 3))) | (total < 0)
    for picture in unstable.any(1).nonzero()[:, 0].tolist():
        count = int(unstable[picture].sum())
        text = f"unstable: {count} of {A.shape[1]} maps of {layer} add up to almost 0 or less"
        run.request.note(picture, text)
    w = (A * g).sum((2, 3)) / torch.where(total != 0, total, 1)
    return weighted(torch.where(total != 0, w, 0), A)


def xgradcam_of_pgc(run: ForwardPass, layer: str) -> Map:
    """1e-7 added to every sum."""
    A, g = run.activation(layer), run.gradient(layer)
    return weighted((g * A / (A.sum((2, 3), keepdim=True) + 1e-7)).sum((2, 3)), A)


def ablationcam(run: ForwardPass, layer: str) -> Map:
    """As Grad-CAM with w_k = (y − y_k) / y, y_k the score with map k set to zero. No gradients.

    Computed by exact short cuts. Where y ≤ 0, |y| divides, with a note in the result. Variant
    "slope": (y − y_k) / ‖A_k‖, the form that the authors derive theirs from.
    Source: Desai and Ramaswamy 2020, "Ablation-CAM", equations 1 and 3.
    """
    return cam_passes.by_ablation(run, layer, cam_passes.drop_over_score)


def scorecam(run: ForwardPass, layer: str) -> Map:
    """As Grad-CAM with w_k the target's probability if the network sees only what map k lights
    up: the picture times the map, enlarged and scaled to [0, 1]. No gradients; flat maps have no
    weight. As many runs as maps.

    That is the authors' code. Variant "paper" (or "softmax") is their algorithm 1: logits above
    those of an empty picture, through a softmax over the maps.
    Source: Wang et al. 2020, "Score-CAM".
    """
    return cam_passes.by_masks(run, layer, cam_passes.WAYS[AUTHORS])


def eigencam(run: ForwardPass, layer: str) -> Map:
    """The activations (hw × maps), not centred, times their first right singular vector: what the
    layer responds to most. Not about a class, whatever the target.

    The sign, which the mathematics leaves open, agrees with the strength of the activations; where
    the projection is negative, the layer is active in another way.
    Source: Muhammad and Yeasin 2020, "Eigen-CAM".
    """
    A = run.activation(layer)
    return torch.stack([_principal(maps, maps.norm(dim=0), centred=False) for maps in A])


def eigencam_of_pgc(run: ForwardPass, layer: str) -> Map:
    """Centred. The library leaves the sign to chance; here it agrees with activation strength."""
    A = run.activation(layer)
    return torch.stack([_principal(maps, maps.norm(dim=0), centred=True) for maps in A])


def eigengradcam(run: ForwardPass, layer: str) -> Map:
    """The first principal component of g∘A, its sign so that it agrees with Σ g∘A.

    There is no paper: Jacob Gildenblat's pytorch-grad-cam made it up, leaving the sign to chance.
    """
    both = run.gradient(layer) * run.activation(layer)
    return torch.stack([_principal(maps, maps.sum(0), centred=True) for maps in both])


def layercam(run: ForwardPass, layer: str) -> Map:
    """ReLU(Σ ReLU(g) A_k), place by place, so that shallow layers give fine maps.

    Of several layers: tanh(2 M / max M) of all but the deepest, which is divided by its maximum,
    then the largest at each place.
    Source: Jiang et al. 2021, "LayerCAM", equations 6 to 8.
    """
    return F.relu((F.relu(run.gradient(layer)) * run.activation(layer)).sum(1))


def layercam_fused(raws: list[Tensor], enlarge: Enlarge) -> Float[Tensor, "b height width"]:
    """Source: Jiang et al. 2021, equation 8, with γ = 2."""
    *shallow, deepest = (to_one(raw) for raw in raws)
    maps = [*(torch.tanh(2 * one) for one in shallow), deepest]
    return torch.stack([enlarge(one) for one in maps]).amax(0)


def fullgrad(run: ForwardPass, layer: str) -> Map:  # noqa: ARG001
    """ψ(∇f∘x) + Σ over layers and maps of ψ(bias-gradient), ψ the absolute value, scaled over all
    maps of the layer together and enlarged. Takes no layer: every bias of the network counts,
    batch normalisation's −μγ/σ + β too.

    `origin["completeness"]` says how well f(x) = ∇f·x + Σ bias-gradients holds.
    Source: Srinivas and Fleuret 2019, "Full-Gradient Representation", equations 3 and 5.
    """
    return cam_passes.all_biases(run.request, cam_passes.together)


def fullgrad_of_pgc(run: ForwardPass, layer: str) -> Map:  # noqa: ARG001
    """Each map scaled alone; of the biases only those of convolutions and batch norms."""
    return cam_passes.all_biases(run.request, cam_passes.alone, cam_passes.SHOWN_BY_PGC)


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


CAMS: Mapping[str, Definition] = {
    "gradcam": Definition(
        "Grad-CAM",
        {AUTHORS: gradcam, PGC: gradcam},
        "w_k = mean of g over the positions",
        "Selvaraju et al. 2017",
    ),
    "gradcam++": Definition(
        "Grad-CAM++",
        {AUTHORS: gradcam_plus_plus, PGC: gradcam_plus_plus_of_pgc},
        "α = g² / (2g² + (ΣA_k) g³), normalised where g > 0; w_k = Σ α ReLU(g)",
        "Chattopadhyay et al. 2018",
        epsilon={PGC: 1e-6},
    ),
    "xgradcam": Definition(
        "XGrad-CAM",
        {AUTHORS: xgradcam, PGC: xgradcam_of_pgc},
        "w_k = Σ (A_k / ΣA_k) g",
        "Fu et al. 2020",
        epsilon={PGC: 1e-7},
    ),
    "ablationcam": Definition(
        "Ablation-CAM",
        {
            AUTHORS: ablationcam,
            "slope": partial(cam_passes.by_ablation, weigh=cam_passes.slope),
            PGC: partial(cam_passes.by_ablation, weigh=cam_passes.plain),
        },
        "w_k = (y − y_k) / y, y_k without map k",
        "Desai and Ramaswamy 2020",
        runs="1 and a bit, see below",
        gradient=False,
    ),
    "scorecam": Definition(
        "Score-CAM",
        {
            AUTHORS: scorecam,
            **{
                name: partial(cam_passes.by_masks, way=cam_passes.WAYS[name])
                for name in ("paper", "softmax", PGC)
            },
        },
        "w_k = probability if only what map k lights up is seen",
        "Wang et al. 2020",
        runs="one a map",
        gradient=False,
        epsilon={PGC: cam_passes.WAYS[PGC].epsilon},
    ),
    "eigencam": Definition(
        "Eigen-CAM",
        {AUTHORS: eigencam, PGC: eigencam_of_pgc},
        "activations times their first singular vector; of no class",
        "Muhammad and Yeasin 2020",
        gradient=False,
    ),
    "eigengradcam": Definition(
        "EigenGrad-CAM",
        {AUTHORS: eigengradcam, PGC: eigengradcam},
        "first principal component of g∘A",
        "no paper; pytorch-grad-cam",
    ),
    "layercam": Definition(
        "LayerCAM",
        {AUTHORS: layercam, PGC: layercam},
        "w = ReLU(g), place by place",
        "Jiang et al. 2021",
        fuse=layercam_fused,
        fusion="tanh(2 M / max M) of the shallow layers, then the maximum",
    ),
    "fullgrad": Definition(
        "FullGrad",
        {AUTHORS: fullgrad, PGC: fullgrad_of_pgc},
        "|∇f∘x| and every layer's |bias-gradients|, enlarged and added",
        "Srinivas and Fleuret 2019",
        takes_layers=False,
        epsilon={PGC: 1e-7},
    ),
}
"""What each CAM is made of, by the names that commands and pages use."""

METHODS: Mapping[str, Method] = {name: method(name, made) for name, made in CAMS.items()}
"""`(model, images, layer=None, **CamOptions) -> list[Attribution]` by name."""
CAM = type("CAM", (), {one.__name__: staticmethod(one) for one in METHODS.values()})
"""The same, as another process finds them."""


def table() -> Table:
    """Of docs/cam.md."""
    head = ("name", "weight or map", "runs", "gradient", "source")
    rows = [
        (f"`{name}`", one.weight, one.runs, "yes" if one.gradient else "no", one.source)
        for name, one in CAMS.items()
    ]
    return Table.of(head, rows)
