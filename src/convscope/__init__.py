"""See what a convolutional network sees, and whether to trust it.

    network = convscope.load("torchvision:resnet18")
    (result,) = convscope.attribute(network, "cat.jpg", method="gradcam")

The front door is `load`, `open`, `features`, `attribute`, `explain`, `check`, `visualise`, `study`,
`train` and what else stands in `__all__`; below it are namespaces, `convscope.attribution`,
`convscope.metrics` and so on. All is imported when first used: `import convscope` is instant.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from convscope.core.namespace import install

if TYPE_CHECKING:
    from convscope.attribution.registry import attribute
    from convscope.cli.python import atlas
    from convscope.core.errors import ConvscopeError
    from convscope.core.run import Run
    from convscope.core.units import Box, Unit
    from convscope.lens.lens import Lens
    from convscope.network import wrap
    from convscope.network.layers import layers
    from convscope.network.load import load
    from convscope.network.network import Network
    from convscope.network.preprocess import Preprocess
    from convscope.network.tuning import tune
    from convscope.pictures.framing import Framing
    from convscope.pictures.opening import open_pictures as open
    from convscope.pictures.pictures import Pictures, one_picture
    from convscope.records.maps import Attribution
    from convscope.representations.deconvnet import deconvnet
    from convscope.representations.embedding import embedding
    from convscope.representations.predict import evaluate, predict
    from convscope.representations.projections import projections
    from convscope.representations.topk import topk
    from convscope.scale.processes import Processes
    from convscope.scale.ray_engine import RayEngine
    from convscope.studies.audit.study import check
    from convscope.studies.evolution.recorder import EvolutionRecorder
    from convscope.studies.explain.study import explain
    from convscope.studies.features.study import features
    from convscope.studies.registry import study
    from convscope.studies.retrieval.study import duplicates
    from convscope.trace.backward.descent import Neuron
    from convscope.trace.backward_rule import BackwardRule
    from convscope.trace.receptive_field import fields
    from convscope.training.trainer import train
    from convscope.visualisation.optimise import visualise

__version__ = "0.1.0"

_HOME = {
    "load": "network.load",
    "open": "pictures.opening:open_pictures",
    "one_picture": "pictures.pictures",
    "features": "studies.features.study",
    "attribute": "attribution.registry",
    "explain": "studies.explain.study",
    "check": "studies.audit.study",
    "visualise": "visualisation.optimise",
    "study": "studies.registry",
    "train": "training.trainer",
    "predict": "representations.predict",
    "evaluate": "representations.predict",
    "topk": "representations.topk",
    "embedding": "representations.embedding",
    "deconvnet": "representations.deconvnet",
    "projections": "representations.projections",
    "duplicates": "studies.retrieval.study",
    "layers": "network.layers",
    "fields": "trace.receptive_field",
    "tune": "network.tuning",
    "atlas": "cli.python",
    "Attribution": "records.maps",
    "BackwardRule": "trace.backward_rule",
    "Box": "core.units",
    "ConvscopeError": "core.errors",
    "EvolutionRecorder": "studies.evolution.recorder",
    "Framing": "pictures.framing",
    "Lens": "lens.lens",
    "Network": "network.network",
    "Neuron": "trace.backward.descent",
    "Pictures": "pictures.pictures",
    "Preprocess": "network.preprocess",
    "Processes": "scale.processes",
    "RayEngine": "scale.ray_engine",
    "Run": "core.run",
    "Unit": "core.units",
}
"""The front door: names, and where they are written."""

install()

_NAMESPACES = {
    *("attribution", "drawing", "lens", "metrics", "network", "pages", "pictures"),
    *("records", "representations", "studies", "trace", "training", "visualisation"),
}

_BEFORE = {
    "Folder": ("pictures.pictures:Pictures", "Pictures"),
    "ablation": ("studies.ablation.study", 'study("ablation", …)'),
    "ablationcam": (
        "attribution.formulas:METHODS/ablationcam",
        'attribute(…, method="ablationcam")',
    ),
    "activation_maximisation": ("visualisation.optimise", "visualise(…)"),
    "agreement": ("metrics.randomisation", "metrics.agreement"),
    "audit": ("studies.audit.study", "check"),
    "chosen_features": ("studies.features.study", 'study("features", …)'),
    "class_image": ("visualisation.optimise", "visualise(…)"),
    "correspondence": ("studies.correspondence.study", 'study("correspondence", …)'),
    "deconvnet_class": ("attribution.gradients", 'attribute(…, method="deconvnet")'),
    "deep_dream": ("visualisation.optimise", 'visualise(…, image=…, method="dream")'),
    "eigencam": ("attribution.formulas:METHODS/eigencam", 'attribute(…, method="eigencam")'),
    "eigengradcam": (
        "attribution.formulas:METHODS/eigengradcam",
        'attribute(…, method="eigengradcam")',
    ),
    "energy_inside": ("metrics.localisation", "metrics.energy_inside"),
    "evolution": ("studies.evolution.study", 'study("evolution", …)'),
    "faithfulness": ("metrics.faithfulness", "metrics.faithfulness"),
    "filters": ("studies.filters.study", 'study("filters", …)'),
    "fullgrad": ("attribution.formulas:METHODS/fullgrad", 'attribute(…, method="fullgrad")'),
    "gradcam": ("attribution.formulas:METHODS/gradcam", 'attribute(…, method="gradcam")'),
    "gradcam_plus_plus": (
        "attribution.formulas:METHODS/gradcam++",
        'attribute(…, method="gradcam++")',
    ),
    "gradient_x_input": ("attribution.gradients", 'attribute(…, method="gradient-x-input")'),
    "guided_backprop": ("attribution.gradients", 'attribute(…, method="guided-backprop")'),
    "guided_gradcam": ("attribution.gradients", 'attribute(…, method="guided-gradcam")'),
    "integrated_gradients": (
        "attribution.gradients",
        'attribute(…, method="integrated-gradients")',
    ),
    "invariance": ("studies.invariance.study", 'study("invariance", …)'),
    "invert": ("visualisation.optimise", "visualise(…, image=…)"),
    "layercam": ("attribution.formulas:METHODS/layercam", 'attribute(…, method="layercam")'),
    "occlusion": ("attribution.occlusion", "attribution.occlusion"),
    "occlusion_study": ("studies.occlusion.study", 'study("occlusion", …)'),
    "open_pictures": ("pictures.opening", "open"),
    "pointing": ("metrics.localisation", "metrics.pointing"),
    "probes": ("studies.probes.study", 'study("probes", …)'),
    "randomisation": ("metrics.randomisation", "metrics.randomisation"),
    "saliency": ("attribution.gradients", 'attribute(…, method="saliency")'),
    "scorecam": ("attribution.formulas:METHODS/scorecam", 'attribute(…, method="scorecam")'),
    "sensitivity": ("metrics.randomisation", "metrics.sensitivity"),
    "silence": ("studies.unit_ablation.study", 'study("unit_ablation", …)'),
    "similar": ("studies.retrieval.study", 'study("retrieval", …)'),
    "smoothgrad": ("attribution.gradients", 'attribute(…, method="smoothgrad")'),
    "transfer": ("studies.transfer.study", 'study("transfer", …)'),
    "transfer_lists": ("studies.transfer.study", 'study("transfer_lists", …)'),
    "write_atlas": ("pages.atlas", "pages.write_atlas"),
    "xgradcam": ("attribution.formulas:METHODS/xgradcam", 'attribute(…, method="xgradcam")'),
}
"""Names of the version before, kept for one release: where they are now, and what to write."""

__all__ = [
    "Attribution",
    "BackwardRule",
    "Box",
    "ConvscopeError",
    "EvolutionRecorder",
    "Framing",
    "Lens",
    "Network",
    "Neuron",
    "Pictures",
    "Preprocess",
    "Processes",
    "RayEngine",
    "Run",
    "Unit",
    "atlas",
    "attribute",
    "check",
    "deconvnet",
    "duplicates",
    "embedding",
    "evaluate",
    "explain",
    "features",
    "fields",
    "layers",
    "load",
    "one_picture",
    "open",
    "predict",
    "projections",
    "study",
    "topk",
    "train",
    "tune",
    "visualise",
    "wrap",
]


def _no_such(name: str) -> str:
    """What to write in the place of a name that is not there."""
    from convscope.core.errors import nearest

    text = f"module 'convscope' has no attribute {name!r}"
    near = nearest(name, [*__all__, *_NAMESPACES, *_BEFORE])
    return f"{text}; {near}" if near.startswith("did you mean") else text


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return import_module(f"convscope.{name}")
    if name == "wrap":
        return import_module("convscope.network.wrap")
    if name in _BEFORE:
        home, now = _BEFORE[name]
        text = f"convscope.{name} is a name of the version before: write convscope.{now}"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
    elif name in _HOME:
        home = _HOME[name]
    else:
        raise AttributeError(_no_such(name), name=name)
    module, _, inner = home.partition(":")
    inner, _, key = inner.partition("/")
    value = getattr(import_module(f"convscope.{module}"), inner or name)
    globals()[name] = value = value[key] if key else value  # warned about once
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_NAMESPACES])
