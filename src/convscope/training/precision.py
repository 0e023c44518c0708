"""In which numbers does a network learn quickest on this machine, and what was chosen?

bfloat16 halves the time of a step where it is multiplied by instructions of its own, and takes
several times as long where it is emulated. So it is tried only on machines that have them, and
taken only where it is quicker. The choice changes weights: it stands in the run's folder from the
first step, and a run that goes on keeps it, wherever it goes on.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convscope.errors import DataError
from convscope.lens.machine import has_bfloat16, machine
from convscope.lens.trial import fastest_runs
from convscope.publish import publish_file
from convscope.texts import parsed
from convscope.training.recipe import Recipe

Kind = Literal["float32", "bfloat16"]
FILE = "precision.json"
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
    told = f"a step in bfloat16 takes {ratio:.2f} of one in float32, tried here"
    return Choice("bfloat16" if ratio < CLEARLY else "float32", told, here)


def kept_choice(run: Path) -> Choice | None:
    """What was chosen when the run began. Raises DataError D140 if the file is damaged."""
    try:
        plain = parsed((run / FILE).read_text(encoding="utf-8"))
        choice = Choice(**{name: str(plain[name]) for name in Choice.__dataclass_fields__})  # type: ignore[arg-type]
        if choice.precision not in ("float32", "bfloat16"):
            raise ValueError(choice.precision)
        return choice
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DataError("D140", str(run / FILE), f"is not readable ({fault})") from fault


def keep_choice(run: Path, choice: Choice) -> None:
    """Put it into the run's folder."""
    plain: dict[str, Any] = asdict(choice)
    publish_file(run / FILE, json.dumps(plain, indent=1).encode())


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
