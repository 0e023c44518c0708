"""Studies: what the paper measured, and more; one folder each."""

from typing import Any

from convscope.core.namespace import public

_HOME = {
    "Checks": "explain.study",
    "by_name": "registry",
    "explanation_figure": "explain.figure",
    "features_figure": "features.figure",
    "hugging_face_callback": "evolution.recorder",
    "lightning_callback": "evolution.recorder",
    "occlusion_figure": "occlusion.figure",
    "occlusion_words": "occlusion.table",
    "studies": "registry",
    "study": "registry",
    "summary": "explain.figure",
    "table": "registry",
    "verdict": "explain.figure",
}


def __getattr__(name: str) -> Any:
    return public(__name__, _HOME, name)
