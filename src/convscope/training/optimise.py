"""How do the weights move: with which optimiser, rate and limits?"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convscope.training.recipe import Recipe


def optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the model's weights; its rate is set anew at every step."""
    weights = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in weights if p.ndim > 1]
    vectors = [p for p in weights if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": recipe.weight_decay if recipe.decay_vectors else 0.0},
    ]
    return OPTIMISERS[recipe.optimiser]([group for group in groups if group["params"]], recipe)


def _sgd(groups: Any, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov
    )


def _adam(groups: Any, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=recipe.learning_rate, betas=(0.9, recipe.beta2))


def _adamw(groups: Any, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, recipe.beta2))


OPTIMISERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}


@dataclass
class Plateau:
    """Lowers the rate when the validation loss has not fallen for `patience` epochs."""

    scale: float = 1.0
    best: float = math.inf
    waited: int = 0

    def saw(self, loss: float, recipe: Recipe) -> None:
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= recipe.patience:
            self.scale, self.waited = self.scale * recipe.factor, 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"best": None if math.isinf(self.best) else self.best}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Plateau:
        best = math.inf if plain["best"] is None else plain["best"]
        return cls(plain["scale"], best, plain["waited"])


def rate(recipe: Recipe, step: int, total: int, plateau: Plateau) -> float:
    """Learning rate at a step, both counted over the whole run, from 0."""
    scales = {
        "constant": 1.0,
        "plateau": plateau.scale,
        "onecycle": _onecycle(recipe, step, total),
    }
    return recipe.learning_rate * scales[recipe.schedule]


def _onecycle(recipe: Recipe, step: int, total: int) -> float:
    rising = recipe.warmup * total
    if step < rising:
        return min(1.0, (step + 1) / rising)
    done = (step - rising) / max(1.0, total - rising)
    return recipe.final + (1 - recipe.final) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def clip_filters(model: nn.Module, radius: float) -> None:
    """Scale every filter of a convolution whose root mean square exceeds the radius back to it.

    Source: Zeiler and Fergus 2014, section 3. When it is done is not said; we do it after every
    step, over all weights of one output filter.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            size = layer.weight.square().mean((1, 2, 3), keepdim=True).sqrt()
            layer.weight.mul_((radius / size.clamp_min(1e-30)).clamp_max(1.0))


class Average:
    """A running mean of a model's weights, itself a model in eval mode."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """step: counted from 1. Normalisation's statistics are averaged too, counters copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = list(_floats(self.model)), list(_floats(model))
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for mine, new in zip(self.model.buffers(), model.buffers(), strict=True):
            if not mine.is_floating_point():
                mine.copy_(new)


def _floats(model: nn.Module) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


@torch.no_grad()
def initialise(model: nn.Module, how: str, seed: int) -> None:
    """Draw the first weights as `Recipe.init` says."""
    if how == "model":
        return
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.normal_(0.0, _spread(layer, how), generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()


def _spread(layer: nn.Conv2d | nn.Linear, how: str) -> float:
    """Source: He et al. 2015, eq. 14 (fan out), as the tutorials use it."""
    if how == "normal" or isinstance(layer, nn.Linear):
        return 0.01
    return math.sqrt(2 / math.prod((layer.out_channels // layer.groups, *layer.kernel_size)))
