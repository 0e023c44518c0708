"""The same jobs on two checkouts, in turns: is one of them slower than the other?

    git worktree add --detach ../before v0.1.0
    python bench/trees.py ../before .                                   all jobs, some minutes
    python bench/trees.py ../before . --jobs "convscope --help" "mining alexnet" --rounds 9

Each checkout runs a job in a process of its own that lives for all rounds, with its own `src` and
the building blocks of its own `bench`, which both must have by the same names. CPU time of that
process and of those it waited for, so that neighbours change little; the best round of each counts.
A job runs once before, unmeasured. Both checkouts must lie beside the same `../shared/data`, or
both beside none: without it weights are random and pictures others.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

Job = Callable[[], object]
SMALLER = {"resnet50": 48, "vgg16": 48}
"""Strides of networks that take long; the others' is 16."""


def python(*words: str, where: Path | None = None) -> Job:
    return lambda: subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, cwd=where
    )


def command(*words: str, where: Path | None = None) -> Job:
    return python("-m", "convscope", *words, where=where)


def predicted(spare: Path) -> Job:
    from startup import prepare

    prepare(spare)
    return command("predict", "run", "cat.jpg", where=spare)


def photos(spare: Path, count: int) -> list[Path]:
    from topk import photographs

    return sorted(photographs(spare).glob("*.jpg"))[:count]


def mined(name: str, spare: Path) -> Job:
    from PIL import Image
    from topk import Held, Preprocess, convolutions, made, topk

    ready = Preprocess.imagenet()
    images = [Image.open(path).convert("RGB") for path in photos(spare, 128)]
    held: Any = Held([ready.framing(image) for image in images])
    net = made(name)
    return lambda: topk(net, held, convolutions(net), preprocess=ready, k=9)


def occluded(name: str) -> Job:
    from occlusion import Job as Square
    from occlusion import network, ours, picture

    return ours(network(name), picture(), Square(32, SMALLER.get(name, 16), ""))


def projected() -> Job:
    import torch
    from deconvnet import chain, pictures, projections, strongest

    with torch.no_grad():
        net, _, layers, side = chain("squeezenet")
        images = pictures(side, 12)
        layer = layers[4]
        wanted = {layer: strongest(net, [layer], images)[layer][::4]}
    return lambda: [None for _ in projections(net, images, wanted)]


def deconvnet_of_units() -> Job:
    from growth import Unit, deconvnet, network
    from occlusion import picture

    net, image = network("squeezenet"), picture()
    units = [[Unit(layer, 0)] for layer in ("features.3", "features.9", "features.12")]
    return lambda: [deconvnet(net, image, unit) for unit in units for _ in range(4)]


def to_tensors(spare: Path) -> Job:
    from pictures import Preprocess, each, ours

    files = [path.read_bytes() for path in photos(spare, 100)]
    ready = ours(Preprocess.imagenet())
    return lambda: each(ready, files)


def step() -> Job:
    import training

    return training.step(0.5, 16, last=True, half=False)


def trained(spare: Path) -> Job:
    """A run of a new folder each time: one epoch of the demo's recipe."""
    out = (f"run{number}" for number in range(1_000_000))
    words = ("train", "builtin:photos", "--recipe", "demo", "--set", "epochs=1", "--out")
    return lambda: command(*words, next(out), where=spare)()


def explained() -> Job:
    import explain as ours
    import numpy as np
    from skimage import data

    network = ours.convscope.load("torchvision:squeezenet1_0:weights=none")
    picture = ours.Picture(0, "cat", None, np.ascontiguousarray(data.cat()))
    return lambda: ours.explain(network, picture)


def atlas(spare: Path) -> Job:
    (spare / "some").mkdir()
    for path in photos(spare, 60):
        (spare / "some" / path.name).symlink_to(path.resolve())
    out = (f"atlas{number}" for number in range(1_000_000))
    words = ("atlas", "torchvision:squeezenet1_0:weights=none", "some", "--out")
    return lambda: command(*words, next(out), where=spare)()


JOBS: dict[str, Callable[[Path], Job]] = {
    "import convscope": lambda _: python("-c", "import convscope"),
    "convscope --help": lambda _: command("--help"),
    "predict one picture": predicted,
    "mining squeezenet": lambda spare: mined("squeezenet", spare),
    "mining alexnet": lambda spare: mined("alexnet", spare),
    "occlusion squeezenet": lambda _: occluded("squeezenet"),
    "occlusion alexnet": lambda _: occluded("alexnet"),
    "occlusion resnet50": lambda _: occluded("resnet50"),
    "projections squeezenet": lambda _: projected(),
    "deconvnet of single units": lambda _: deconvnet_of_units(),
    "pictures to tensors": to_tensors,
    "training step": lambda _: step(),
    "one epoch of the demo": trained,
    "explain one picture": lambda _: explained(),
    "atlas of 60 pictures": atlas,
}


def spent() -> float:
    """Seconds of CPU of this process and of those that it waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def serve(tree: Path, name: str, threads: int) -> None:
    """Run the job for each line that comes, and say what it took."""
    sys.path[:1] = [str(tree / "bench"), str(tree / "src")]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a job prints is no answer
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as spare:
        run = JOBS[name](Path(spare))
        run()
        for _ in sys.stdin:
            begin = spent()
            run()
            print(spent() - begin, file=answers, flush=True)


@contextmanager
def server(tree: Path, name: str, threads: int) -> Iterator[Callable[[], float]]:
    environment = os.environ | {
        "PYTHONDONTWRITEBYTECODE": "",  # a Python of users keeps bytecode
        "PYTHONPATH": str(tree / "src"),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONWARNINGS": "ignore",
    }
    words = [sys.executable, __file__, str(tree), str(tree), "--serve", name]
    words += ["--threads", str(threads)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, text=True) as child:

        def taken() -> float:
            assert child.stdin is not None
            assert child.stdout is not None
            print(file=child.stdin, flush=True)
            return float(child.stdout.readline() or "nan")

        yield taken


def race(trees: tuple[Path, Path], name: str, rounds: int, threads: int) -> None:
    """Prints a row of the table."""
    with ExitStack() as stack:
        servers = [stack.enter_context(server(tree, name, threads)) for tree in trees]
        runs = [[taken() for taken in servers] for _ in range(rounds)]
    before, now = (min(series) for series in zip(*runs, strict=True))
    spread = "; ".join(f"{max(s) / min(s) - 1:.0%}" for s in zip(*runs, strict=True))
    change = f"{now / before - 1:+.1%}".replace("%", " %")
    print(f"| {name} | {before:.3f} s | {now:.3f} s | {change} | {spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("now", type=Path)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", choices=JOBS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    trees = given.before.resolve(), given.now.resolve()
    if given.serve:
        serve(trees[0], given.serve, given.threads)
        return
    print("| job, CPU | before | now | change | slowest over fastest run |\n|---|---|---|---|---|")
    for name in given.jobs:
        race(trees, name, given.rounds, given.threads)


if __name__ == "__main__":
    main()
