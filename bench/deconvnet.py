"""All maps' nine strongest neurons projected, against a deconvnet as tutorials write it.

    python bench/deconvnet.py                                   AlexNet and SqueezeNet
    python bench/deconvnet.py --networks alexnet --pictures 96 --sample 60

The tutorials' way is one neuron at a time over whole maps: `MaxUnpool2d`, ReLU and
`ConvTranspose2d`, with a pass up for each neuron ("anew"), or with the switches of its picture
kept ("kept"). It runs on a sample of the neurons, evenly over layers, and its time is scaled up to
all of them ("est."). Ours is one call of `projections` for all the neurons, its passes up
included, as an atlas makes it: overlapping pools add. Mining, which finds the neurons, is not
timed. Equality is measured once with `overlap="overwrite"`, as `MaxUnpool2d` has it: how many of
the sample are equal to 1e-5 of their largest pixel. (Where two numbers under a pool are equal but
for rounding, another pass may find the other one larger.) Each line says how long ours took for
each layer; "passes" is the time until the first projection came.

AlexNet has random weights; SqueezeNet has its real ones, and pictures are real, where
`../shared/data` has them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from cam import network
from quiet import Samples, interleaved, ratio
from rows import Report, options, peak, report, row
from topk import photographs
from torch import Tensor, nn
from torchvision.models.squeezenet import Fire

from convscope.lens.lens import Lens
from convscope.network.preprocess import Preprocess
from convscope.network.zfnet import alexnet
from convscope.pictures.pictures import Pictures
from convscope.representations.projections import projections
from convscope.trace.backward.descent import Neuron

K = 9
GOALS = {
    "alexnet": {"anew": (12.0, 25.0), "kept": (6.0, 12.0)},
    "squeezenet": {"anew": (None, None), "kept": (5.0, 10.0)},
}
Wanted = dict[str, list[Neuron]]


class Tutorial:
    """A chain of convolutions, ReLUs, pools and fire modules, up to one layer, of one picture."""

    def __init__(self, steps: Sequence[nn.Module], image: Tensor) -> None:
        self.steps, self.image = steps, image
        self.up()

    def up(self) -> None:
        value = self.image[None]
        self.kept: list[tuple[nn.Module, torch.Size, Tensor | None]] = []
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

    def down(self, neuron: Neuron) -> Tensor:
        at = (0, *neuron[1:])
        signal = torch.zeros_like(self.top)
        signal[at] = self.top[at].clamp(min=0)
        for step, shape, switches in reversed(self.kept):
            if switches is not None:
                signal = F.max_unpool2d(signal, switches, 3, 2, output_size=shape)
            elif isinstance(step, nn.ReLU):
                signal = signal.relu()
            elif isinstance(step, nn.Conv2d):
                signal = transposed(step, signal, shape)
            elif isinstance(step, Fire):
                signal = through(step, signal.relu(), shape)
        return signal[0]


def transposed(step: nn.Conv2d, signal: Tensor, shape: torch.Size) -> Tensor:
    sides = zip(
        shape[2:], signal.shape[2:], step.stride, step.padding, step.kernel_size, strict=True
    )
    extra = [size - ((out - 1) * s - 2 * p + k) for size, out, s, p, k in sides]
    return F.conv_transpose2d(signal, step.weight, None, step.stride, step.padding, extra)


def through(fire: Fire, signal: Tensor, shape: torch.Size) -> Tensor:
    split = fire.expand1x1.out_channels
    inner = transposed(fire.expand1x1, signal[:, :split], signal.shape)
    inner = inner + transposed(fire.expand3x3, signal[:, split:], signal.shape)
    return transposed(fire.squeeze, inner.relu(), shape)


def chain(name: str) -> tuple[nn.Module, list[tuple[str, nn.Module]], list[str], int]:
    """A network, its steps by name, the layers to be projected from, and its pictures' side."""
    if name == "alexnet":
        net = alexnet().eval()
        steps = list(net.named_children())
        layers = [step for step, module in steps if isinstance(module, nn.Conv2d)]
        return net, steps, layers, 227
    net = network(name)
    steps = [(f"features.{step}", module) for step, module in net.features.named_children()]
    layers = [step for step, module in steps if isinstance(module, nn.Conv2d | Fire)]
    return net, steps, layers, 224


def strongest(net: nn.Module, layers: list[str], images: Tensor) -> Wanted:
    """The neurons at which each map is strongest, in the nine pictures in which it is."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    widths: dict[str, int] = {}
    for some in images.split(8):
        with Lens(net, layers) as lens:
            lens(some)
            for layer in layers:
                widths[layer] = lens[layer].shape[3]
                best = lens[layer].flatten(2).max(2)
                found[layer].append((best.values, best.indices))
    wanted: Wanted = {}
    for layer, parts in found.items():
        values, places = (torch.cat(each) for each in zip(*parts, strict=True))
        pictures = values.topk(min(K, len(images)), 0).indices.T.tolist()
        wanted[layer] = [
            Neuron(picture, channel, *divmod(int(places[picture, channel]), widths[layer]))
            for channel, nine in enumerate(pictures)
            for picture in nine
        ]
    return wanted


class Ours:
    """All neurons in one call; remembers how long each layer took."""

    def __init__(self, net: nn.Module, images: Tensor, wanted: Wanted) -> None:
        self.net, self.images, self.wanted = net, images, wanted
        self.seconds: dict[str, float] = {}

    def __call__(self) -> None:
        self.seconds = {}
        begin, layer = time.perf_counter(), "passes"
        for found in projections(self.net, self.images, self.wanted):
            if found.layer != layer:
                self.seconds[layer] = time.perf_counter() - begin
                begin, layer = time.perf_counter(), found.layer
        self.seconds[layer] = time.perf_counter() - begin

    def by_layer(self) -> str:
        parts = [f"passes {self.seconds['passes']:.2f} s"]
        for layer, neurons in self.wanted.items():
            each = self.seconds[layer] / len(neurons) * 1e3
            parts.append(f"{layer} {len(neurons)} × {each:.2f} ms")
        return ", ".join(parts)


def differences(
    net: nn.Module, images: Tensor, sample: list[tuple[str, Neuron]], theirs: list[Tensor]
) -> list[float]:
    """Of ours from theirs, each as a share of its largest pixel."""
    wanted: Wanted = {}
    places: dict[tuple[str, int], Tensor] = {}
    for (layer, neuron), expected in zip(sample, theirs, strict=True):
        wanted.setdefault(layer, []).append(neuron)
        places[layer, len(wanted[layer]) - 1] = expected
    found = []
    for one in projections(net, images, wanted, overlap="overwrite"):
        expected = places[one.layer, one.number]
        rest, (rows, columns) = expected.clone(), one.pixels.shape[1:]
        rest[:, one.top : one.top + rows, one.left : one.left + columns] -= one.pixels
        found.append(float(rest.abs().max() / expected.abs().max().clamp(min=1e-30)))
    return found


def measured(out: Report, name: str, images: Tensor, size: int) -> None:
    net, steps, layers, _ = chain(name)
    wanted = strongest(net, layers, images)
    everyone = [(layer, neuron) for layer in layers for neuron in wanted[layer]]
    sample = everyone[:: max(1, len(everyone) // size)]
    until = {step: number + 1 for number, (step, _) in enumerate(steps)}
    modules = [module for _, module in steps]
    each = [
        (Tutorial(modules[: until[layer]], images[neuron.picture]), neuron)
        for layer, neuron in sample
    ]

    def kept() -> list[Tensor]:
        return [tutorial.down(neuron) for tutorial, neuron in each]

    def anew() -> list[Tensor]:
        return [(tutorial.up(), tutorial.down(neuron))[1] for tutorial, neuron in each]

    ours = Ours(net, images, wanted)
    jobs: dict[str, Callable[[], object]] = {"ours": ours, "kept": kept, "anew": anew}
    memory = peak(ours)
    apart = differences(net, images, sample, kept())
    times = interleaved(jobs, out.rounds, patience=out.patience, warm=False)
    equal = f"{sum(share <= 1e-5 for share in apart)} of {len(apart)} equal to 1e-5"
    note = f"{equal} (largest difference {max(apart):.1e}); {ours.by_layer()}"
    job = f"{len(everyone)} projections, {name}, {len(images)} pictures"
    print(f"{job}: ours {times['ours']}  +{memory:.0f} MB\n    {note}", flush=True)
    for peer, which in (("anew", "a pass each"), ("kept", "switches kept")):
        theirs = scaled(times[peer], len(everyone) / len(sample))
        print(f"    {peer}, est. from {len(sample)}: {theirs}", flush=True)
        print(f"    ratio {ratio(times['ours'], theirs)}", flush=True)
        floor, goal = GOALS[name][peer]
        more = {"ours_mb": memory, "note": note, "floor": floor, "goal": goal}
        out.rows.append(row(job, f"tutorial, {which}, est.", times["ours"], theirs, **more))


def scaled(samples: Samples, factor: float) -> Samples:
    return replace(samples, seconds=[seconds * factor for seconds in samples.seconds])


def pictures(side: int, count: int) -> Tensor:
    ready = Preprocess.imagenet(crop=side)
    with tempfile.TemporaryDirectory() as made, Pictures(photographs(Path(made))) as folder:
        numbers = range(0, len(folder), max(1, len(folder) // count))[:count]
        seen = folder.read(ready.framing, list(numbers))
        return torch.stack([ready.tensor(picture.pixels) for picture in seen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--sample", type=int, default=60, help="neurons of the tutorials' way")
    options(parser, rounds=2)
    given = parser.parse_args()
    out = report(given)
    with torch.no_grad():
        for name in given.networks:
            images = pictures(chain(name)[3], given.pictures)
            measured(out, name, images, given.sample)
    out.save()


if __name__ == "__main__":
    main()
