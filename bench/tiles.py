"""Winograd's tiles on and off, in occlusion and in projections, by CPU time of one thread.

    python bench/tiles.py
    python bench/tiles.py --networks vgg16 --rounds 1
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python bench/tiles.py

Off and on in turn, so that what else a machine does hits both; the best round of each counts.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from unittest.mock import patch

import torch
from deconvnet import chain, pictures, strongest
from occlusion import JOBS, network, ours, picture

from convscope.representations.projections import projections
from convscope.trace.backward import windows as transposed
from convscope.trace.forward import plan

EVERY = 8
"""One of so many neurons is projected."""


def occluded(name: str) -> Callable[[], object]:
    return ours(network(name), picture(), JOBS[name])


def projected(name: str) -> Callable[[], object]:
    net, _, layers, side = chain(name)
    images = pictures(side, 12)
    wanted = {layer: some[::EVERY] for layer, some in strongest(net, layers, images).items()}
    return lambda: [None for _ in projections(net, images, wanted)]


def without(job: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with (
            patch.object(plan, "tile", lambda _, windows: (0, [False] * len(windows))),
            patch.object(transposed.Even, "_tile", lambda *_: 0),
        ):
            return job()

    return run


def race(title: str, job: Callable[[], object], rounds: int) -> None:
    best = {"without": float("inf"), "with": float("inf")}
    for _ in range(rounds):
        for way, run in (("without", without(job)), ("with", job)):
            begin = time.process_time()
            run()
            best[way] = min(best[way], time.process_time() - begin)
    saved = 1 - best["with"] / best["without"]
    print(f"| {title} | {best['without']:.2f} s | {best['with']:.2f} s | {saved:.0%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(torch.backends.cpu.get_cpu_capability(), "| without tiles | with | saved")
    with torch.no_grad():
        for name in given.networks:
            race(f"occlusion, {name}", occluded(name), given.rounds)
            if name in ("alexnet", "squeezenet"):
                race(f"projections, {name}", projected(name), given.rounds)


if __name__ == "__main__":
    main()
