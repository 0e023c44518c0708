"""Where in the picture is what speaks for a class, as far as a layer's feature maps show it?

Nine methods with one signature, each by its authors' definition; a library's different habit is a
variant by name. Notation: A_k(i, j) is feature map k of the layer, y the target's score, usually
the logit, g = ∂y/∂A. The raw map at the layer's own size is kept; `values` is the same enlarged
bilinearly to the picture's size. Nothing is scaled, except by the variant pytorch-grad-cam, which
does as that library does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Unpack

from convscope.attribution import ablationcam as ablation
from convscope.attribution import formulas
from convscope.attribution import fullgrad as biases
from convscope.attribution import scorecam as masks
from convscope.attribution.cam import (
    AUTHORS,
    PGC,
    Definition,
    Options,
    explain,
    layer_by_layer,
    layercam_fused,
    seen,
)
from convscope.network.arguments import Given, Layers, Model, several, taking
from convscope.network.provenance import recorded
from convscope.records.maps import Attribution

Method = Callable[..., list[Attribution]]
"""`(model, images, **Options) -> list[Attribution]`, one for each picture."""


@taking(images=several)
@recorded
def gradcam(
    model: Model, images: Given, layer: Layers = None, **how: Unpack[Options]
) -> list[Attribution]:
    """ReLU(Σ w_k A_k) with w_k = mean_ij g: maps, each as important as its mean gradient.

    Source: Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.
    """
    return explain(DEFINITIONS["gradcam"], model, images, layer=layer, **how)


@taking(images=several)
@recorded
def gradcam_plus_plus(
    model: Model, images: Given, layer: Layers = None, **how: Unpack[Options]
) -> list[Attribution]:
    """As Grad-CAM with w_k = Σ_ij α ReLU(g), α = g² / (2g² + (ΣA_k) g³): each place of a map
    counts for itself, so that several objects of the class are found.

    Valid where the score is an exponential of y, as the authors assume; α is normalised where
    g > 0, as in their code. Source: Chattopadhyay et al. 2018, "Grad-CAM++", equation 19.
    """
    return explain(DEFINITIONS["gradcam++"], model, images, layer=layer, **how)


@taking(images=several)
@recorded
def xgradcam(
    model: Model, images: Given, layer: Layers = None, **how: Unpack[Options]
) -> list[Attribution]:
    """As Grad-CAM with w_k = Σ_ij (A_k / ΣA_k) g: gradients weighed by where the map is active.

    Equal to Grad-CAM behind a rectifier and before a global average pool. Unstable, with a note
    in the result, where ΣA_k is almost 0 or negative, as before a rectifier.
    Source: Fu et al. 2020, "Axiom-based Grad-CAM", equation 11.
    """
    return explain(DEFINITIONS["xgradcam"], model, images, layer=layer, **how)


@taking(images=several)
@recorded
def ablationcam(
    model: Model, images: Given, layer: Layers = None, **how: Unpack[Options]
) -> list[Attribution]:
    """As Grad-CAM with w_k = (y − y_k) / y, y_k the score with map k set to zero. No gradients.

    Computed by exact short cuts, see `attribution/ablationcam.py`. Where y ≤ 0, |y| divides, with a
    note in the result. Variant "slope": (y − y_k) / ‖A_k‖, the form that the authors derive
    theirs from. Source: Desai and Ramaswamy 2020, "Ablation-CAM", equations 1 and 3.
    """
    return explain(DEFINITIONS["ablationcam"], model, images, layer=layer, **how)


@taking(images=several)
@recorded
def scorecam(
    model: Model, images: Given, layer: Layers = None, **how: Unpack[Options]
) -> list[Attribution]:
    """As Grad-CAM with w_k the target's probability if the network sees only what map k lights
    up: the picture times the map, enlarged and scaled to [0, 1]. No gradients; flat maps have no
    weight. As many runs as maps.

    That is the authors' code. Variant "paper" (or "softmax") is their algorithm 1: logits above
    those of an empty picture, through a softmax over the maps.
    Source: Wang et al. 2020, "Score-CAM".
    """
    return explain(DEFINITIONS["scorecam"], model, images, layer=layer, **how)


@taking(images=several)
@recorded
def eigencam(
    model: Model, images: Given, layer: Layers = None, **how: Unpack[Options]
) -> list[Attribution]:
    """The activations (hw × maps), not centred, times their first right singular vector: what the
    layer responds to most. Not about a class, whatever the target.

    The sign, which the mathematics leaves open, agrees with the strength of the activations.
    Source: Muhammad and Yeasin 2020, "Eigen-CAM".
    """
    return explain(DEFINITIONS["eigencam"], model, images, layer=layer, **how)


@taking(images=several)
@recorded
def eigengradcam(
    model: Model, images: Given, layer: Layers = None, **how: Unpack[Options]
) -> list[Attribution]:
    """The first principal component of g∘A, its sign so that it agrees with Σ g∘A.

    There is no paper: Jacob Gildenblat's pytorch-grad-cam made it up, leaving the sign to chance.
    """
    return explain(DEFINITIONS["eigengradcam"], model, images, layer=layer, **how)


@taking(images=several)
@recorded
def layercam(
    model: Model, images: Given, layer: Layers = None, **how: Unpack[Options]
) -> list[Attribution]:
    """ReLU(Σ ReLU(g) A_k), place by place, so that shallow layers give fine maps.

    Of several layers: tanh(2 M / max M) of all but the deepest, which is divided by its maximum,
    then the largest at each place.
    Source: Jiang et al. 2021, "LayerCAM", equations 6 to 8.
    """
    return explain(DEFINITIONS["layercam"], model, images, layer=layer, **how)


@taking(images=several)
@recorded
def fullgrad(
    model: Model, images: Given, layer: Layers = None, **how: Unpack[Options]
) -> list[Attribution]:
    """ψ(∇f∘x) + Σ over layers and maps of ψ(bias-gradient), ψ the absolute value, scaled over all
    maps of the layer together and enlarged. Takes no layer: every bias of the network counts,
    batch normalisation's −μγ/σ + β too.

    `origin["completeness"]` says how well f(x) = ∇f·x + Σ bias-gradients holds.
    Source: Srinivas and Fleuret 2019, "Full-Gradient Representation", equations 3 and 5.
    """
    return explain(DEFINITIONS["fullgrad"], model, images, layer=layer, **how)


DEFINITIONS: Mapping[str, Definition] = {
    "gradcam": Definition(
        "Grad-CAM", {AUTHORS: seen(formulas.gradcam), PGC: seen(formulas.gradcam)}
    ),
    "gradcam++": Definition(
        "Grad-CAM++",
        {
            AUTHORS: seen(formulas.gradcam_plus_plus),
            PGC: seen(formulas.gradcam_plus_plus_of_pgc),
        },
        epsilon={PGC: 1e-6},
    ),
    "xgradcam": Definition(
        "XGrad-CAM",
        {AUTHORS: seen(formulas.xgradcam), PGC: seen(formulas.xgradcam_of_pgc)},
        epsilon={PGC: 1e-7},
    ),
    "ablationcam": Definition(
        "Ablation-CAM",
        {
            AUTHORS: layer_by_layer(ablation.ablationcam(ablation.drop_over_score)),
            "slope": layer_by_layer(ablation.ablationcam(ablation.slope)),
            PGC: layer_by_layer(ablation.ablationcam(ablation.plain)),
        },
    ),
    "scorecam": Definition(
        "Score-CAM",
        {name: layer_by_layer(masks.scorecam(way)) for name, way in masks.WAYS.items()},
        epsilon={PGC: masks.WAYS[PGC].epsilon},
    ),
    "eigencam": Definition(
        "Eigen-CAM", {AUTHORS: seen(formulas.eigencam), PGC: seen(formulas.eigencam_of_pgc)}
    ),
    "eigengradcam": Definition(
        "EigenGrad-CAM",
        {AUTHORS: seen(formulas.eigengradcam), PGC: seen(formulas.eigengradcam)},
    ),
    "layercam": Definition(
        "LayerCAM",
        {AUTHORS: seen(formulas.layercam), PGC: seen(formulas.layercam)},
        fuse=layercam_fused,
        fusion="tanh(2 M / max M) of the shallow layers, then the maximum",
    ),
    "fullgrad": Definition(
        "FullGrad",
        {
            AUTHORS: layer_by_layer(biases.fullgrad(biases.together)),
            PGC: layer_by_layer(biases.fullgrad(biases.alone, biases.SHOWN_BY_PGC)),
        },
        takes_layers=False,
        epsilon={PGC: 1e-7},
    ),
}
"""What each method is made of."""

METHODS: Mapping[str, Method] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "ablationcam": ablationcam,
    "scorecam": scorecam,
    "eigencam": eigencam,
    "eigengradcam": eigengradcam,
    "layercam": layercam,
    "fullgrad": fullgrad,
}
"""The family by the names that commands and pages use."""
