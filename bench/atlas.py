"""What does an atlas cost beside the least that could be done, one pass of each picture?

    python bench/atlas.py                        SqueezeNet, the samples of ImageNet, all 26 layers
    python bench/atlas.py --pictures 100

One run of each, no interleaving: an atlas takes minutes. "forward and decoding" reads the pictures
through the same decoding processes and passes them up in the same batches, with nothing looked at.
The parts of an atlas are told one by one: accuracy, strongest pictures, projections with the pages.
Real SqueezeNet weights and pictures from `../shared/data` where they are, else random ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from quiet import Others, alone
from rows import machine
from topk import photographs

from convscope import load
from convscope.cli.atlas import make_atlas
from convscope.network.network import Network
from convscope.network.tuning import Execution, blank
from convscope.pictures.pictures import Pictures

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def bare(network: Network, folder: Pictures) -> None:
    model, ready = network.model, network.preprocess
    way = Execution(model, blank(model, ready.shape), ("classifier.1",), None)
    waiting: list[Any] = []

    def up() -> None:
        way.model(way.laid(ready.batch(waiting, channels_last=True)))
        waiting.clear()

    with torch.inference_mode(), way.running():
        for picture in folder.read(ready.framing, workers=way.workers):
            waiting.append(picture.pixels)
            if len(waiting) == way.batch:
                up()
        if waiting:
            up()


class Parts:
    """Seconds of each part, from the bars that it opens."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def bars(self, name: str) -> Iterator[Callable[[int, int], None]]:
        begin = time.perf_counter()
        yield lambda _done, _total: None
        self.seconds[name] = time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=702)
    given = parser.parse_args()
    weights = DATA / "squeezenet1_0_imagenet.safetensors"
    spec = "torchvision:squeezenet1_0"
    network = load(spec, weights) if weights.exists() else load(f"{spec}:weights=none")
    print(machine(), flush=True)
    with (
        tempfile.TemporaryDirectory() as spare,
        alone(),
        Pictures(photographs(Path(spare))) as whole,
    ):
        folder = whole.subset(range(min(given.pictures, len(whole))))
        bare(network, folder.subset(range(min(16, len(folder)))))
        others, begin = Others(), time.perf_counter()
        bare(network, folder)
        least = time.perf_counter() - begin
        parts, begin = Parts(), time.perf_counter()
        make_atlas(network, folder, Path(spare) / "atlas", parts.bars, {})
        total, share = time.perf_counter() - begin, others.share()
        size = sum(path.stat().st_size for path in (Path(spare) / "atlas").rglob("*"))
    print(f"{len(folder)} pictures; forward and decoding {least:.1f} s")
    for name, seconds in parts.seconds.items():
        print(f"    {name}: {seconds:.1f} s, {seconds / least:.1f} of that")
    print(f"atlas {total:.1f} s, {total / least:.1f} of it; {size / 1e6:.0f} MB")
    print(f"others used {share or 0:.2f} of a CPU")


if __name__ == "__main__":
    main()
