"""One picture of a run predicted, as a command: against `import torch` in a process of its own.

    python bench/startup.py --rounds 7

CPU time of the whole process, system included, as neighbours hardly change it; the two in turn.
The run's network is the demo's, with random weights. What both leave in the disk cache and their
bytecode is there from a first, unmeasured turn, unless Python may not keep bytecode here.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from quiet import Samples, ratio
from rows import options, report, row

from convscope.network.checkpoint import save_weights
from convscope.network.load import Card, load

PEER = "import torch"
FLOOR, GOAL = 1 / 1.5, 1 / 1.2
SPEC = "zfnet:width=0.5,norm=batch,head=compact,dropout=0.1"


def spent(command: Sequence[str], where: Path) -> float:
    """Seconds of CPU that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=where, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def prepare(where: Path) -> None:
    network = load(SPEC, classes=14)
    card = Card(SPEC, tuple(map(str, range(14))), network.preprocess)
    (where / "run").mkdir()
    save_weights(where / "run" / "best.safetensors", network.model.state_dict(), card.metadata())
    Image.radial_gradient("L").convert("RGB").save(where / "cat.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options(parser)
    out = report(parser.parse_args())
    predict = "from convscope.cli.app import main; main(['predict', 'run', 'cat.jpg'])"
    jobs = {name: [sys.executable, "-c", name] for name in (PEER, predict)}
    samples = {name: Samples() for name in jobs}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for turn in range(-1, out.rounds):
            for name, command in jobs.items():
                taken = spent(command, Path(folder))
                samples[name].seconds += [taken] * (turn >= 0)
    job = "predict one picture of a run, as a command"
    ours, theirs = samples[predict], samples[PEER]
    out.rows.append(row(job, PEER, ours, theirs, unit="s of CPU", floor=FLOOR, goal=GOAL))
    print(f"{job}: ours {ours}\n    {PEER}: {theirs}\n    ratio {ratio(ours, theirs)}")
    out.save()


if __name__ == "__main__":
    main()
