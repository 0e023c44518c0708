"""What does the network answer: in which form, how many classes, and has it an opinion?"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.errors import ModelError
from convscope.lens.lens import logits
from convscope.lens.taps import tensors_in
from convscope.methods.targets import is_probability
from convscope.records.audit import Finding
from convscope.studies.audit_case import Case, Heading, many, said, some

OUTPUT = Heading("output")
NO_OPINION = 0.97
"""Entropy of the classes' probabilities, 1 where all are the same: above this nothing is said."""


def check_output(case: Case) -> Iterator[Finding]:
    started = time.perf_counter()
    output = case.scores(case.batch)
    case.one_pass = time.perf_counter() - started
    form = _form(output)
    case.facts["output"] = form
    try:
        scores = logits(output)
    except ModelError as fault:
        case.facts["classes"] = 0
        advice = "methods about a class are refused; units of layers can be looked at all the same"
        yield OUTPUT.warn("form", f"no scores of classes: {said(fault)}", advice)
        return
    what = form if isinstance(output, Tensor) else f"{form}; its scores are taken"
    yield OUTPUT.ok("form", f"{what} ({len(scores)}, {scores.shape[1]})")
    yield _finite(scores)
    yield _classes(case, scores)
    yield _meaning(scores)
    if scores.shape[1] > 1 and bool(torch.isfinite(scores).all()):
        yield _likeliest(case, scores[0].double())


def _form(output: Any) -> str:
    if isinstance(output, Tensor):
        return "a tensor"
    kind = type(output).__name__
    if isinstance(getattr(output, "logits", None), Tensor):
        return f"a {kind} with logits"
    if isinstance(output, Mapping):
        return f"a {kind} with {some([str(key) for key in output])}"
    return f"a {kind} of {many(len(list(tensors_in(output))), 'tensor')}"


def _finite(scores: Tensor) -> Finding:
    lost = int((~torch.isfinite(scores)).sum())
    if not lost:
        low, high = float(scores.min()), float(scores.max())
        return OUTPUT.ok("finite scores", f"yes, from {low:.3g} to {high:.3g}")
    advice = "no map can be made of such scores; look for the layer that breaks down"
    what = f"{many(lost, 'score')} NaN or infinite for this picture"
    return OUTPUT.bad("M590", "finite scores", what, advice)


def _classes(case: Case, scores: Tensor) -> Finding:
    count, names = scores.shape[1], case.network.classes if case.network is not None else ()
    case.facts["classes"] = count
    if names and len(names) != count:
        advice = "names would stand beside the wrong scores; give the names of all classes"
        return OUTPUT.warn("classes", f"{count}, but {len(names)} names", advice)
    if count == 1:
        advice = (
            "the one score is always the likeliest, and its softmax is always 1; look at drops "
            "of the score itself"
        )
        return OUTPUT.warn("classes", "1 score", advice)
    return OUTPUT.ok("classes", f"{count}, {'with names' if names else 'without names'}")


def _meaning(scores: Tensor) -> Finding:
    if not is_probability(scores):
        return OUTPUT.ok("scores are", "logits: any sign, not adding up to 1")
    advice = (
        "where the network is sure, a softmax is flat and gradients of it vanish: let it put out "
        "what comes before its softmax"
    )
    return OUTPUT.warn("scores are", "probabilities already", advice)


def _likeliest(case: Case, scores: Float[Tensor, "classes"]) -> Finding:
    """What the picture is taken for; a network that has learned something has an opinion."""
    shares = scores if is_probability(scores[None]) else scores.softmax(0)
    top, number = float(shares.max()), int(shares.argmax())
    names = case.network.classes if case.network is not None else ()
    name = names[number] if number < len(names) else f"class {number}"
    case.facts["likeliest"] = {"class": number, "probability": top}
    what = f"{case.pictured} is taken for {name} ({top:.1%})"
    entropy = float(torch.special.entr(shares).sum()) / math.log(len(shares))
    if entropy < NO_OPINION:
        return OUTPUT.ok("opinion", what)
    chance = f"{what}, hardly more than any other class"
    advice = (
        "maps of a score that is about nothing are about nothing: are the weights random, or the "
        "pictures prepared in another way than in training?"
    )
    return OUTPUT.warn("opinion", chance, advice)
