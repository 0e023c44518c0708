"""Networks: from a name to a module with weights, preprocessing and class names.

`load` asks `zfnet`, `pretrained` or `user_code` for a network, `checkpoint` and `weights` for what
belongs in it; the answer is a `network.Network`. `outputs` knows what its output means,
`preprocess` how pictures are made ready, `provenance` what every result has to tell of it.
"""

from typing import Any

from convscope.core.namespace import public

_HOME = {
    "Network": "network",
    "Preprocess": "preprocess",
    "layer_table": "layers",
    "model_card": "layers",
}


def __getattr__(name: str) -> Any:
    return public(__name__, _HOME, name)
