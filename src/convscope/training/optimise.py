"""Optimiser, learning rate schedule, running mean, first weights and number format of training.

bfloat16 halves the time of a step where it is multiplied by instructions of its own, and takes
several times as long where it is emulated. So it is tried only on machines that have them, and
taken only where it is quicker. The choice changes weights: it stands in the run's folder from the
first step, and a run that goes on keeps it, wherever it goes on.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from convscope.lens.machine import fastest_runs, has_bfloat16, machine
from convscope.training.recipe import Recipe


def optimiser(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser over the model's weights, at the recipe's learning rate."""
    weights = [p for p in model.parameters() if p.requires_grad]
    vectors = recipe.weight_decay if recipe.decay_vectors else 0.0
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": vectors},
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas = recipe.learning_rate, (0.9, recipe.beta2)
    if recipe.optimiser == "sgd":
        return SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov)
    return (Adam if recipe.optimiser == "adam" else AdamW)(groups, lr=rate, betas=betas)


def schedule(made: Optimizer, recipe: Recipe, total: int, done: int = 0) -> Schedule:
    """Sets the optimiser's rate: at every step, or of "plateau" after every epoch.

    total, done: steps of the whole run, and those that a resumed run has behind it.
    """
    if recipe.schedule == "plateau" and recipe.factor < 1:
        return ReduceLROnPlateau(
            made, factor=recipe.factor, patience=recipe.patience - 1, threshold=0.0, eps=0.0
        )
    for group in made.param_groups:
        group["initial_lr"] = recipe.learning_rate
    cycle = recipe.schedule == "onecycle"
    return LambdaLR(
        made, lambda step: _one_cycle(recipe, step, total) if cycle else 1.0, last_epoch=done - 1
    )


Schedule = LambdaLR | ReduceLROnPlateau


def _one_cycle(recipe: Recipe, step: int, total: int) -> float:
    rising = recipe.warmup * total
    if step < rising:
        return min(1.0, (step + 1) / rising)
    done = (step - rising) / max(1.0, total - rising)
    return recipe.final + (1 - recipe.final) * 0.5 * (1 + math.cos(math.pi * done))


def plateau_state(made: Schedule) -> dict[str, Any]:
    """What a plateau remembers, as JSON; nothing of other schedules, which only count steps."""
    if not isinstance(made, ReduceLROnPlateau):
        return {}
    best = None if math.isinf(made.best) else made.best
    return {
        "rate": made.optimizer.param_groups[0]["lr"],
        "best": best,
        "waited": made.num_bad_epochs,
    }


def restore_plateau(made: Schedule, recipe: Recipe, kept: Mapping[str, Any]) -> None:
    """Give it back what it remembered. Runs of convscope 0.1 kept a factor in place of the rate."""
    if isinstance(made, ReduceLROnPlateau):
        made.best = math.inf if kept["best"] is None else kept["best"]
        made.num_bad_epochs = kept["waited"]
        for group in made.optimizer.param_groups:
            group["lr"] = kept["rate"] if "rate" in kept else recipe.learning_rate * kept["scale"]


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


def running_mean(model: nn.Module, decay: float, updates: int = 0) -> AveragedModel:
    """A running mean of a model's weights and of normalisation's statistics; counters are copied.

    `.module` is the mean, in eval mode. updates: that there were before, in a resumed run.
    """

    def average(ours: Any, theirs: Any, count: Tensor | int) -> None:
        step = int(count)
        for mean, value in zip(ours, theirs, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - min(decay, (1 + step) / (10 + step)))
            else:
                mean.copy_(value)

    made = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    made.module.eval().requires_grad_(False)
    made.n_averaged.fill_(1 + updates)  # at 0 torch would forget the first weights
    return made


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


Kind = Literal["float32", "bfloat16"]
CLEARLY = 0.9
"""Part of float32's time below which bfloat16 is taken: it must be worth its rounding."""
STEP = 0.15
"""Seconds that a tried step may take; with a larger one, fewer pictures are tried."""
Times = Mapping[Kind, float]


@dataclass(frozen=True)
class Choice:
    """The numbers that a run is trained in, and why."""

    precision: Kind
    why: str
    machine: str
    """On which it was chosen."""

    def line(self, device: torch.device) -> str:
        """For people, on the machine where the run begins or goes on."""
        slow = self.precision == "bfloat16" and not has_bfloat16(device)
        note = "; this machine only emulates it, which is slow" if slow else ""
        return f"trains in {self.precision}: {self.why}{note}"


def choose(
    recipe: Recipe,
    model: nn.Module,
    device: torch.device,
    *,
    native: Callable[[torch.device], bool] = has_bfloat16,
    measure: Callable[[nn.Module, Recipe, torch.device], Times] | None = None,
) -> Choice:
    """What the recipe says, or with "auto" what is quickest here for its network and batch.

    native: whether a device computes bfloat16; measure: seconds of a step in each; both for tests.
    """
    here = machine(device)
    if recipe.precision != "auto":
        return Choice(recipe.precision, "as the recipe says", here)
    if not native(device):
        return Choice("float32", "this machine has no instructions for bfloat16", here)
    taken = (measure or step_times)(model, recipe, device)
    ratio = taken["bfloat16"] / taken["float32"]
    why = f"a step in bfloat16 takes {ratio:.2f} of one in float32, tried here"
    return Choice("bfloat16" if ratio < CLEARLY else "float32", why, here)


def step_times(model: nn.Module, recipe: Recipe, device: torch.device) -> Times:
    """Best seconds of a step forward and back in each, on a copy of the network, in turn."""
    model = copy.deepcopy(model).train()
    with torch.random.fork_rng():
        pixels = torch.rand(recipe.batch, 3, recipe.size, recipe.size).to(device)
        if recipe.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        # CPU time says what a step takes whatever else the machine does.
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        one = {"": lambda: _step(model, pixels, "float32")}
        first = fastest_runs(one, seconds=0.0, clock=clock)[""]
        few = pixels[: max(2, int(len(pixels) * min(1.0, STEP / first)))]
        kinds: tuple[Kind, ...] = ("float32", "bfloat16")
        ways = {kind: _stepping(model, few, kind) for kind in kinds}
        return fastest_runs(ways, clock=clock)


def _stepping(model: nn.Module, pixels: Tensor, kind: Kind) -> Callable[[], None]:
    return lambda: _step(model, pixels, kind)


def _step(model: nn.Module, pixels: Tensor, kind: Kind) -> None:
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=kind == "bfloat16"):
        scores = model(pixels)
    wanted = scores.new_zeros(len(scores), dtype=torch.long)
    torch.autograd.backward(F.cross_entropy(scores.float(), wanted))
    model.zero_grad(set_to_none=True)
    if pixels.device.type != "cpu":
        torch.accelerator.synchronize(pixels.device)
