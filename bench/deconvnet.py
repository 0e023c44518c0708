"""Projections of many neurons against a deconvnet as tutorials write it, in one process.

    python bench/deconvnet.py                                 AlexNet and ZFNet, all convolutions
    python bench/deconvnet.py --networks alexnet --layers conv3 --neurons 16 --rounds 5

The tutorials' way: `MaxUnpool2d`, ReLU and `ConvTranspose2d` over whole maps, one neuron at a time,
here with the picture's switches kept ("kept") and with a pass up for each neuron ("anew"), as
they do it. Ours is one call of `project` for all the neurons of one picture, its pass up included.
`overlap="overwrite"`, since only the same pictures can be compared. For each line: times for one
neuron, their ratios with ranges, and the largest difference as a share of the largest pixel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from quiet import interleaved, ratio
from rows import Report, options, report, row
from torch import Tensor, nn

from convscope.methods.deconvnet import project
from convscope.models.alexnet import alexnet
from convscope.models.zfnet import zfnet

NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], int]] = {
    "alexnet": (alexnet, 227),
    "zfnet": (zfnet, 224),
}


class Tutorial:
    """A chain of convolutions, ReLUs and pools, up to one layer."""

    def __init__(self, net: nn.Sequential, image: Tensor, layer: str) -> None:
        names = [name for name, _ in net.named_children()]
        self.steps = list(net.children())[: names.index(layer) + 1]
        self.image = image
        self.up()

    def up(self) -> None:
        value, self.kept = self.image[None], list[tuple[nn.Module, torch.Size, Any]]()
        for step in self.steps:
            shape, switches = value.shape, None
            if isinstance(step, nn.MaxPool2d):
                value, switches = F.max_pool2d(
                    value, 3, 2, ceil_mode=step.ceil_mode, return_indices=True
                )
            else:
                value = step(value.clone())
            self.kept.append((step, shape, switches))
        self.top = value

    def down(self, channel: int, row: int, column: int) -> Tensor:
        signal = torch.zeros_like(self.top)
        signal[0, channel, row, column] = self.top[0, channel, row, column].clamp(min=0)
        for step, shape, switches in reversed(self.kept):
            if isinstance(step, nn.MaxPool2d):
                signal = F.max_unpool2d(signal, switches, 3, 2, output_size=shape)
            elif isinstance(step, nn.ReLU):
                signal = signal.relu()
            elif isinstance(step, nn.Conv2d):
                extra = [
                    size - ((out - 1) * s - 2 * p + k)
                    for size, out, s, p, k in zip(
                        shape[2:],
                        signal.shape[2:],
                        step.stride,
                        step.padding,
                        step.kernel_size,
                        strict=True,
                    )
                ]
                signal = F.conv_transpose2d(
                    signal, step.weight, None, step.stride, step.padding, extra
                )
        return signal[0]


def measured(out: Report, name: str, layer: str, neurons: int) -> None:
    make, side = NETWORKS[name]
    net, image = make().eval(), torch.randn(3, side, side)
    tutorial = Tutorial(net, image, layer)
    _, channels, height, width = tutorial.top.shape
    torch.manual_seed(0)
    active = (tutorial.top[0] > 0).nonzero()
    chosen = active[torch.randint(len(active), (neurons,))].tolist()
    places = [(channel, row, column) for channel, row, column in chosen]

    def ours() -> Tensor:
        return project(net, image, layer, places, overlap="overwrite")

    def kept() -> list[Tensor]:
        return [tutorial.down(*place) for place in places]

    def anew() -> list[Tensor]:
        return [(tutorial.up(), tutorial.down(*place))[1] for place in places]

    a, b = ours(), torch.stack(kept())
    difference = float(((a - b).abs().amax((1, 2, 3)) / b.abs().amax((1, 2, 3))).max())
    jobs = {"ours": ours, "kept": kept, "anew": anew}
    times = interleaved(jobs, out.rounds, patience=out.patience)
    mine, *peers = times.values()
    each = ", ".join(
        f"{key} {samples.median / neurons * 1e3:.2f}" for key, samples in times.items()
    )
    print(f"{name} {layer} ({channels} × {height} × {width}): ms a neuron: {each}")
    print(f"    faster than kept {ratio(mine, peers[0])}, than anew {ratio(mine, peers[1])}")
    print(f"    largest difference {difference:.1e}", flush=True)
    job = f"{neurons} projections, {name} {layer}"
    note = f"largest difference {difference:.1e}"
    for peer, which in zip(
        peers, ("tutorial, switches kept", "tutorial, a pass each"), strict=True
    ):
        out.rows.append(row(job, which, mine, peer, note=note))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--layers", nargs="+", default=[f"conv{n}" for n in range(1, 6)])
    parser.add_argument("--neurons", type=int, default=16)
    options(parser)
    given = parser.parse_args()
    out = report(given)
    with torch.no_grad():
        for name in given.networks:
            for layer in given.layers:
                measured(out, name, layer, given.neurons)
    out.save()


if __name__ == "__main__":
    main()
