"""What all attributions share: the request, a pass with hooks, maps from a layer (reshape)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Self, TypedDict, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError, nearest
from convscope.core.run import PLAIN, Run
from convscope.lens.lens import Lens, gradients_of
from convscope.network.network import Network, finite, forward, prepared, wide
from convscope.network.outputs import Meaning, Target, Targets, meaning, scored
from convscope.records.maps import Attribution

Reshape = Callable[[Tensor], Tensor]
"""From a layer's output (b, …) to its feature maps (b, maps, h, w)."""


EXTRA_TOKENS = range(9)
"""A transformer's tokens that stand for no patch: class token, distillation token, registers."""


MISFIT = math.log(2)
"""Small maps of a picture may be out of its aspect by this much through rounding alone."""


def has_maps(shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether an output of this shape can be read as maps of a picture of this size."""
    if shape[:1] != (1,):  # of parts of the picture, as of a detector's boxes
        return False
    try:
        maps = as_maps(shape, size)(torch.empty(shape, device="meta"))
    except ModelError:
        return False
    return maps.shape[2:].numel() > 1


def as_maps(shape: tuple[int, ...], size: tuple[int, int]) -> Reshape:
    """How an output of this shape becomes maps (b, maps, h, w) for pictures of this size.

    (b, maps, h, w) stays; (b, h, w, maps), as in Swin, and (b, tokens, maps), as in ViT, are told
    by the picture's aspect. Raises ModelError M542 where there are no maps.
    """
    if len(shape) == 4:
        plain = _misfit(shape[2:], size)
        turned = plain > MISFIT and _misfit(shape[1:3], size) < plain / 2
        return _channels_first if turned else as_is
    if len(shape) == 3:
        for extra in EXTRA_TOKENS:
            grid = _grid(shape[1] - extra, size)
            if grid is not None:
                return _tokens(extra, grid)
    what = f"puts out {shape}, in which there are no maps of the picture"
    raise ModelError("M542", "the layer", what, next_step="name another, or pass reshape=")


def _misfit(maps: tuple[int, ...], size: tuple[int, int]) -> float:
    """How far maps of this size are from the picture's aspect; maps are never larger than it."""
    if maps[0] > size[0] or maps[1] > size[1]:
        return math.inf
    return abs(math.log(size[0] * maps[1] / (size[1] * maps[0])))


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of square patches that make up this many tokens."""
    for side in range(2, min(size) // 2 + 1):
        rows, columns = size[0] // side, size[1] // side
        if rows * columns == tokens:
            return rows, columns
    return None


def as_is(output: Tensor) -> Tensor:
    return output


def _channels_first(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def _tokens(extra: int, grid: tuple[int, int]) -> Reshape:
    def patches(output: Tensor) -> Tensor:
        return output[:, extra:].transpose(1, 2).reshape(len(output), -1, *grid)

    return patches


AUTHORS = "authors"
Method = Callable[..., list[Attribution]]
"""`(model, images, **Options) -> list[Attribution]`, one for each picture."""
T = TypeVar("T")


class Options(TypedDict, total=False):
    """What every attribution method takes by name; all of it may be left out."""

    target: Target | Iterable[Target] | None
    """Class index, class name, function from scores (b, classes) to (b,), or one of these for
    each picture. Without it the likeliest class."""
    variant: str
    """Whose definition: "authors" without it."""
    classes: Sequence[str]
    """The classes' names, so that a target may be one and the result can name it."""
    run: Run
    """Progress is that of runs or maps, told by the methods that run the network many times."""


def variant_of(title: str, variants: Mapping[str, T], variant: str) -> T:
    """Raises UsageError U350 where the method has no such variant."""
    if variant not in variants:
        there = nearest(variant, variants)
        raise UsageError("U350", variant, f"no such variant of {title}; {there}")
    return variants[variant]


@dataclass
class Request:
    """One call of a method: a network, pictures, a target for each, and what was found on the way.

    All that a formula computes with is in float32, whatever the network computes in; in float64
    where the network does.
    """

    model: nn.Module
    images: Float[Tensor, "b c h w"]
    targets: Targets
    classes: Sequence[str] = ()
    reshape: Reshape | None = None
    run: Run = PLAIN
    spaces: tuple[str, ...] = ()
    """"logit", "probability", "log-probability" or "function", for each picture."""
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    notes: dict[int, list[str]] = field(default_factory=dict)
    """What to be careful about, by the picture's number."""
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What else belongs into the result's origin, by the picture's number."""

    def __post_init__(self) -> None:
        """A class is explained by its score from before a last softmax or sigmoid."""
        self.model = scored(self.model, self.images, before=not self.targets.has_function)

    @classmethod
    def of(
        cls,
        model: nn.Module | Network,
        images: Float[Tensor, "b c h w"],
        target: Target | Iterable[Target] | None = None,
        classes: Sequence[str] = (),
        **more: Any,
    ) -> Self:
        """What a user asks for. Raises UsageError U351 to U354 (targets), U355 (no pictures)."""
        images = prepared(model, images)
        targets = Targets.of(target, len(images), classes)
        return cls(scored(model, images), images, targets, classes, **more)

    @property
    def meaning(self) -> Meaning:
        return meaning(self.model)

    def note(self, picture: int, text: str) -> None:
        self.notes.setdefault(picture, []).append(text)

    def fact(self, picture: int, **facts: Any) -> None:
        self.facts.setdefault(picture, {}).update(facts)

    def settle(self, output: Any) -> Float[Tensor, "b"]:
        """The targets' scores in a network's output; from now on it is known who is meant."""
        scores = self.targets.answer(output)
        self.targets = self.targets.settled(scores.detach())
        self.spaces = self.space(self.targets)
        with torch.enable_grad():
            chosen = self.targets.scores(scores)
        self.scores = wide(chosen.detach())
        return chosen

    def space(self, targets: Targets) -> tuple[str, ...]:
        """What each target's score is."""
        return tuple("function" if callable(one) else self.meaning.space for one in targets.each)

    def completeness(
        self, number: int, found: Tensor, rise: float, least: float, why: str, **more: float
    ) -> None:
        """Write down how far the parts of a score are from what they should add up to, `rise`;
        with a note where that is more than the part `least` of it."""
        total = float(found)
        gap = abs(total - rise) / max(abs(rise), 1e-12)
        facts = {"score": float(self.scores[number]), **more, "sum": total, "relative gap": gap}
        self.fact(number, completeness=facts)
        if gap > least:
            self.note(number, why.format(total, rise))

    def maps(self, output: Tensor) -> Reshape:
        """How this output of a layer becomes feature maps."""
        height, width = self.images.shape[2:]
        return self.reshape or as_maps(tuple(output.shape), (height, width))

    def warnings(self, number: int) -> list[str]:
        """What to be careful about with a picture's map, the score it explains among it."""
        told = list(self.meaning.notes)
        if self.targets.has_function:
            pass
        elif self.meaning.space == "probability":
            told.append(
                "the network puts out probabilities, which also rise when other classes fall; "
                "the authors take the scores before the softmax"
            )
        elif self.meaning.is_before:
            told.append("the score from before that is explained")
        return [*told, *self.notes.get(number, [])]

    def result(
        self,
        number: int,
        values: Tensor,
        origin: Mapping[str, Any],
        *,
        peaks: Mapping[str, float] | None = None,
        notes: Sequence[str] = (),
        **maps: Tensor | None,
    ) -> Attribution:
        """One picture's. peaks: of each layer's map; without them that of `values`."""
        told = {**origin, **self.facts.get(number, {})}
        own = {
            "target": self.targets.words(number, self.classes),
            "peaks": {told["layer"]: float(values.max())} if peaks is None else peaks,
            "notes": [*notes, *self.warnings(number)],
        }
        return Attribution(
            values=as_array(values),
            target=self.targets.indices[number],
            method=told["method"],
            variant=told["variant"],
            layer=told["layer"],
            space=self.spaces[number],
            score=float(self.scores[number]),
            origin={**told, **own},
            **{name: None if one is None else as_array(one) for name, one in maps.items()},
        )


class ForwardPass:
    """One run of a request's network, when something of it is first asked for: what some layers
    put out, and the score's gradient there."""

    def __init__(
        self, request: Request, layers: Sequence[str], *, records_all: bool = False
    ) -> None:
        """records_all: whether also what precedes the layers records a graph."""
        self.request, self.layers, self._records_all = request, tuple(layers), records_all

    @cached_property
    def _seen(self) -> tuple[dict[str, Tensor], Float[Tensor, "b"]]:
        """Outputs in the order in which the layers ran, and the targets' scores."""
        order: dict[str, None] = {}

        def begin(output: Tensor, layer: str) -> Tensor:
            torch.set_grad_enabled(True)  # undone where the run ends
            order[layer] = None
            return output if output.requires_grad else output.detach().requires_grad_()

        edit = {layer: partial(begin, layer=layer) for layer in self.layers}
        with torch.enable_grad():  # so that weights made under inference mode are copied
            watching = Lens(self.request.model, self.layers, edit)
        with torch.set_grad_enabled(self._records_all), watching as lens:
            score = self.request.settle(forward(lens, self.request.images))
            outputs = {layer: lens[layer] for layer in self.layers}
        return {layer: outputs[layer] for layer in order}, score

    @property
    def order(self) -> tuple[str, ...]:
        """The layers in the order in which they ran, if they were run."""
        return tuple(self._seen[0]) if "_seen" in self.__dict__ else self.layers

    def activation(self, layer: str) -> Float[Tensor, "b k h w"]:
        output = self._seen[0][layer]
        return finite(layer, wide(self.request.maps(output)(output.detach())))

    def gradient(self, layer: str) -> Float[Tensor, "b k h w"]:
        """Of the score with respect to the layer's maps.

        Raises ModelError M540 (nothing can be differentiated) or M541 (no influence).
        """
        for name, one in self._gradients.items():
            if one is None:
                raise ModelError("M541", name, "has no influence on the score")
        gradient = self._gradients[layer]
        assert gradient is not None
        return finite(layer, wide(self.request.maps(gradient)(gradient)))

    def reaches(self, layer: str) -> bool:
        """Whether any gradient of the score arrives at the layer's maps. Raises ModelError M540."""
        gradient = self._gradients[layer]
        if gradient is None:
            return False
        return bool(self.request.maps(gradient)(gradient).abs().amax() > 0)

    @cached_property
    def _gradients(self) -> dict[str, Tensor | None]:
        outputs, score = self._seen
        if not score.requires_grad:
            again = ForwardPass(self.request, self.order, records_all=True)
            outputs, score = again._seen
        if not score.requires_grad:
            raise ModelError(
                "M540",
                "the score",
                "has no gradient, as the network computes under no_grad or inference_mode",
                next_step="remove that from its forward, or take a method without gradients",
            )
        with torch.enable_grad():
            found = gradients_of(wide(score).sum(), list(outputs.values()))
            return dict(zip(outputs, found, strict=True))


def enlarged(maps: Float[Tensor, "b h w"], size: Sequence[int]) -> Float[Tensor, "b height width"]:
    """Bilinear, pixel centres at the half (align_corners=False)."""
    height, width = size
    return F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]


def as_array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.cpu().numpy())
