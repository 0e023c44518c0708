"""A training step of ZFNet: channels last and bfloat16 against contiguous float32.

    python bench/training.py                        half width, batches of 32
    python bench/training.py --width 1 --rounds 3

Forward, loss, backward and a step of SGD with momentum, as `convscope train` takes it by its
recipe: `channels_last` and `precision`. The peer is the same step as PyTorch takes it when nothing
is said.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from rows import Report, options, report
from torch.nn import functional as F

from convscope.network.zfnet import zfnet

PEER = "contiguous float32"
GOALS = {"float32": (1.2, 1.3), "bfloat16": (1.2, 2.2)}
CLASSES = 1000


def step(width: float, batch: int, *, last: bool, half: bool) -> Callable[[], None]:
    memory = torch.channels_last if last else torch.contiguous_format
    torch.manual_seed(0)
    net = zfnet(classes=CLASSES, width=width).to(memory_format=memory).train()
    images = torch.randn(batch, 3, 224, 224).contiguous(memory_format=memory)
    wanted = torch.randint(CLASSES, (batch,))
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def run() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            scores = net(images)
        F.cross_entropy(scores.float(), wanted).backward()
        optimiser.step()

    return run


def measure(out: Report, width: float, batch: int) -> None:
    peer = {PEER: step(width, batch, last=False, half=False)}
    for precision, half in (("float32", False), ("bfloat16", True)):
        mine = step(width, batch, last=True, half=half)
        job = f"training step of ZFNet, width {width:g}, channels last, {precision}"
        out.race(job, mine, peer, {PEER: GOALS[precision]}, note=f"batches of {batch}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=32)
    options(parser)
    chosen = parser.parse_args()
    out = report(chosen)
    measure(out, chosen.width, chosen.batch)
    out.save()


if __name__ == "__main__":
    main()
