"""Pictures: from a name to pixels, and what had to be left out or changed on the way. No torch.

`opening` takes a name (a folder, `builtin:photos`, `flowers`, `shards`, a URL in `remote`, a
dataset in `huggingface`) or pictures in memory, and gives `pictures.Pictures`; these are decoded in
processes of their own (`decode`), as `framing` cuts them. `decode.formats` is the one table of
formats. `annotations` reads what others said of pictures, `notes` tells what was skipped or
changed.
"""

from typing import Any

from convscope.core.namespace import public

_HOME = {
    "BOXES_FILE": "annotations",
    "Framing": "framing",
    "Pictures": "pictures",
    "one_picture": "pictures",
    "read_boxes": "annotations",
    "read_lists": "annotations",
    "split": "pictures",
    "validation": "pictures",
    "write_class_indices": "pictures",
}


def __getattr__(name: str) -> Any:
    return public(__name__, _HOME, name)
