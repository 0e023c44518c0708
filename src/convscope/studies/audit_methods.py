"""Which methods are defined for this network? Each is tried on a picture, none is guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from convscope.errors import ConvscopeError
from convscope.lens.ascent import ascent
from convscope.lens.backward import BackwardRule
from convscope.lens.descent import Descent
from convscope.lens.feature_layers import feature_layers
from convscope.lens.geometry import fields
from convscope.methods import cam, gradients
from convscope.methods.ablationcam import Ablation
from convscope.methods.cam_case import Case as CamCase
from convscope.methods.cam_choice import default_layer
from convscope.methods.fullgrad import COMPLETE
from convscope.methods.occlusion import occlusion
from convscope.methods.targets import Aims
from convscope.records.audit import Finding
from convscope.records.maps import Attribution
from convscope.studies.audit_case import Case, Heading, OutOfTime, many, said, until

METHODS = Heading("methods")
Told = tuple[str, str, Mapping[str, Any]]
"""What a try found, what to be careful about, and the same for programs."""
Try = Callable[[Case], Told]


def check_methods(
    case: Case, progress: Callable[[int, int], None] | None = None
) -> Iterator[Finding]:
    tried = tries()
    case.facts["methods"] = {}
    for number, (name, attempt) in enumerate(tried.items(), start=1):
        yield _tried(case, name, attempt)
        if progress is not None:
            progress(number, len(tried))


def tries() -> dict[str, Try]:
    """All that is tried, in the order of the table."""
    return {
        "receptive fields": _geometry,
        "projection of units": _projection,
        **{name: partial(_mapped, method=method) for name, method in gradients.METHODS.items()},
        **{name: partial(_mapped, method=method) for name, method in cam.METHODS.items()},
        **{"ablationcam": _ablationcam, "fullgrad": _fullgrad, "occlusion": _occlusion},
    }


def _tried(case: Case, name: str, attempt: Try) -> Finding:
    started = time.perf_counter()
    facts: dict[str, Any] = {"defined": True, "why": ""}
    try:
        told, careful, more = attempt(case)
        facts |= more
        finding = METHODS.warn if careful else METHODS.ok
        found = finding(name, told, careful)
    except OutOfTime as stop:
        advice = "the audit stopped it after a part; it works"
        found = METHODS.ok(name, f"defined; slow: about {stop.whole:.0f} s a picture", advice)
        facts["whole seconds"] = round(stop.whole, 1)
    except ConvscopeError as fault:
        facts |= {"defined": False, "why": f"{fault.code} {fault}"}
        where = f"{fault.subject}: " if fault.subject else ""
        advice = fault.next_step or "take a method that is defined"
        found = METHODS.warn(name, f"refused [{fault.code}]: {where}{fault.what}", advice)
    except Exception as fault:  # whatever a stranger's code raises
        facts |= {"defined": False, "why": f"{type(fault).__name__}: {said(fault)}"}
        what = f"fails in the network's own code: {type(fault).__name__}: {said(fault)}"
        found = METHODS.warn(name, what, "take another method, or mend the network's code")
    case.facts["methods"][name] = {**facts, "seconds": round(time.perf_counter() - started, 3)}
    return found


def _geometry(case: Case) -> Told:
    names = feature_layers(case.model, case.batch)
    channels, height, width = case.image.shape
    found = fields(case.model, (channels, height, width), names)
    whole = [name for name, field in found.items() if field.whole]
    facts = {"layers": len(found), "whole": whole}
    if not whole:
        return f"measured in {many(len(found), 'convolution')}", "", facts
    what = f"in {len(whole)} of {many(len(found), 'convolution')} each place sees all, from "
    advice = (
        "something there mixes the whole picture (attention, squeeze and excitation): patches "
        "of these layers are whole pictures"
    )
    return what + whole[0], advice, facts


def _projection(case: Case) -> Told:
    """By the deconvnet rule, from the strongest place of the last feature layer's first map."""
    layer = feature_layers(case.model, case.batch)[-1]
    with ascent(case.model, case.batch, [layer], BackwardRule("deconvnet")) as way:
        way.rule.look([way.maps(layer)], [way.pixels])
        known, rule = Descent(way.maps(layer), way.pixels).is_known, way.rule
    facts = {"layer": layer, "windows": known, "coverage": _coverage(rule)}
    how = "in windows: fast" if known else "through whole maps: the same numbers, slower"
    careful = f"{', '.join(rule.plain)} on the way pass the plain gradient" if rule.plain else ""
    return f"defined; from {layer} {how}; {_coverage(rule)}", careful, facts


def _coverage(rule: BackwardRule) -> str:
    return f"{rule.rewritten} of {many(rule.rectifiers, 'rectifier')} follow the rule"


def _mapped(case: Case, method: cam.Method) -> Told:
    (found,) = method(case.model, case.batch, progress=until(case.seconds))
    return _told(found)


def _told(found: Attribution) -> Told:
    origin = found.origin
    facts = {"layer": found.layer, "coverage": origin.get("coverage", "")}
    told = "defined"
    if found.raw is not None and found.layer and found.pixels is None:
        rows, columns = found.raw.shape
        told += f"; layer {found.layer}, {rows} × {columns}"
    told += f"; {facts['coverage']}" if facts["coverage"] else ""
    shown = found.values if found.pixels is None else found.pixels
    if not shown.any():
        told += "; empty for this picture: nothing positive arrives"
    careful = list(origin.get("notes", []))
    if origin.get("plain_gradient"):
        careful.append(f"{', '.join(origin['plain_gradient'])} pass the plain gradient")
    return told, "; ".join(careful), facts


def _fullgrad(case: Case) -> Told:
    (found,) = cam.fullgrad(case.model, case.batch)
    gap = found.origin["completeness"]["relative gap"]
    is_whole = gap <= COMPLETE
    sum_ = "input and biases add up to the score" if is_whole else "its sum is not the score"
    facts = {"layer": found.layer, "relative gap": gap}
    return f"defined; {sum_} (gap {gap:.1g})", "; ".join(found.origin["notes"]), facts


def _ablationcam(case: Case) -> Told:
    """With the short cut that it takes, also where all of it would take too long."""
    slow = ""
    try:
        (found,) = cam.ablationcam(case.model, case.batch, progress=until(case.seconds))
        told, careful, facts = _told(found)
    except OutOfTime as stop:
        layer = default_layer(case.model, case.batch)
        told, careful, facts = f"defined; layer {layer}", "", {"layer": layer}
        slow = f"; about {stop.whole:.0f} s a picture"
    one = Ablation.of(CamCase(case.model, case.batch, Aims((None,))), facts["layer"], 0)
    return f"{told}; short cut: {one.how}{slow}", careful, {**facts, "short cut": one.how}


def _occlusion(case: Case) -> Told:
    patch = max(1, min(case.image.shape[1:]) // 3)
    found = occlusion(
        case.model, case.image, patch=patch, stride=patch, progress=until(case.seconds)
    )
    drop = found.base_probability - float(found.probability.min())
    facts = {"layer": found.layer, "largest drop": drop}
    return (
        f"defined; hiding a ninth takes up to {drop:.2g} of {found.base_probability:.2g}",
        "",
        facts,
    )
