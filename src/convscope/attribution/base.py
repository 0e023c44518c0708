"""What do a layer's feature maps and the score's gradient look like on these pictures?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.attribution.layer import Reshape, as_maps
from convscope.errors import ModelError
from convscope.lens.lens import Lens, gradients_of
from convscope.network.forward import finite, forward, wide
from convscope.network.outputs import Meaning, meaning, scored
from convscope.network.targets import Targets
from convscope.run import PLAIN, Run


@dataclass
class Request:
    """One call of a method: a network, pictures, a target for each, and what was found on the way.

    All that a formula computes with is in float32, whatever the network computes in; in float64
    where the network does.
    """

    model: nn.Module
    images: Float[Tensor, "b c h w"]
    aims: Targets
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
        self.model = scored(self.model, self.images, before=not self.aims.has_function)

    @property
    def meaning(self) -> Meaning:
        return meaning(self.model)

    def note(self, picture: int, text: str) -> None:
        self.notes.setdefault(picture, []).append(text)

    def fact(self, picture: int, **facts: Any) -> None:
        self.facts.setdefault(picture, {}).update(facts)

    def settle(self, output: Any) -> Float[Tensor, "b"]:
        """The targets' scores in a network's output; from now on it is known who is meant."""
        scores = self.aims.answer(output)
        self.aims = self.aims.settled(scores.detach())
        self.spaces = self.space(self.aims)
        with torch.enable_grad():
            chosen = self.aims.scores(scores)
        self.scores = wide(chosen.detach())
        return chosen

    def space(self, aims: Targets) -> tuple[str, ...]:
        """What each target's score is."""
        return tuple("function" if callable(one) else self.meaning.space for one in aims.each)

    def warnings(self, number: int) -> list[str]:
        """What to be careful about with a picture's map, the score it explains among it."""
        found = list(self.meaning.notes)
        space = self.meaning.space
        if self.aims.has_function:
            pass
        elif space == "probability":
            found.append(
                "the network puts out probabilities, which also rise when other classes fall; "
                "the authors take the scores before the softmax"
            )
        elif self.meaning.is_before:
            found.append("the score from before that is explained")
        return [*found, *self.notes.get(number, [])]

    def look(self, layers: Sequence[str]) -> ForwardPass:
        """Run the network once and keep what these layers put out, in the order of their runs."""
        return ForwardPass.of(self, tuple(layers), from_start=False)

    def maps(self, output: Tensor) -> Reshape:
        """How this output of a layer becomes feature maps."""
        height, width = self.images.shape[2:]
        return self.reshape or as_maps(tuple(output.shape), (height, width))


@dataclass
class ForwardPass:
    """What one run of a network showed at some layers."""

    case: Request
    layers: tuple[str, ...]
    outputs: dict[str, Tensor]
    score: Float[Tensor, "b"]

    @classmethod
    def of(cls, case: Request, layers: tuple[str, ...], *, from_start: bool) -> ForwardPass:
        """Only what follows the first of the layers records a graph, unless asked otherwise."""

        order: dict[str, None] = {}

        def begin(output: Tensor, layer: str) -> Tensor:
            torch.set_grad_enabled(True)  # undone where the run ends
            order[layer] = None
            return output if output.requires_grad else output.detach().requires_grad_()

        edit = {layer: partial(begin, layer=layer) for layer in layers}
        with torch.enable_grad():  # so that weights made under inference mode are copied
            watching = Lens(case.model, layers, edit)
        with torch.set_grad_enabled(from_start), watching as lens:
            score = case.settle(forward(lens, case.images))
            outputs = {layer: lens[layer] for layer in layers}
        return cls(case, tuple(order), outputs, score)

    def activation(self, layer: str) -> Float[Tensor, "b k h w"]:
        output = self.outputs[layer]
        return finite(layer, wide(self.case.maps(output)(output.detach())))

    def gradient(self, layer: str) -> Float[Tensor, "b k h w"]:
        """Of the score with respect to the layer's maps."""
        found = self.gradients[layer]
        return finite(layer, wide(self.case.maps(found)(found)))

    def reaches(self, layer: str) -> bool:
        """Whether any gradient of the score arrives at the layer's maps. Raises ModelError M540."""
        found = self._arrived[layer]
        return found is not None and bool(self.case.maps(found)(found).abs().amax() > 0)

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Raises ModelError M540 (nothing can be differentiated) or M541 (no influence)."""
        for layer, gradient in self._arrived.items():
            if gradient is None:
                raise ModelError("M541", layer, "has no influence on the score")
        return {layer: one for layer, one in self._arrived.items() if one is not None}

    @cached_property
    def _arrived(self) -> dict[str, Tensor | None]:
        sight = (
            self
            if self.score.requires_grad
            else ForwardPass.of(self.case, self.layers, from_start=True)
        )
        if not sight.score.requires_grad:
            raise ModelError(
                "M540",
                "the score",
                "has no gradient, as the network computes under no_grad or inference_mode",
                next_step="remove that from its forward, or take a method without gradients",
            )
        outputs = [sight.outputs[layer] for layer in self.layers]
        with torch.enable_grad():
            total = wide(sight.score).sum()
            return dict(zip(self.layers, gradients_of(total, outputs), strict=True))
