"""CAMs of more than one pass or layer: Score-CAM, Ablation-CAM and FullGrad.

Ablation-CAM takes short cuts; from the fastest on; all give the same numbers:
all that follows is affine (average pool and linear layer): the gradient says it without a run;
the maps are first mixed by one convolution or linear layer: its results without each map follow
from one run of it, and only what comes after runs again; otherwise what follows the layer runs on
batches of changed activations, and only where even that cannot be done exactly, the whole network.

FullGrad's source: Srinivas and Fleuret 2019, "Full-Gradient Representation for Neural Network
Visualization". For a network of linear layers, rectifiers and pools the score is exactly
f(x) = ∇f·x + Σ b·∂f/∂b over all biases; how well that holds is part of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convscope.attribution.base import ForwardPass, Request, as_is, enlarged
from convscope.attribution.cam import Map, weighted
from convscope.core.errors import ModelError, UsageError
from convscope.lens.lens import Lens, gradients_of
from convscope.lens.torch_private import unseen
from convscope.network.network import batch_size, finite, forward, wide
from convscope.network.outputs import Targets
from convscope.trace.tail import Mixing, Tail, Without, record

Ask = Callable[[Tensor], Any]
"""From pictures to the network's output."""


@dataclass(frozen=True)
class Masking:
    """What a variant does differently."""

    corners: bool = False
    """Whether the enlarged map's corners lie on the picture's corners."""
    epsilon: float = 0.0
    """Added to the range by which a map is divided."""
    probabilities: bool = False
    """Whether a map's score is the class probability, or the target's own score."""
    softmax: bool = False
    """Whether the maps' scores are put through a softmax over the maps."""
    flat: bool = False
    """Whether maps without any contrast take part."""


WAYS = {
    "authors": Masking(probabilities=True),
    "paper": Masking(softmax=True),
    "softmax": Masking(softmax=True),
    "pytorch-grad-cam": Masking(corners=True, epsilon=1e-8, softmax=True, flat=True),
}


def by_masks(run: ForwardPass, layer: str, way: Masking) -> Map:
    """ReLU(Σ w_k A_k), w_k from how the masked picture scores in one variant."""
    A, request = run.activation(layer), run.request
    room = batch_size(request.model, request.images)
    with torch.inference_mode(), Lens(request.model, ()) as lens:
        ask = partial(forward, lens)
        weights = [_weights(request, ask, n, maps, way, room) for n, maps in enumerate(A)]
    if way.probabilities:
        spaces = ("probability" if space == "logit" else space for space in request.spaces)
        request.spaces = tuple(spaces)
    return weighted(torch.stack(weights), A)


def _weights(
    request: Request, ask: Ask, number: int, maps: Float[Tensor, "k h w"], way: Masking, room: int
) -> Float[Tensor, "k"]:
    """One picture's weights. Equal maps are tried once; flat ones not at all."""
    contrast = maps.flatten(1).amax(1) > maps.flatten(1).amin(1)
    used = torch.ones_like(contrast) if way.flat else contrast
    weights = maps.new_zeros(len(maps))
    if not bool(used.any()):
        return weights
    kinds, which = _distinct(maps[used])
    scores = torch.empty(len(kinds), dtype=weights.dtype, device=weights.device)
    for part in torch.split(torch.arange(len(kinds), device=weights.device), room):
        scores[part] = _scores(request, ask, number, kinds[part], way).to(weights.dtype)
        share = number + (int(part[-1]) + 1) / len(kinds)
        request.run.tick(round(share * len(maps)), len(maps) * len(request.images))
    scores = scores[which]
    weights[used] = scores.softmax(0) if way.softmax else scores
    return weights


def _distinct(maps: Float[Tensor, "k h w"]) -> tuple[Float[Tensor, "n h w"], Int[Tensor, "k"]]:
    kinds, which = torch.unique(maps.flatten(1), dim=0, return_inverse=True)
    return kinds.reshape(-1, *maps.shape[1:]), which


def _scores(
    request: Request, ask: Ask, number: int, maps: Float[Tensor, "n h w"], way: Masking
) -> Float[Tensor, "n"]:
    """The target's score with only these parts of the picture seen, the rest 0 (the mean)."""
    image = request.images[number : number + 1]
    target = request.targets.only(number)
    masks = F.interpolate(
        maps[:, None], image.shape[2:], mode="bilinear", align_corners=way.corners
    )
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    masks = ((masks - low) / (high - low + way.epsilon)).to(image.dtype)
    scores = target.answer(ask(image * masks))
    if way.probabilities and not target.has_function:
        scores = request.meaning.probabilities(scores)
    return wide(target.scores(scores))


ROUNDING = 0.02
"""How far off a sum may be in the lowest precision, relative to its terms."""


def by_ablation(run: ForwardPass, layer: str, weigh: Weigh) -> Map:
    """ReLU(Σ w_k A_k), picture by picture; what the weights are made of is one variant's."""
    request = run.request
    all_of = [Ablation.of(request, layer, number) for number in range(len(request.images))]
    request.targets = Targets(tuple(one.target.each[0] for one in all_of))
    request.scores = torch.stack([one.score for one in all_of])
    request.spaces = tuple(one.space for one in all_of)
    weights = torch.stack([weigh(one) for one in all_of])
    for number, one in enumerate(all_of):
        request.fact(number, ablation=one.how)
    return weighted(weights, torch.stack([one.maps for one in all_of]))


@dataclass(frozen=True)
class Ablation:
    """One picture, one layer: what the score is with all maps, and without each."""

    request: Request
    layer: str
    number: int
    target: Targets
    space: str
    tail: Tail

    @classmethod
    def of(cls, request: Request, layer: str, number: int) -> Ablation:
        """Run the network on one picture and write down what follows the layer."""
        settled: list[tuple[Targets, str]] = []

        def score(output: Any) -> Tensor:
            scores = request.targets.answer(output)
            with unseen():  # that the target is chosen is no part of it
                target = request.targets.only(number).settled(scores.detach())
                settled.append((target, request.space(target)[0]))
            return target.scores(scores)

        run = partial(forward, images=request.images[number : number + 1])
        tail = record(request.model, run, layer, score)
        return cls(request, layer, number, *settled[-1], tail)

    @cached_property
    def score(self) -> Float[Tensor, ""]:
        return wide(self.tail.score.detach()[0])

    @cached_property
    def maps(self) -> Float[Tensor, "maps h w"]:
        return self._shown(self.tail.activation)

    @cached_property
    def closed(self) -> Float[Tensor, "maps"] | None:
        """The drops from the gradient, where all that follows is affine. What the drops add up to
        is checked, as a network may have gradients of its own making."""
        if self.tail.obstacle or not all(call.is_affine for call in self.tail.calls):
            return None
        (gradient,) = gradients_of(self.tail.score.sum(), [self.tail.activation])
        if gradient is None:
            return None
        drops = (self._shown(gradient) * self.maps).flatten(1).sum(1)
        silent = wide(self.tail.again(torch.zeros_like(self.tail.activation))[0])
        off = (self.score - silent - drops.sum()).abs()
        return drops if bool(off <= ROUNDING * (1 + drops.abs().sum())) else None

    @cached_property
    def mixing(self) -> Mixing | None:
        plain = self.request.maps(self.tail.activation) is as_is
        return Mixing.of(self.tail) if plain and not self.tail.obstacle else None

    @property
    def how(self) -> str:
        """Which short cut is taken."""
        if self.closed is not None:
            return "closed form"
        if self.mixing is not None:
            return "from the first mixing of maps on"
        obstacle = self.tail.obstacle
        return f"the whole network, as {obstacle}" if obstacle else "what follows the layer"

    @cached_property
    def drops(self) -> Float[Tensor, "maps"]:
        """The score less the score without each map. A silent map changes nothing."""
        maps, output = self.maps, self.tail.activation.detach()
        places = self._places(output)
        if self.closed is not None:
            return self.closed
        without = Without(self.tail, places, torch.zeros_like(output), self.mixing, self._whole)
        drops = self.score.new_zeros(len(maps))
        for part in without.parts(maps.flatten(1).ne(0).any(1).nonzero()[:, 0]):
            drops[part] = self.score - wide(without.scores(part))
            done = self.number * len(drops) + int(part[-1]) + 1
            self.request.run.tick(done, len(drops) * len(self.request.images))
        return drops

    def _whole(self, outputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n"]:
        """The score for other outputs of the layer, from pixels on."""
        image = self.request.images[self.number]
        images = image.expand(len(outputs), *image.shape)
        with torch.no_grad(), Lens(self.request.model, (), {self.layer: lambda _: outputs}) as lens:
            return self.target.scores(self.target.answer(forward(lens, images)))

    def _shown(self, output: Tensor) -> Float[Tensor, "maps h w"]:
        return finite(self.layer, wide(self.request.maps(output)(output.detach())[0]))

    def _places(self, output: Tensor) -> Int[Tensor, "maps at"]:
        """Where in the layer's own layout the maps' numbers are: a reshape only moves numbers, so
        it may as well move their addresses."""
        reshape = self.request.maps(output)
        addresses = torch.arange(output.numel(), dtype=torch.float64).reshape(output.shape)
        places = reshape(addresses)[0].flatten(1).long().to(output.device)
        if not torch.equal(
            output.flatten()[places % output.numel()], reshape(output)[0].flatten(1)
        ):
            what = "computes; for Ablation-CAM it may only move numbers"
            raise UsageError("U356", getattr(reshape, "__name__", "reshape"), what)
        return places


Weigh = Callable[[Ablation], Float[Tensor, "maps"]]


def drop_over_score(found: Ablation) -> Float[Tensor, "maps"]:
    """(y − y_k) / y. For y < 0 the quotient would turn the map over, so |y| divides, with a note;
    where a logit's zero lies means nothing to a softmax."""
    if found.score > 0:
        return found.drops / found.score
    y = float(found.score)
    text = f"the score is {y:.4g}, not positive: divided by its size, to keep the map's sign"
    found.request.note(found.number, text)
    return found.drops / (abs(y) or 1.0)


def slope(found: Ablation) -> Float[Tensor, "maps"]:
    """(y − y_k) / ‖A_k‖: by how much the score falls for each unit of activation taken away."""
    size = found.maps.flatten(1).norm(dim=1)
    return found.drops / torch.where(size > 0, size, 1)


def plain(found: Ablation) -> Float[Tensor, "maps"]:
    """(y − y_k) / y whatever the sign of y. Raises UsageError U357 where the layer's smallest
    activation is not 0: there the library puts numbers around −10⁷ in the place of a map."""
    if float(found.maps.amin()) != 0:
        what = "its smallest activation is not 0, for which pytorch-grad-cam's way is not defined"
        step = "take a layer after a rectifier, or the authors' variant"
        raise UsageError("U357", found.layer, what, next_step=step)
    return found.drops / found.score


SHOWN_BY_PGC = frozenset({"conv2d", "batch_norm"})
"""Of the biases, pytorch-grad-cam counts only those of convolutions and batch norms."""
COMPLETE = 1e-3
"""A relative gap larger than this is no rounding: the network is not piecewise linear."""
INCOMPLETE = (
    "incomplete: input and biases add up to {:.4g}, the score is {:.4g}; the network is not made "
    "of linear layers and rectifiers"
)
BIAS_AT = {
    "conv1d": 2, "conv2d": 2, "conv3d": 2, "linear": 2,
    "conv_transpose1d": 2, "conv_transpose2d": 2, "conv_transpose3d": 2,
}  # fmt: skip
"""Calls with a bias, and its place among their arguments."""
BATCH_NORM = (
    "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps",
)  # fmt: skip
"""Its arguments by place."""
Scale = Callable[[Float[Tensor, "b c h w"]], Tensor]


def all_biases(request: Request, scale: Scale, calls: frozenset[str] | None = None) -> Map:
    """One variant's map: how each layer's maps are scaled, and which calls count."""
    biases = Biases(request, scale, calls)
    images = request.images.clone().requires_grad_()
    with torch.enable_grad(), Lens(request.model, ()) as lens:
        with biases:
            output = forward(lens, images * 1)
        score = request.settle(output)
        if not score.requires_grad:
            raise ModelError("M540", "the score", "has no gradient with respect to the picture")
        (gradient,) = gradients_of(wide(score).sum(), [images])
        assert gradient is not None
    biases.take(finite("the picture", wide(gradient)) * wide(request.images.detach()))
    for number, total in enumerate(biases.sum):
        request.completeness(number, total, float(request.scores[number]), COMPLETE, INCOMPLETE)
    return biases.total


class Biases(TorchFunctionMode):
    """Sees every call that adds a bias, however it is spelled, and adds up what they bring."""

    def __init__(self, request: Request, scale: Scale, calls: frozenset[str] | None) -> None:
        super().__init__()
        self.request = request
        self.scale = scale
        self.calls = calls
        self.total = wide(request.images.new_zeros(len(request.images), *request.images.shape[2:]))
        # Millions of terms want float64, which Apple's devices do not have.
        exact = torch.float32 if request.images.device.type == "mps" else torch.float64
        self.sum = torch.zeros(len(request.images), dtype=exact, device=request.images.device)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        bias = _bias(getattr(func, "__name__", ""), args, kwargs)
        if bias is not None and isinstance(result, Tensor) and result.requires_grad:
            axis = result.dim() - 1 if func.__name__ == "linear" else 1
            shape = [1] * result.dim()
            shape[axis] = -1
            shown = self.calls is None or func.__name__ in self.calls
            bias = wide(bias.detach()).reshape(shape)
            turn = axis == 3  # a linear layer on (b, h, w, maps)

            def see(gradient: Tensor) -> None:
                part = wide(gradient) * bias
                self.take(part.permute(0, 3, 1, 2) if turn else part, shown=shown)

            result.register_hook(see)  # type: ignore[no-untyped-call]
        return result

    def take(self, part: Float[Tensor, "b ..."], *, shown: bool = True) -> None:
        """Add one layer's bias-gradients, or the picture's own part."""
        # Of windows of a picture (Swin) there are several rows, those of one picture together.
        self.sum += part.reshape(len(self.sum), -1).sum(1, dtype=self.sum.dtype)
        if shown and part.dim() == 4 and len(part) == len(self.sum):
            small = self.scale(part.abs()).sum(1)
            self.total += enlarged(small, self.total.shape[1:])


def _bias(name: str, args: Any, kwargs: Any) -> Tensor | None:
    """What this call adds whatever its input: a bias, or what eval-mode batch norm amounts to."""
    if name in BIAS_AT:
        place = BIAS_AT[name]
        bias: Tensor | None = args[place] if len(args) > place else kwargs.get("bias")
        return bias
    if name != "batch_norm":
        return None
    given: dict[str, Any] = {"weight": None, "bias": None, "eps": 1e-5}
    given |= dict(zip(BATCH_NORM, args, strict=False)) | kwargs
    if given.get("training"):
        return None
    scale = (given["running_var"] + given["eps"]).rsqrt()
    scale = scale if given["weight"] is None else scale * given["weight"]
    shift: Tensor = -given["running_mean"] * scale
    return shift if given["bias"] is None else shift + given["bias"]


def together(part: Float[Tensor, "b c h w"]) -> Tensor:
    """Scaled to [0, 1] over all maps of the layer together, so that the biases' sizes count."""
    flat = part.flatten(1)
    low, high = flat.amin(1)[:, None, None, None], flat.amax(1)[:, None, None, None]
    return (part - low) / torch.where(high > low, high - low, 1)


def alone(part: Float[Tensor, "b c h w"]) -> Tensor:
    """Each map scaled to [0, 1] alone, after which the biases' sizes are gone."""
    low = part.amin((2, 3), keepdim=True)
    return (part - low) / (1e-7 + (part - low).amax((2, 3), keepdim=True))
