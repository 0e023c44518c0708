"""A forward pass from any layer of which signals can be sent back to the pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError
from convscope.lens.lens import Lens, gradients_of
from convscope.lens.twin import bare, refuse_scripted
from convscope.trace.backward.descent import Neurons, WindowedBackward
from convscope.trace.backward.steps import BackwardGraph
from convscope.trace.backward_rule import BackwardRule


class Neuron(NamedTuple):
    """One place of one feature map of one picture."""

    picture: int
    channel: int
    row: int
    column: int


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass, to which any number of ways down belong."""

    pixels: Float[Tensor, "b c h w"]
    output: Any
    """What the network put out; None if only its layers were asked for."""
    lens: Lens
    rule: BackwardRule

    def maps(self, layer: str) -> Float[Tensor, "b c h w"]:
        """A layer's feature maps; the units of a fully connected layer are maps of one place.

        Raises ModelError M506 if the layer has neither.
        """
        output = self.lens[layer]
        if output.dim() == 2:
            return output[:, :, None, None]
        if output.dim() != 4:
            shape = " × ".join(str(side) for side in output.shape)
            raise ModelError("M506", layer, f"puts out {shape}, which are no feature maps")
        return output

    def down(
        self, start: Float[Tensor, "*shape"], signal: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "b c h w"]:
        """What arrives at the pixels. Raises ModelError M540 if there is no way down, M532 if the
        network computes parts of it anew."""
        arrived = None
        if start.requires_grad:
            # A product, as torch imports sympy (seconds) when it is given a signal to start from.
            total = (start * signal).sum()
            with self.rule:
                (arrived,) = gradients_of(total, [self.pixels], again=True)
        if arrived is None:
            what = "no signal can reach the pixels: the way is cut by no_grad, detach or rounding"
            raise ModelError("M540", "the network", what)
        return arrived

    def down_each(
        self, layer: str, neurons: Sequence[Neuron], values: Float[Tensor, "n"]
    ) -> Float[Tensor, "n c h w"]:
        """What arrives at the pixels of each neuron's picture when its value is sent down alone.

        Windows of maps are sent where `WindowedBackward` knows the way, whole maps elsewhere, and
        under the gradient rule, which is to be autograd's own.
        """
        maps = self.maps(layer)
        self.rule.look([maps], [self.pixels])
        graph = BackwardGraph({layer: maps}, self.pixels)
        backward = WindowedBackward(graph, layer, self.rule.rule)
        if not backward.is_known or self.rule.rule == "gradient":
            return self._down_whole(maps, neurons, values)
        arrived = self.pixels.new_zeros(len(neurons), *self.pixels.shape[1:])
        kept = graph.kept({layer: [self.rule.rule]})
        for numbers, signal in backward.down(Neurons.of_each(neurons, values), kept):
            parts = zip(numbers, signal.clipped(graph.size), strict=True)
            for number, (top, left, part) in parts:
                height, width = part.shape[1:]
                arrived[number, :, top : top + height, left : left + width] = part
        return arrived

    def _down_whole(self, maps: Tensor, neurons: Sequence[Neuron], values: Tensor) -> Tensor:
        """Pictures do not mix, so one pass serves a neuron of each."""
        arrived = self.pixels.new_zeros(len(neurons), *self.pixels.shape[1:])
        waiting = list(range(len(neurons)))
        while waiting:
            turn = {neurons[number].picture: number for number in reversed(waiting)}
            signal = torch.zeros_like(maps)
            for number in turn.values():
                signal[neurons[number]] = values[number]
            whole = self.down(maps, signal)
            for picture, number in turn.items():
                arrived[number] = whole[picture]
            waiting = [number for number in waiting if number not in turn.values()]
        return arrived


def require_tensor(images: object) -> None:
    """Raises UsageError U520 for a picture that was not made ready for a network."""
    if not isinstance(images, Tensor):
        made = "network.preprocess.batch([network.preprocess.framing(picture)])"
        raise UsageError(
            "U520",
            "pictures",
            f"a {type(images).__name__} is no preprocessed tensor",
            next_step=f"for a Pillow picture: {made}",
        )


def require_pictures(images: Tensor) -> None:
    """Raises UsageError U520 for anything but preprocessed pictures."""
    require_tensor(images)
    if images.dim() != 4 or 0 in images.shape:
        shape = " × ".join(str(side) for side in images.shape)
        what = f"{shape} is not (pictures, channels, height, width)"
        raise UsageError("U520", "pictures", what, next_step="one picture is picture[None]")


@contextmanager
def forward_pass(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    layers: Sequence[str],
    rule: BackwardRule,
    *,
    to_the_end: bool = False,
    in_rows: bool = False,
) -> Iterator[ForwardPass]:
    """Run the network, as far as the layers or to the end; signals go down inside the block.

    images: preprocessed; they go to the weights' device and precision. It works under a caller's
    `no_grad` and `inference_mode`, and leaves no gradient anywhere. in_rows: with the numbers of a
    place side by side in memory, which is faster and rounds otherwise. Raises as Lens does, and
    UsageError U520 for pictures of another shape.
    """
    model = bare(model)
    require_pictures(images)
    for name, module in model.named_modules():
        refuse_scripted(name, module)
    weight = next((p for p in model.parameters() if p.is_floating_point()), images)
    with torch.inference_mode(False), torch.enable_grad(), Lens(model, layers) as lens:
        pixels = images.detach().to(weight.device, weight.dtype).clone().requires_grad_()
        layout = torch.channels_last if in_rows else torch.preserve_format
        entering = pixels.clone(
            memory_format=layout
        )  # a network may work in place on what it is given
        output = None
        with rule:
            if to_the_end:
                output = lens(entering)
            elif layers:
                lens.reach(entering)
        yield ForwardPass(pixels, output, lens, rule)
