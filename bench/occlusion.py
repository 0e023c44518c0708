"""Occlusion against captum: the same map, in one process.

    python bench/occlusion.py                                  four networks, minutes
    python bench/occlusion.py --networks squeezenet --rounds 3
    python bench/occlusion.py --batches 1 16 --threads 2

captum runs the network once a position, or `perturbations_per_eval` positions at a time: its
default 1 and larger ones, of which the best counts. Ours computes what the square can change:
"map" the score of one class, as captum does; "panels" the probabilities of all classes, the
likeliest class and the activity of a map of the last convolution. The weights are random but for
SqueezeNet's, where `../shared/data` has them; the picture is real. For each line: times, captum's
time over ours with its range, the largest difference between the two maps as a share of the
largest value, and the peak of memory of one run of each
in a process of its own, beyond what was there before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models as zoo
from cam import network as cam_network
from cam import picture
from quiet import interleaved, ratio
from rows import Report, options, report, row
from torch import Tensor, nn

from convscope.attribution.occlusion import occlusion, occlusion_map


@dataclass(frozen=True)
class Job:
    patch: int
    stride: int
    layer: str
    """The last convolution: whose strongest map ours follows besides."""


JOBS = {
    "squeezenet": Job(32, 8, "classifier.1"),
    "vgg16": Job(32, 16, "features.28"),
    "alexnet": Job(32, 8, "features.10"),
    "resnet50": Job(32, 16, "layer4.2.bn3"),
}
TARGET = 281


def network(name: str) -> nn.Module:
    if name != "alexnet":
        return cam_network(name)
    torch.manual_seed(0)
    return zoo.alexnet(weights=None).eval()


def ours(net: nn.Module, image: Tensor, job: Job) -> Callable[[], np.ndarray]:
    return lambda: (
        occlusion_map(net, image, target=TARGET, patch=job.patch, stride=job.stride)[0].values
    )


def panels(net: nn.Module, image: Tensor, job: Job) -> Callable[[], Any]:
    how: dict[str, Any] = {"layer": job.layer, "patch": job.patch, "stride": job.stride}
    return lambda: occlusion(net, image[0], target=TARGET, **how)


def captum(net: nn.Module, image: Tensor, job: Job, batch: int) -> Callable[[], np.ndarray]:
    from captum.attr import Occlusion

    window, stride = (image.shape[1], job.patch, job.patch), (1, job.stride, job.stride)

    def run() -> np.ndarray:
        with torch.no_grad():
            found = Occlusion(net).attribute(
                image,
                window,
                stride,
                baselines=0.0,
                target=TARGET,
                perturbations_per_eval=batch,
            )
        return found[0, 0].numpy()

    return run


def made(name: str, kind: str) -> Callable[[], Any]:
    net, image, job = network(name), picture(), JOBS[name]
    if kind in OURS:
        return OURS[kind](net, image, job)
    return captum(net, image, job, int(kind))


OURS = {"map": ours, "panels": panels}
GOALS = {"squeezenet": (10, 14), "vgg16": (10, 14), "alexnet": (3.5, 5), "resnet50": (2.5, 4)}
"""Times as fast as captum at its best: floor and goal."""


def _peak(name: str, kind: str, threads: int, answer: Any) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    run = made(name, kind)
    with torch.no_grad():
        network(name)(picture())
    before = _high()
    run()
    answer.put((_high() - before) / 1024)


def _high() -> int:
    """The peak of this process's memory, in KB. (`getrusage` inherits the parent's.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = (one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1])


def peak(name: str, kind: str) -> float:
    """Megabytes that one run adds to the peak of a fresh process."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=_peak, args=(name, kind, torch.get_num_threads(), answer))
    child.start()
    found: float = answer.get()
    child.join()
    return found


def measure(name: str, batches: list[int], out: Report) -> str:
    jobs = {kind: made(name, kind) for kind in [*OURS, *map(str, batches)]}
    mine, peer = jobs["map"](), jobs[str(batches[-1])]()
    difference = float(np.abs(mine - peer).max() / np.abs(peer).max())
    samples = interleaved(jobs, out.rounds, patience=out.patience, warm=False)
    best = min(map(str, batches), key=lambda kind: samples[kind].median)
    job = JOBS[name]
    lines = [f"{name}, {job.patch} px, stride {job.stride}: maps differ by {difference:.1e}"]
    for kind in OURS:
        lines.append(f"    ours, {kind:11} {samples[kind]}  +{peak(name, kind):.0f} MB")
    title = f"occlusion {name}, {job.patch} px, stride {job.stride}"
    floor, goal = GOALS[name]
    found = row(title, "captum at its best", samples["map"], samples[best], floor=floor, goal=goal)
    out.rows.append(found)
    for kind in sorted({str(batches[0]), best}, key=int):
        which = "captum's best" if kind == best else "captum"
        ratios = ", ".join(f"{one} {ratio(samples[one], samples[kind])}" for one in OURS)
        lines.append(f"    {which} ({kind}) {samples[kind]}  +{peak(name, kind):.0f} MB: {ratios}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options(parser, rounds=3)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore")
    out = report(chosen)
    for name in chosen.networks:
        print(measure(name, chosen.batches, out), flush=True)
    out.save()


if __name__ == "__main__":
    main()
