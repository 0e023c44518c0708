"""Are pictures prepared for this network on the scale on which it was trained?

A batch normalisation remembers mean and variance of what it was given in training. If it is given
something else by orders of magnitude, the pictures come in another scale: 0 to 255 instead of 0 to
1, means not subtracted, another order of colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from convscope.lens.lens import HOOK
from convscope.lens.twin import Twin
from convscope.records.audit import Finding
from convscope.studies.audit_case import Case
from convscope.studies.audit_input import INPUT

FACTOR = 10.0
"""How much wider or narrower than in training the values may be, in the median over channels.
Measured on three trained networks and 14 photographs: 0.28 to 1.33 prepared as in training, 24 to
298 given 0 to 255."""


def check_scale(case: Case) -> Iterator[Finding]:
    """Nothing is told of networks without batch normalisation, or with an untouched one."""
    factor = _factor(case)
    if factor is None:
        return
    case.facts["scale against training"] = factor
    if 1 / FACTOR < factor < FACTOR:
        what = f"the first batch norm gets {factor:.2g} times the spread that it remembers"
        yield INPUT.ok("scale", f"as in training: {what}")
        return
    way = "wider" if factor > 1 else "narrower"
    what = f"the first batch norm gets values {max(factor, 1 / factor):.2g} times {way} than those"
    advice = (
        "the pictures are prepared in another way than in training (0 to 1 against 0 to 255, "
        "other means or scales): scores and maps are off until that is mended"
    )
    yield INPUT.warn("scale", f"{what} that it remembers from training", advice)


def _factor(case: Case) -> float | None:
    """Spread of what the first batch norm is given, over what it remembers; around its mean."""
    twin = Twin(case.model)
    seen: list[float | None] = []

    def look(norm: nn.Module, inputs: Any) -> None:
        if not seen:
            seen.append(_against_memory(norm, inputs[0]))

    for module in twin.model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module._forward_pre_hooks[HOOK] = look
    with torch.no_grad():
        twin.run(case.batch)
    return seen[0] if seen else None


def _against_memory(norm: nn.Module, given: Tensor) -> float | None:
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    if bool((mean == 0).all() and (variance == 1).all()) or given.dim() != 4:
        return None
    off = (given.double() - mean.double()[:, None, None]).square().mean((0, 2, 3))
    factor = float((off / variance.double().clamp(min=1e-12)).sqrt().median())
    return factor if math.isfinite(factor) else None
