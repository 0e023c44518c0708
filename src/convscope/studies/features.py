"""What does each feature map of each layer see: its strongest pictures and their projections?

Source: Zeiler and Fergus 2014, figure 2: nine strongest pictures a map, each projected alone,
beside the parts of the pictures that the unit saw; scaled jointly for each map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from convscope.lens.backward import Other, Overlap
from convscope.methods.given import FolderLike, Layers, pictures_of, taking
from convscope.methods.tuning import Tuning, require_tuning
from convscope.methods.ways_down import Choice
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.pictures.opening import as_folder
from convscope.pictures.pictures import Picture
from convscope.records.features import LayerFeatures, Pictures
from convscope.records.topk import TopK
from convscope.studies.display import patch
from convscope.studies.layer_features import Looking, each_layer, mined
from convscope.units import Box

Progress = Callable[[int, int], None]
SIDE = 96
THUMB = 160


@taking(folder=pictures_of)
@recorded
def features(
    network: Network,
    folder: FolderLike,
    layers: Layers = None,
    *,
    k: int = 9,
    side: int = SIDE,
    rule: Choice = "auto",
    overlap: Overlap = "add",
    other: Other = "refuse",
    tuning: Tuning | None = None,
    also: Callable[[Sequence[Picture]], object] | None = None,
    progress: Progress | None = None,
) -> tuple[TopK, Pictures, Iterator[LayerFeatures]]:
    """The k strongest pictures of every feature map, with patches and projections.

    folder: opened, or its name. layers: one or several; by default see `feature_layers`. side:
    largest side of a patch in pixels. rule: how projections go down, see `ways_down`; "both" draws
    either. overlap, other: see `BackwardRule`. tuning: what `tune` chose, for the pass over the
    pictures. also: see `topk`. progress: of that pass. The layers' features come one by one, as
    each is asked for, so that only one layer is in memory.

    Raises UsageError U376 (a bare module), U377 (no folder), U401 (no tuning), and what `topk`,
    `fields` and `deconvnet` raise.
    """
    require_tuning(tuning)
    network, folder = whole(network), as_folder(folder)
    looking = mined(
        network,
        folder,
        layers,
        k=k,
        side=side,
        rule=rule,
        overlap=overlap,
        other=other,
        tuning=tuning,
        also=also,
        progress=progress,
    )
    found = looking.found
    return found, winners(looking), each_layer(looking, dict.fromkeys(found.layers))


def winners(looking: Looking) -> Pictures:
    """The pictures that are among the strongest of any map, as thumbnails."""
    preprocess, found, folder = looking.network.preprocess, looking.found, looking.pictures.folder
    alive = found.image[found.active > 0]
    wanted = np.unique(alive[alive >= 0]).tolist()
    height, width = preprocess.size
    whole = Box(0, 0, height, width)
    thumb = min(THUMB, max(height, width))
    squares = {
        number: patch(preprocess.seen(pixels), whole, thumb)
        for number, pixels in looking.pictures.read(wanted)
    }
    labels = [folder.labels[number] for number in squares]
    return Pictures(
        number=np.array(list(squares), np.int64),
        name=tuple(folder.names[number] for number in squares),
        label=np.array([-1 if label is None else label for label in labels], np.int64),
        classes=folder.classes,
        thumbs=np.array(list(squares.values()), np.uint8).reshape(-1, thumb, thumb, 3),
        size=(height, width),
        origin={"folder_sha256": folder.sha256},
    )
