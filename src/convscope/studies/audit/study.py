"""Can this network be looked at, by which methods, and what should one know beforehand?

A minute's look before hours of work: how the network was delivered, whether its weights are
sound, which pictures it takes, whether it answers the same every time and in any company, which
rectifiers it calls in which spelling, and which methods are defined for it. Everything is found
by trying it on a picture.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convscope.attribution import formulas as cam
from convscope.attribution import gradients
from convscope.attribution.base import Request
from convscope.attribution.cam import default_layer
from convscope.attribution.cam_passes import COMPLETE, Ablation
from convscope.attribution.occlusion import occlusion
from convscope.core.errors import ConvscopeError, ModelError
from convscope.core.run import PLAIN, Run
from convscope.core.text import plural
from convscope.network.arguments import Given, single, taking
from convscope.network.network import Delivered, Network
from convscope.network.outputs import Targets
from convscope.network.provenance import recorded
from convscope.records.maps import Attribution
from convscope.studies.audit.inputs import (
    ANSWERS,
    INPUT,
    OUTPUT,
    check_answers,
    check_input,
    check_output,
    check_scale,
)
from convscope.studies.audit.network import (
    RECTIFIERS,
    Case,
    Check,
    Clock,
    Heading,
    OutOfTime,
    check_calls,
    check_delivered,
    check_weights,
    private,
    said,
)
from convscope.studies.audit.record import Audit, Finding
from convscope.trace.backward.descent import WindowedBackward, forward_pass
from convscope.trace.backward.steps import BackwardGraph
from convscope.trace.backward_rule import BackwardRule
from convscope.trace.layers import feature_layers
from convscope.trace.receptive_field import fields

METHODS = Heading("methods")
THEIR_CODE = "M574"
"""Of a fault in the network's own code."""
Told = tuple[str, str, Mapping[str, Any]]
"""What a try found, what to be careful about, and the same for programs."""
Try = Callable[[Case, Clock], Told]


def check_methods(case: Case, run: Run = PLAIN) -> Iterator[Finding]:
    tried = tries()
    case.facts["methods"] = {}
    for number, (name, attempt) in enumerate(tried.items(), start=1):
        yield _tried(case, name, attempt)
        run.tick(number, len(tried))


def tries() -> dict[str, Try]:
    """All that is tried, in the order of the table."""
    return {
        "receptive fields": _geometry,
        "projection of units": _projection,
        **{name: partial(_pixels, method=method) for name, method in gradients.METHODS.items()},
        "automatic layer": _layer,
        **{name: partial(_maps, method=method) for name, method in cam.METHODS.items()},
        **{"ablationcam": _ablationcam, "fullgrad": _fullgrad, "occlusion": _occlusion},
    }


def _tried(case: Case, name: str, attempt: Try) -> Finding:
    clock = Clock(case.seconds, case.one_pass)
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()), clock:
            told, careful, more = attempt(case, clock)
        facts = {"defined": True, "why": "", **more}
        result = (METHODS.warn if careful else METHODS.ok)(name, told, careful)
    except OutOfTime:
        facts = {"defined": True, "why": f"not waited for: {clock.needs}"}
        result = METHODS.ok(name, f"runs; not waited for: it takes {clock.needs}")
    except ConvscopeError as fault:
        facts = {"defined": False, "why": f"{fault.code} {fault}"}
        where = f"{fault.subject}: " if fault.subject else ""
        theirs = "mend the network's code, at the line that is named"
        other = theirs if fault.code == THEIR_CODE else "take a method that is defined"
        advice = fault.next_step or other
        result = METHODS.warn(name, f"refused [{fault.code}]: {where}{fault.what}", advice)
    except Exception as fault:  # whatever a stranger's code raises
        what = f"{type(fault).__name__}: {said(fault)} ({_place(fault)})"
        facts = {"defined": False, "why": what}
        advice = "if that line is the network's, mend it there; if it is convscope's, report it"
        result = METHODS.warn(name, f"fails: {what}", advice)
    case.facts["methods"][name] = {**facts, "seconds": round(clock.passed, 3)}
    return result


def _place(fault: BaseException) -> str:
    """The last line of the network's code or ours that was met: not torch's own."""
    frames = traceback.extract_tb(fault.__traceback__)
    own = [frame for frame in frames if f"{os.sep}torch{os.sep}" not in frame.filename]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else "in torch"


def _geometry(case: Case, _: Clock) -> Told:
    names = feature_layers(case.model, case.batch)
    channels, height, width = case.image.shape
    result = fields(case.model, (channels, height, width), names)
    whole = [name for name, field in result.items() if field.whole]
    facts = {"layers": len(result), "whole": whole}
    if not whole:
        return f"measured in {plural(len(result), 'convolution')}", "", facts
    what = f"in {len(whole)} of {plural(len(result), 'convolution')} each place sees all, from "
    advice = (
        "something there mixes the whole picture (attention, squeeze and excitation): patches "
        "of these layers are whole pictures"
    )
    return what + whole[0], advice, facts


def _projection(case: Case, _: Clock) -> Told:
    """By the deconvnet rule, from the strongest place of the last feature layer's first map."""
    layer = feature_layers(case.model, case.batch)[-1]
    with forward_pass(case.model, case.batch, [layer], BackwardRule("deconvnet")) as way:
        way.rule.look([way.maps(layer)], [way.pixels])
        graph = BackwardGraph({layer: way.maps(layer)}, way.pixels)
        known, rule = WindowedBackward(graph, layer, "deconvnet").is_known, way.rule
    facts = {"layer": layer, "windows": known, "coverage": _coverage(rule)}
    how = "in windows: fast" if known else "through whole maps: the same numbers, slower"
    careful = f"{', '.join(rule.plain)} on the way pass the plain gradient" if rule.plain else ""
    return f"defined; from {layer} {how}; {_coverage(rule)}", careful, facts


def _coverage(rule: BackwardRule) -> str:
    if not rule.rectifiers:
        return "no rectifier on the way, so it is the plain gradient"
    return f"{rule.rewritten} of {plural(rule.rectifiers, 'rectifier')} follow the rule"


def _pixels(case: Case, clock: Clock, method: gradients.Method) -> Told:
    (result,) = method(case.explained, case.batch, run=Run(progress=clock))
    return _described(result)


def _layer(case: Case, _: Clock) -> Told:
    """What class activation maps take if nobody names a layer; looked for once."""
    case.layer = default_layer(case.explained, case.batch)
    return f"{case.layer}, where none is named", "", {"layer": case.layer}


def _maps(case: Case, clock: Clock, method: cam.Method) -> Told:
    (result,) = method(case.explained, case.batch, layer=case.layer, run=Run(progress=clock))
    return _described(result)


def _described(result: Attribution) -> Told:
    origin = result.origin
    facts = {"layer": result.layer, "coverage": origin.get("coverage", "")}
    told = "defined"
    if result.raw is not None and result.layer and result.pixels is None:
        rows, columns = result.raw.shape
        told += f"; layer {result.layer}, {rows} × {columns}"
    told += f"; {facts['coverage']}" if facts["coverage"] else ""
    shown = result.values if result.pixels is None else result.pixels
    if not shown.any():
        told += "; empty for this picture: nothing positive arrives"
    careful = list(origin.get("notes", []))
    if origin.get("plain_gradient"):
        careful.append(f"{', '.join(origin['plain_gradient'])} pass the plain gradient")
    return told, "; ".join(careful), facts


def _fullgrad(case: Case, _: Clock) -> Told:
    (result,) = cam.METHODS["fullgrad"](case.explained, case.batch)
    gap = result.origin["completeness"]["relative gap"]
    is_whole = gap <= COMPLETE
    told = f"defined; input and biases add up to the score (gap {gap:.1g})"
    if not is_whole:
        told = f"defined; input and biases miss the score by {gap:.1%} of it"
    careful = "the network is not made of linear layers and rectifiers: the map leaves out a part"
    facts = {"layer": result.layer, "relative gap": gap}
    return told, "" if is_whole else careful, facts


def _ablationcam(case: Case, clock: Clock) -> Told:
    """First the short cut that it takes, which is soon known."""
    layer = case.layer or default_layer(case.explained, case.batch)
    how = Ablation.of(Request(case.explained, case.batch, Targets((None,))), layer, 0).how
    try:
        (result,) = cam.METHODS["ablationcam"](
            case.explained, case.batch, layer=layer, run=Run(progress=clock)
        )
        told, careful, facts = _described(result)
    except OutOfTime:
        told, careful, facts = f"runs; not waited for: it takes {clock.needs}", "", {"layer": layer}
    return f"{told}; short cut: {how}", careful, {**facts, "short cut": how}


def _occlusion(case: Case, clock: Clock) -> Told:
    patch = max(1, min(case.image.shape[1:]) // 3)
    result = occlusion(
        case.explained, case.image, patch=patch, stride=patch, run=Run(progress=clock)
    )
    drop = result.base_probability - float(result.probability.min())
    facts = {"layer": result.layer, "largest drop": drop}
    return (
        f"defined; hiding a ninth takes up to {drop:.2g} of {result.base_probability:.2g}",
        "",
        facts,
    )


NETWORK = Heading("network")
SECONDS = 0.5
"""How long a method is tried: long enough for one pass of most networks on two cores."""


@taking(image=single)
@recorded
def check(
    network: Network | nn.Module,
    image: Given | None = None,
    *,
    seconds: float = SECONDS,
    run: Run = PLAIN,
) -> Audit:
    """Look at a network before the first picture is explained.

    network: what `load` gives, or any module. image: preprocessed, as the network takes it;
    without it a built-in photograph. seconds: for each method that runs the network many times;
    it is stopped then, and counts as defined. run: its progress is methods tried, and how many
    there are.

    Nothing is raised about the network: that it cannot be used is a finding, with its code (M526,
    M530 not looked into; M588 weights not finite; M589 takes no picture; M590 scores not finite;
    M591 another answer each time; M592 an answer that depends on the batch). The network is not
    changed. The number of threads of torch is changed for a moment.
    """
    name = network.spec if isinstance(network, Network) else type(network).__name__
    facts: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        result = tuple(_findings(network, name, image, seconds, run, facts))
    origin = {"method": "audit", "seconds": seconds, "seed": run.seed}
    return Audit(name, result, facts, origin={**origin, "picture": facts.pop("picture", "")})


audit = check
"""Its earlier name."""


def _findings(
    network: Network | nn.Module,
    name: str,
    image: Tensor | None,
    seconds: float,
    run: Run,
    facts: dict[str, object],
) -> Iterator[Finding]:
    loaded = network if isinstance(network, Network) else None
    given = network.model if isinstance(network, Network) else network
    try:
        model = private(given)
    except ModelError as fault:
        yield NETWORK.bad(fault.code, "can be looked into", f"no: {fault.what}", fault.next_step)
        return
    delivered = loaded.delivered if loaded is not None and loaded.delivered else None
    case = Case(
        given=given,
        model=model,
        name=name,
        network=loaded,
        delivered=delivered or Delivered.of(given),
        seconds=seconds,
        seed=run.seed,
        pictured="the picture given",
        facts=facts,
    )
    yield from _looked_at(case, image, run)


def _looked_at(case: Case, image: Tensor | None, run: Run) -> Iterator[Finding]:
    yield _introduced(case)
    yield from check_delivered(case)
    yield from check_weights(case)
    for result in check_input(case, image):
        yield result
        if result.verdict == "bad":
            return
    case.facts["picture"] = case.pictured
    for heading, check in (
        (INPUT, check_scale),
        (OUTPUT, check_output),
        (ANSWERS, check_answers),
        (RECTIFIERS, check_calls),
    ):
        yield from _as_far_as_it_goes(case, heading, check)
    methods = list(check_methods(case, run))
    yield from methods
    failed = [result for result in methods if f"[{THEIR_CODE}]" in result.finding]
    if failed and len(failed) == len(methods):
        what = "the network's own code fails whatever is tried"
        advice = "mend the network's code, at the line that is named above"
        yield METHODS.bad(THEIR_CODE, "all methods", what, advice)


def _as_far_as_it_goes(case: Case, heading: Heading, check: Check) -> Iterator[Finding]:
    """What a check finds; the network may fail in the middle of it, which is one more finding."""
    try:
        yield from check(case)
    except ModelError as fault:
        what = f"{check.__name__.removeprefix('check_')}: [{fault.code}] {fault.what}"
        advice = "this was left out; what else was found stands"
        yield heading.warn("could not be tried", what, advice)


def _introduced(case: Case) -> Finding:
    weights = sum(weight.numel() for weight in case.model.parameters())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in case.model.modules())
    what = f"{type(case.model).__name__}, {plural(weights, 'parameter')}"
    if not convolutions:
        advice = "feature maps are looked for in nn.Conv2d: without any there is nothing to see"
        return NETWORK.warn("architecture", f"{what}, no convolution", advice)
    return NETWORK.ok("architecture", f"{what}, {plural(convolutions, 'convolution')}")
