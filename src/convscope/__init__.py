"""See what a convolutional network sees, and whether to trust it.

The names below are imported when first used, so that `import convscope` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convscope.attribution.formulas import (
        ablationcam,
        eigencam,
        eigengradcam,
        fullgrad,
        gradcam,
        gradcam_plus_plus,
        layercam,
        scorecam,
        xgradcam,
    )
    from convscope.attribution.gradients import (
        deconvnet_class,
        gradient_x_input,
        guided_backprop,
        guided_gradcam,
        integrated_gradients,
        saliency,
        smoothgrad,
    )
    from convscope.attribution.occlusion import occlusion
    from convscope.cli.python import atlas
    from convscope.errors import ConvscopeError
    from convscope.lens.lens import Lens
    from convscope.metrics.faithfulness import faithfulness
    from convscope.metrics.localisation import energy_inside, pointing
    from convscope.metrics.randomisation import agreement, randomisation, sensitivity
    from convscope.network import wrap
    from convscope.network.layers import layers
    from convscope.network.load import load
    from convscope.network.network import Network
    from convscope.network.preprocess import Preprocess
    from convscope.network.tuning import tune
    from convscope.pages.atlas import write_atlas
    from convscope.pictures.framing import Framing
    from convscope.pictures.opening import open_pictures
    from convscope.pictures.pictures import Folder, Pictures, one_picture
    from convscope.records.maps import Attribution
    from convscope.representations.deconvnet import deconvnet
    from convscope.representations.embedding import embedding
    from convscope.representations.predict import evaluate, predict
    from convscope.representations.projections import projections
    from convscope.representations.topk import topk
    from convscope.run import Run
    from convscope.studies.ablation.study import ablation
    from convscope.studies.audit.study import audit, check
    from convscope.studies.correspondence.study import correspondence
    from convscope.studies.evolution.recorder import EvolutionRecorder
    from convscope.studies.evolution.study import evolution
    from convscope.studies.explain.study import explain
    from convscope.studies.features.study import chosen_features, features
    from convscope.studies.filters.study import filters
    from convscope.studies.invariance.study import invariance
    from convscope.studies.occlusion.study import occlusion_study
    from convscope.studies.probes.study import probes
    from convscope.studies.retrieval.study import duplicates, similar
    from convscope.studies.transfer.study import transfer
    from convscope.studies.transfer_lists.study import transfer_lists
    from convscope.studies.unit_ablation.study import silence
    from convscope.trace.backward.forward_pass import Neuron
    from convscope.trace.backward_rule import BackwardRule
    from convscope.trace.receptive_field import fields
    from convscope.training.trainer import train
    from convscope.units import Box, Unit
    from convscope.visualisation.optimise import (
        activation_maximisation,
        class_image,
        deep_dream,
        invert,
    )

__version__ = "0.1.0"

_HOME = {
    "Preprocess": "network.preprocess",
    "Network": "network.network",
    "layers": "network.layers",
    "Framing": "pictures.framing",
    "explain": "studies.explain.study",
    "check": "studies.audit.study",
    "Attribution": "records.maps",
    "atlas": "cli.python",
    "BackwardRule": "trace.backward_rule",
    "Box": "units",
    "ConvscopeError": "errors",
    "Folder": "pictures.pictures",
    "Pictures": "pictures.pictures",
    "Lens": "lens.lens",
    "Neuron": "trace.backward.forward_pass",
    "Run": "run",
    "Unit": "units",
    "ablation": "studies.ablation.study",
    "activation_maximisation": "visualise.optimise",
    "agreement": "metrics.randomisation",
    "audit": "studies.audit.study",
    "ablationcam": "attribution.formulas",
    "chosen_features": "studies.features.study",
    "class_image": "visualise.optimise",
    "correspondence": "studies.correspondence.study",
    "deconvnet": "representations.deconvnet",
    "deconvnet_class": "attribution.gradients",
    "deep_dream": "visualise.optimise",
    "eigencam": "attribution.formulas",
    "eigengradcam": "attribution.formulas",
    "duplicates": "studies.retrieval.study",
    "embedding": "representations.embedding",
    "energy_inside": "metrics.localisation",
    "EvolutionRecorder": "studies.evolution.recorder",
    "evaluate": "representations.predict",
    "evolution": "studies.evolution.study",
    "faithfulness": "metrics.faithfulness",
    "features": "studies.features.study",
    "fields": "trace.receptive_field",
    "filters": "studies.filters.study",
    "fullgrad": "attribution.formulas",
    "gradcam": "attribution.formulas",
    "gradcam_plus_plus": "attribution.formulas",
    "gradient_x_input": "attribution.gradients",
    "guided_backprop": "attribution.gradients",
    "guided_gradcam": "attribution.gradients",
    "integrated_gradients": "attribution.gradients",
    "invariance": "studies.invariance.study",
    "invert": "visualise.optimise",
    "layercam": "attribution.formulas",
    "load": "network.load",
    "occlusion": "attribution.occlusion",
    "occlusion_study": "studies.occlusion.study",
    "one_picture": "pictures.pictures",
    "open_pictures": "pictures.opening",
    "pointing": "metrics.localisation",
    "predict": "representations.predict",
    "probes": "studies.probes.study",
    "projections": "representations.projections",
    "randomisation": "metrics.randomisation",
    "saliency": "attribution.gradients",
    "scorecam": "attribution.formulas",
    "sensitivity": "metrics.randomisation",
    "silence": "studies.unit_ablation.study",
    "similar": "studies.retrieval.study",
    "smoothgrad": "attribution.gradients",
    "topk": "representations.topk",
    "train": "training.train",
    "tune": "network.tuning",
    "transfer": "studies.transfer.study",
    "transfer_lists": "studies.transfer_lists.study",
    "write_atlas": "pages.atlas",
    "xgradcam": "attribution.formulas",
}

_MODULES = {"wrap": "network.wrap"}
"""Names that stand for a whole module."""

__all__ = [
    "Attribution",
    "BackwardRule",
    "Box",
    "ConvscopeError",
    "EvolutionRecorder",
    "Folder",
    "Framing",
    "Lens",
    "Network",
    "Neuron",
    "Pictures",
    "Preprocess",
    "Run",
    "Unit",
    "ablation",
    "ablationcam",
    "activation_maximisation",
    "agreement",
    "atlas",
    "audit",
    "check",
    "chosen_features",
    "class_image",
    "correspondence",
    "deconvnet",
    "deconvnet_class",
    "deep_dream",
    "duplicates",
    "eigencam",
    "eigengradcam",
    "embedding",
    "energy_inside",
    "evaluate",
    "evolution",
    "explain",
    "faithfulness",
    "features",
    "fields",
    "filters",
    "fullgrad",
    "gradcam",
    "gradcam_plus_plus",
    "gradient_x_input",
    "guided_backprop",
    "guided_gradcam",
    "integrated_gradients",
    "invariance",
    "invert",
    "layercam",
    "layers",
    "load",
    "occlusion",
    "occlusion_study",
    "one_picture",
    "open_pictures",
    "pointing",
    "predict",
    "probes",
    "projections",
    "randomisation",
    "saliency",
    "scorecam",
    "sensitivity",
    "silence",
    "similar",
    "smoothgrad",
    "topk",
    "train",
    "transfer",
    "transfer_lists",
    "tune",
    "wrap",
    "write_atlas",
    "xgradcam",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"convscope.{_MODULES[name]}")
    if name not in _HOME:
        raise AttributeError(f"module 'convscope' has no attribute {name!r}")
    return getattr(import_module(f"convscope.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
