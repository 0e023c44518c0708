"""In which state did the network come: mode, wrappers, scripted parts, hooks?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.modules import module as global_hooks

from convscope.lens.twin import is_scripted
from convscope.records.audit import Finding
from convscope.studies.audit_case import Case, Heading, many, some

DELIVERED = Heading("as delivered")
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
CHECKPOINTING = ("memory_efficient", "grad_checkpointing", "gradient_checkpointing")
"""Attributes by which networks turn checkpointing on."""


def check_delivered(case: Case) -> Iterator[Finding]:
    yield _mode(case)
    if case.network is not None:
        told = case.network.preprocess.assumption()  # the input's findings say more of that
        yield from (_note(note) for note in case.network.notes if note != told)
    yield _wrappers(case)
    yield _scripted(case.model)
    yield _hooks(case.given)
    quantised = _quantised(case.model)
    if quantised:
        what = f"{many(len(quantised), 'quantised layer')}: {some(quantised)}"
        advice = (
            "whole numbers have no gradients: maps that need them will be refused; use the "
            "float network that it was made from"
        )
        yield DELIVERED.warn("quantised", what, advice)
    yield from _checkpointed(case.model)


def _mode(case: Case) -> Finding:
    """Train mode as such is torch's default for new networks; left on by mistake it decides."""
    found = case.delivered
    case.facts["delivered in train mode"] = list(found.training)
    acting = " and ".join(f"{count} {kind}" for kind, count in found.acting.items())
    if not found.training:
        return DELIVERED.ok("mode", "eval mode, every module")
    still = any(module.training for module in case.given.modules())
    extent = (
        "train mode"
        if len(found.training) == found.modules
        else f"{len(found.training)} of {many(found.modules, 'module')} in train mode "
        f"({some(list(found.training))})"
    )
    what = f"{extent}, which matters to {acting or 'no layer'}"
    if not acting:
        return DELIVERED.ok("mode", what)
    if case.network is not None and not still:
        turned = (
            "new networks are in train mode. convscope set eval mode; in your own scripts call "
            "model.eval() first"
        )
        return DELIVERED.ok("mode", what, turned)
    advice = (
        "call model.eval() (if that changes nothing, a train() of its own overrides it): otherwise "
        "answers depend on chance or on the batch. convscope itself looks at a twin in eval mode, "
        "and the rest of this table is about that"
    )
    return DELIVERED.warn("mode", what, advice)


def _note(note: str) -> Finding:
    doubtful = ("random", "untrained", "not known", "assumed", "left out")
    if any(sign in note for sign in doubtful):
        advice = "what is shown of this network is only as good as this"
        return DELIVERED.warn("note of loading", note, advice)
    return DELIVERED.ok("note of loading", note)


def _wrappers(case: Case) -> Finding:
    wrappers = case.delivered.wrappers
    inside = [
        name
        for name, module in case.given.named_modules()
        if name and getattr(module, "_compiled_call_impl", None) is not None
    ]
    if inside:
        wrappers = (*wrappers, f"torch.compile around {some(inside)}")
    case.facts["wrappers"] = list(wrappers)
    if not wrappers:
        return DELIVERED.ok("wrapped", "not compiled, not parallel")
    advice = "taken off for looking: compiled and parallel networks do not call hooks reliably"
    return DELIVERED.ok("wrapped", f"in {', '.join(wrappers)}", advice)


def _scripted(model: nn.Module) -> Finding:
    scripted: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in scripted)
        if is_scripted(module) and not inside:
            scripted.append(name)
    if not scripted:
        return DELIVERED.ok("scripted", "no: every layer is a Python module")
    what = f"{many(len(scripted), 'scripted or traced module')}: {some(scripted)}"
    advice = (
        "their calls cannot be seen, so rectifiers inside follow no rule and layers inside "
        "cannot be named; use the Python modules they were made from"
    )
    return DELIVERED.warn("scripted", what, advice)


def _hooks(given: nn.Module) -> Finding:
    found: Counter[str] = Counter()
    for _, module in given.named_modules():
        for kind in HOOKS:
            found.update(map(_called, _values(getattr(module, kind, None))))
    everywhere: Counter[str] = Counter()
    for kind in HOOKS:
        everywhere.update(map(_called, _values(getattr(global_hooks, f"_global{kind}", None))))
    hooks = [f"{count} × {name}" if count > 1 else name for name, count in found.items()]
    hooks += [f"{name} (on all modules)" for name in everywhere]
    if not hooks:
        return DELIVERED.ok("hooks", "none")
    what = f"{many(found.total() + everywhere.total(), 'hook')} of others: {some(hooks)}"
    advice = (
        "they run in every look at the network too, and may change what it computes; remove "
        "those that were left by mistake"
    )
    return DELIVERED.warn("hooks", what, advice)


def _values(hooks: Mapping[int, object] | None) -> list[object]:
    return [] if hooks is None else list(hooks.values())


def _called(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__name__))


def _quantised(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if "quantized" in type(module).__module__.split(".")
    ]


def _checkpointed(model: nn.Module) -> Iterator[Finding]:
    found = [
        name
        for name, module in model.named_modules()
        if any(getattr(module, sign, None) is True for sign in CHECKPOINTING)
    ]
    if found:
        what = f"activations are computed anew on the way down in {some(found)}"
        advice = (
            "that happens out of sight of the deconvnet and guided rules, which refuse it; turn "
            "memory_efficient or gradient checkpointing off"
        )
        yield DELIVERED.warn("checkpointed", what, advice)
