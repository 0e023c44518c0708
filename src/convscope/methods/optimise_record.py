"""With which picture does it begin, and what is written down in the end?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope import __version__
from convscope.errors import UsageError
from convscope.methods.optimise_plan import Plan, Range
from convscope.methods.optimise_run import Climb
from convscope.methods.optimise_sight import canvas
from convscope.records.optimise import Kind, OptimisedPicture


def first(
    model: nn.Module, plan: Plan, size: tuple[int, ...]
) -> tuple[torch.Generator, Float[Tensor, "c h w"]]:
    """Seeded noise, and the start: the plan's, or grey.

    Raises UsageError U366 (no such size), U367 (no picture to start from).
    """
    noise = torch.Generator().manual_seed(plan.seed)
    if plan.start is not None:
        return noise, canvas(model, as_tensor(plan.start))
    if len(size) not in (2, 3) or min(size) < 1:
        raise UsageError("U366", "size", f"is {size}, and must be rows and columns")
    grey = canvas(model, torch.zeros(*((3,) * (3 - len(size))), *size))
    return noise, Range.of(plan, grey).input(grey)


def as_tensor(picture: Tensor | np.ndarray) -> Tensor:
    return picture if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture))


def finished(
    way: Climb,
    kind: Kind,
    *,
    natural: float = math.nan,
    original: Tensor | None = None,
    **more: Any,
) -> OptimisedPicture:
    """The record of a way that is over. Works inside the `with` of the goal's sight."""
    with torch.no_grad():
        value = float(way.goal(way.pixels))
    span = Range.of(way.plan, way.pixels)
    known = span.bounds != "none"
    origin = {
        "method": "activation maximisation",
        **way.plan.settings(),
        **more,
        "size": list(way.pixels.shape),
        "network": "",
        "convscope": __version__,
    }
    return OptimisedPicture(
        pixels=way.pixels.detach().cpu().numpy(),
        kind=kind,
        subject=way.goal.name,
        value=value,
        values=np.array(way.values),
        objective=np.array(way.objective),
        asked=way.plan.steps,
        natural=natural,
        black=span.black.cpu().numpy() if known else np.zeros(0, np.float32),
        white=span.white.cpu().numpy() if known else np.zeros(0, np.float32),
        original=None if original is None else original.detach().cpu().numpy(),
        origin=origin,
    )
