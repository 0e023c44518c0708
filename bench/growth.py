"""How does what a job costs grow with pictures, feature maps, positions and the input's side?

    python bench/growth.py                      all four curves, about five minutes
    python bench/growth.py --most 100000        mining up to so many pictures

SqueezeNet (ImageNet weights from `../shared/data` where they are, else random ones). Mining takes
pixels from memory, of pictures of its own making. Writes `growth.svg` beside this file and, with
`--json`, the raw times; prints a table for `RESULTS.md` with the exponent of each curve: the slope
between its last two points in logarithms, 1 where the time is proportional.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from cam import network
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from quiet import interleaved
from results import INK, LINE, OURS
from rows import command, machine, options
from topk import Held, convolutions

from convscope.attribution.occlusion import occlusion
from convscope.core.units import Unit
from convscope.network.preprocess import Preprocess
from convscope.representations.deconvnet import deconvnet
from convscope.representations.topk import topk

SMALL = 64
"""Input of mining many pictures, so that a hundred thousand take minutes."""


@dataclass(frozen=True)
class Curve:
    """Seconds against a size."""

    job: str
    size: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    spread: tuple[float, ...]

    @property
    def exponent(self) -> float:
        (a, b), (s, t) = self.sizes[-2:], self.seconds[-2:]
        return math.log(t / s) / math.log(b / a)


def measured(
    job: str, size: str, jobs: Mapping[int, Callable[[], object]], given: argparse.Namespace
) -> Curve:
    named = {str(count): run for count, run in jobs.items()}
    samples = interleaved(named, given.rounds, patience=given.patience)
    found = [samples[name] for name in named]
    curve = Curve(
        job,
        size,
        tuple(jobs),
        tuple(sample.median for sample in found),
        tuple(sample.spread for sample in found),
    )
    print(table([curve])[-1], flush=True)
    return curve


class Many(Held):
    """A few pictures under many numbers, each with a content of its own."""

    def __init__(self, pixels: Sequence[np.ndarray], count: int) -> None:
        super().__init__([pixels[number % len(pixels)] for number in range(count)])


def noise(side: int, count: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 255, (side, side, 3)).astype(np.uint8) for _ in range(count)]


def by_pictures(net: torch.nn.Module, most: int, given: argparse.Namespace) -> Curve:
    ready, pixels = Preprocess.imagenet(resize=SMALL, crop=SMALL), noise(SMALL, 64)
    counts = [10**power for power in range(2, 6) if 10**power <= most]
    jobs = {n: lambda n=n: topk(net, Many(pixels, n), preprocess=ready) for n in counts}  # type: ignore[misc]
    once = argparse.Namespace(rounds=1, patience=given.patience)
    return measured(f"mining at {SMALL} px", "pictures", jobs, once)


def by_maps(net: torch.nn.Module, given: argparse.Namespace) -> Curve:
    """Projections of ever more maps of the last layers, one picture."""
    image = torch.randn(3, 224, 224)
    layer = convolutions(net)[-2]
    channels = net.get_submodule(layer).out_channels
    jobs = {
        n: lambda n=n: deconvnet(net, image[None], [Unit(layer, c) for c in range(n)])  # type: ignore[misc]
        for n in (4, 16, 64, channels)
    }
    return measured(f"projecting maps of {layer}", "maps", jobs, given)


def by_positions(net: torch.nn.Module, given: argparse.Namespace) -> Curve:
    image = torch.randn(3, 224, 224)
    strides = (64, 32, 16, 8, 4)
    jobs = {
        (math.ceil((224 - 32) / step) + 1) ** 2: (
            lambda step=step: occlusion(net, image, patch=32, stride=step)  # type: ignore[misc]
        )
        for step in strides
    }
    return measured("occlusion, 32 px square", "positions", jobs, given)


def by_side(net: torch.nn.Module, given: argparse.Namespace) -> Curve:
    def job(side: int) -> Callable[[], object]:
        image, patch = torch.randn(3, side, side), side // 7
        return lambda: occlusion(net, image, patch=patch, stride=patch)

    jobs = {side: job(side) for side in (112, 168, 224, 336, 448)}
    return measured("occlusion, 49 positions", "pixels a side", jobs, given)


def table(curves: Sequence[Curve]) -> list[str]:
    lines = ["| job | size | seconds | exponent at the end |", "|---|---|---|---|"]
    for curve in curves:
        sizes = ", ".join(f"{size:,}" for size in curve.sizes)
        times = ", ".join(f"{seconds:.3g}" for seconds in curve.seconds)
        lines.append(f"| {curve.job} | {sizes} {curve.size} | {times} | {curve.exponent:.2f} |")
    return lines


def drawn(curves: Sequence[Curve]) -> Figure:
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "convscope", "font.size": 9})
    figure = Figure(figsize=(8.0, 2.4), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(curves)), curves, strict=True):
        axes.loglog(curve.sizes, curve.seconds, "o-", color=OURS, markersize=4)
        straight = [curve.seconds[-1] * size / curve.sizes[-1] for size in curve.sizes]
        axes.loglog(curve.sizes, straight, ":", color=INK, linewidth=1)
        axes.set_title(curve.job, fontsize=8, color=INK)
        axes.set_xlabel(curve.size, fontsize=8, color=INK)
        axes.tick_params(colors=INK, labelsize=7, which="both")
        if curve.sizes[-1] < 10 * curve.sizes[0]:  # too few powers of ten to tell by
            for axis, values in ((axes.xaxis, curve.sizes), (axes.yaxis, curve.seconds)):
                ends = (values[0], values[len(values) // 2], values[-1])
                axis.set_major_locator(FixedLocator(ends))
                axis.set_minor_locator(NullLocator())
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.grid(color=LINE, linewidth=0.4, alpha=0.5)
        for side in axes.spines.values():
            side.set_visible(False)
    figure.axes[0].set_ylabel("seconds", fontsize=8, color=INK)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options(parser, rounds=3)
    parser.add_argument("--most", type=int, default=10_000, help="pictures to mine at most")
    given = parser.parse_args()
    net = network("squeezenet").to(memory_format=torch.channels_last)
    curves = [
        by_pictures(net, given.most, given),
        by_maps(net, given),
        by_positions(net, given),
        by_side(net, given),
    ]
    print("\n".join(table(curves)))
    place = Path(__file__).with_name("growth.svg")
    drawn(curves).savefig(place, transparent=True, metadata={"Date": None})
    if given.json is not None:
        told = {"command": command(), "machine": machine(), "curves": [asdict(c) for c in curves]}
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
