"""Can this network be looked at, by which methods, and what should one know beforehand?

A minute's look before hours of work: how the network was delivered, whether its weights are
sound, which pictures it takes, whether it answers the same every time and in any company, which
rectifiers it calls in which spelling, and which methods are defined for it. Everything is found
by trying it on a picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from convscope.core.errors import ModelError
from convscope.core.run import PLAIN, Run
from convscope.core.text import plural
from convscope.network.arguments import Given, single, taking
from convscope.network.network import Delivered, Network
from convscope.network.provenance import recorded
from convscope.studies.audit.attributions import METHODS, THEIR_CODE, check_methods
from convscope.studies.audit.case import Case, Check, Heading, private
from convscope.studies.audit.inputs import (
    ANSWERS,
    INPUT,
    OUTPUT,
    check_answers,
    check_input,
    check_output,
    check_scale,
)
from convscope.studies.audit.network import RECTIFIERS, check_calls, check_delivered, check_weights
from convscope.studies.audit.record import Audit, Finding

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
