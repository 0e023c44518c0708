"""Which of the network's classes is each picture's true one?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from convscope.errors import DataError, UsageError, nearest
from convscope.network.network import Network
from convscope.network.outputs import both_ways
from convscope.pictures.pictures import Pictures

WORDNET = re.compile(r"n\d{8}")
HINT = (
    "give --classes FILE with the network's own names, or --labels FILE.json with a class index "
    "for each picture or class folder"
)


def true_classes(
    network: Network, folder: Pictures, outputs: int, labels: Mapping[str, int] | None
) -> Int64[np.ndarray, "pictures"]:
    """The class index of every picture of the folder, -1 where it has none.

    With `labels`: what they give for the picture's name, its file name or its class folder.
    Without: the pictures' own class index (shards), or the class folder's, matched to the network's
    classes by name, or by place where the network has no names or the folders are ImageNet's
    (n01440764 and so on, all of them). Raises DataError D160, UsageError U311 (no class of that
    index).
    """
    if labels is None:
        of_class = _by_name(network, folder, outputs)
        found = [-1 if label is None else of_class[label] for label in folder.labels]
    else:
        found = [_looked_up(folder, number, labels) for number in range(len(folder))]
    for name, index in zip(folder.names, found, strict=True):
        if index >= outputs:
            raise UsageError("U311", name, f"class {index}: the network has 0 to {outputs - 1}")
    if max(found) < 0:
        raise DataError(
            "D160", str(folder.root), "its pictures have no known class", next_step=HINT
        )
    return np.array(found, dtype=np.int64)


def order_assumed(network: Network, folder: Pictures, labels: Mapping[str, int] | None) -> str:
    """What was taken for the order of the classes where nobody told it; "" where it is known."""
    if labels is not None or folder.numbered or network.classes or not folder.classes:
        return ""
    few = ", ".join(f"{name} {index}" for index, name in enumerate(folder.classes[:3]))
    more = ", …" if len(folder.classes) > 3 else ""
    return f"assumed: the class folders in their order ({few}{more}), as the network has no names"


def class_names(network: Network, outputs: int) -> tuple[str, ...]:
    """The network's names for its classes, or their numbers."""
    known = both_ways(network.classes)
    return known if len(known) == outputs else tuple(str(index) for index in range(outputs))


def _by_name(network: Network, folder: Pictures, outputs: int) -> list[int]:
    """For each of the folder's classes the network's index."""
    if folder.numbered:
        return list(range(len(folder.classes)))
    by_place = not network.classes or _imagenet(folder.classes, network.classes)
    if by_place and len(folder.classes) == outputs:
        return list(range(outputs))
    known = both_ways(network.classes)
    for name in folder.classes:
        if name not in known:
            hint = nearest(name, known) if known else "it has no names"
            raise DataError("D160", name, f"is no class of the network; {hint}", next_step=HINT)
    return [known.index(name) for name in folder.classes]


def _imagenet(folders: Sequence[str], names: Sequence[str]) -> bool:
    """Whether folders are named by WordNet's numbers, whose order is that of ImageNet's classes,
    and the network's classes are not."""
    return all(map(WORDNET.fullmatch, folders)) and not set(folders) & set(names)


def _looked_up(folder: Pictures, number: int, labels: Mapping[str, int]) -> int:
    name, label = folder.names[number], folder.labels[number]
    keys = [name, name.rpartition("/")[2]] + ([] if label is None else [folder.classes[label]])
    return next((labels[key] for key in keys if key in labels), -1)
