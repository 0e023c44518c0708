"""What does `convscope explain` of one picture cost, in passes of one picture up the network?

    python bench/explain.py                                all networks
    python bench/explain.py --networks squeezenet1_0

Floating-point operations of convolutions and matrices, forward and backward, counted by torch, as a
multiple of one forward pass; so the figures are the same on every machine. Weights are random, or
those of efficientnet-lite0. Limits: 100 for the maps, 600 with all tests.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import convscope
from convscope.network.network import Network
from convscope.pictures.builtin import PHOTOS, photo_file
from convscope.pictures.pictures import Picture
from convscope.studies.explain.study import explain_picture as explain

NETWORKS = ("efficientnet-lite0", "torchvision:squeezenet1_0", "torchvision:resnet18")


def operations(work: Callable[[], object]) -> int:
    """Counted by torch, in this thread."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def passes(network: Network, picture: Picture) -> tuple[float, float]:
    """Of the maps, and of everything."""
    with torch.no_grad():
        one = operations(lambda: network.model(torch.zeros(1, *network.preprocess.shape)))
    with FlopCounterMode(display=False) as counter:
        maps: list[int] = []
        explain(network, picture, shown=lambda *_: maps.append(counter.get_total_flops()))
    return maps[0] / one, counter.get_total_flops() / one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    photo = photo_file(next(photo for photo in PHOTOS if photo.name == "cat"))
    pixels = np.asarray(Image.open(io.BytesIO(photo.read_bytes())).convert("RGB"))
    picture = Picture(0, "cat", None, pixels)
    print("| network | maps | with all tests |\n|---|---|---|")
    for name in parser.parse_args().networks:
        spec = name if ":" in name or name == "efficientnet-lite0" else f"torchvision:{name}"
        if spec.startswith("torchvision:"):
            spec += ":weights=none"
        maps, whole = passes(convscope.load(spec), picture)
        print(f"| {name} | {maps:.0f} | {whole:.0f} |")


if __name__ == "__main__":
    main()
