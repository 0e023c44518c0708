"""Pictures to tensors on one core: our decoder and framing against PIL as usually written.

    python bench/pictures.py
    python bench/pictures.py --pictures 200 --rounds 7

Bytes in memory to a normalised tensor of 224 × 224. The peer: `Image.open`, `convert("RGB")`, and
torchvision's Resize(256), CenterCrop(224), ToTensor and Normalize. Ours is what a decoding process
and `Preprocess` do, with all checks of the file, on one core and without a process in between; and
as a whole: `Pictures` read with one decoding process, which runs beside this one. The largest
difference of the pixels is told in 255ths. Real pictures from `../shared/data` where they are,
as they are and enlarged to ImageNet's usual size.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rows import Report, options, report
from topk import photographs
from torch import Tensor
from torchvision import transforms

from convscope.network.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from convscope.pictures.decode.decode import decode
from convscope.pictures.decode.formats import Limits
from convscope.pictures.pictures import Pictures

GOAL = (1.25, 1.7)
PEER = "PIL as usually written"


def usual() -> Callable[[bytes], Tensor]:
    way = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return lambda data: way(Image.open(io.BytesIO(data)).convert("RGB"))


def ours(ready: Preprocess) -> Callable[[bytes], Tensor]:
    limits = Limits()
    return lambda data: ready.batch([ready.framing(decode(data, limits))], channels_last=True)[0]


def each(way: Callable[[Any], object], given: Iterable[Any]) -> None:
    """One by one; nothing is kept, as a training loop or a search keeps nothing."""
    for one in given:
        way(one)


def enlarged(root: Path, spare: Path, pictures: int) -> Path:
    """The same at the size that most of ImageNet's own have, 500 × 375: the samples at hand have
    256 pixels on their shorter side already, so that nobody has to resize them."""
    place = spare / "enlarged"
    place.mkdir()
    for path in sorted(root.glob("*.jpg"))[:pictures]:
        picture = Image.open(path).convert("RGB")
        upright = picture.height > picture.width
        size = (375, 500) if upright else (500, 375)
        picture.resize(size, Image.Resampling.BICUBIC).save(place / path.name, quality=92)
    return place


def measure(out: Report, root: Path, pictures: int, which: str) -> None:
    ready = Preprocess.imagenet()
    with Pictures(root) as folder:
        some = folder.subset(range(min(pictures, len(folder))))
        files = [Path(path.decode()).read_bytes() for path in some.paths]
        mine, theirs = ours(ready), usual()
        std = torch.tensor(IMAGENET_STD)[:, None, None] * 255
        apart = torch.stack([((mine(f) - theirs(f)) * std).abs() for f in files])
        told = f"{len(files)} pictures; largest difference {float(apart.max()):.2f}/255"
        pixels = np.mean([np.prod(Image.open(io.BytesIO(data)).size) for data in files])
        peer = {PEER: lambda: each(theirs, files)}
        out.race(
            f"pictures to tensors, {which}, one core",
            lambda: each(mine, files),
            peer,
            {PEER: GOAL},
            note=f"{told}; {pixels / 1e6:.2f} megapixels on average",
        )
        out.race(
            f"pictures to tensors, {which}, a Folder and its decoding process",
            lambda: each(
                lambda picture: ready.batch([picture.pixels], channels_last=True),
                some.read(ready.framing),
            ),
            peer,
            {},
            note=f"{told}; ours decodes in a process beside this one, and hashes each file",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    options(parser)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    out = report(chosen)
    with tempfile.TemporaryDirectory() as spare:
        root = photographs(Path(spare))
        large = enlarged(root, Path(spare), chosen.pictures)
        measure(out, large, chosen.pictures, "500 × 375")
        measure(out, root, chosen.pictures, "shorter side 256")
    out.save()


if __name__ == "__main__":
    main()
