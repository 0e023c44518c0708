"""Are the weights sound: finite, alive, of one precision, and whose are they?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from convscope.records.audit import Finding
from convscope.studies.audit_case import Case, Heading, many, some

WEIGHTS = Heading("weights")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_weights(case: Case) -> Iterator[Finding]:
    yield _finite(case)
    yield _dead(case)
    yield from _untouched(case)
    yield _kinds(case.model)
    yield from _devices(case.model)
    yield _shared(case.model)


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _finite(case: Case) -> Finding:
    broken: list[str] = []
    total = 0
    for name, value in _named(case.model):
        if value.is_floating_point() and not value.is_quantized:
            lost = int((~torch.isfinite(value)).sum())
            total += lost
            broken += [f"{name} ({lost:,} of {value.numel():,})"] if lost else []
    case.facts["weights not finite"] = broken
    if not broken:
        count = sum(weight.numel() for weight in case.model.parameters())
        return WEIGHTS.ok("finite weights", f"all {count:,} are finite numbers")
    what = f"{many(total, 'number')} NaN or infinite, in {some(broken)}"
    advice = (
        "one NaN reaches every score, and each map of it is empty; take weights from before the "
        "training broke down"
    )
    return WEIGHTS.bad("M588", "finite weights", what, advice)


def _dead(case: Case) -> Finding:
    """Filters of zeros: pruned, or never learned."""
    dead: dict[str, str] = {}
    filters = 0
    for name, module in case.model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            weight = module.weight.detach()
            filters += len(weight)
            silent = int((weight.flatten(1) == 0).all(1).sum())
            if silent:
                dead[name] = f"{name} ({silent} of {len(weight)})"
    case.facts["dead filters"] = list(dead)
    if not dead:
        return WEIGHTS.ok("dead filters", f"none of {many(filters, 'filter')} is all zeros")
    advice = (
        "their maps say nothing about any picture: pruned on purpose, or dead. Lists of the "
        "strongest pictures leave them empty"
    )
    return WEIGHTS.warn("dead filters", f"all zeros in {some(list(dead.values()))}", advice)


def _untouched(case: Case) -> Iterator[Finding]:
    """Batch norms that have never seen a picture."""
    norms = [
        (module.running_mean, module.running_var)
        for module in case.model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    kept = [(mean, var) for mean, var in norms if mean is not None and var is not None]
    if kept and all(bool((mean == 0).all() and (var == 1).all()) for mean, var in kept):
        advice = "training moves them at once: are these the weights that were meant?"
        what = f"all {len(kept)} still have mean 0 and variance 1, as before any training"
        yield WEIGHTS.warn("batch norms", what, advice)


def _kinds(model: nn.Module) -> Finding:
    kinds = Counter(
        str(value.dtype).removeprefix("torch.")
        for _, value in _named(model)
        if value.is_floating_point()
    )
    told = ", ".join(f"{many(count, 'tensor')} {kind}" for kind, count in kinds.items())
    if len(kinds) > 1:
        advice = "a picture has one precision, and layers of another may refuse it: use one"
        return WEIGHTS.warn("precision", told, advice)
    (kind,) = kinds or ("none",)
    if kind in ("float16", "bfloat16"):
        advice = "close scores and close places may change their order; use float() to compare"
        return WEIGHTS.warn("precision", f"{kind} throughout", advice)
    return WEIGHTS.ok("precision", f"{kind} throughout")


def _devices(model: nn.Module) -> Iterator[Finding]:
    devices = sorted({str(value.device) for _, value in _named(model)})
    if len(devices) > 1:
        advice = "a picture lies on one device: move all of the network to one, as model.to(…)"
        yield WEIGHTS.warn("devices", ", ".join(devices), advice)


def _shared(model: nn.Module) -> Finding:
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    shared = [" = ".join(several[:3]) for several in names.values() if len(several) > 1]
    if not shared:
        return WEIGHTS.ok("shared", "no: each tensor belongs to one layer")
    what = f"{many(len(shared), 'tensor')} under several names: {some(shared, 2)}"
    advice = "changing or randomising one changes the other; it counts once"
    return WEIGHTS.ok("shared", what, advice)
