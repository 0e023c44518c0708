"""What does the network answer, and does it answer the same every time and in any company?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.errors import ModelError
from convscope.lens.lens import logits
from convscope.lens.taps import tensors_in
from convscope.methods.targets import is_probability
from convscope.records.audit import Finding
from convscope.studies.audit_case import ROUNDING, Case, Heading, many, said, some
from convscope.studies.audit_input import neighbour

OUTPUT = Heading("output")
ANSWERS = Heading("answers")
NO_OPINION = 2.0
"""A softmax below this many times the share of chance says nothing."""
DEPENDS = 1e-3
"""Relative to the largest score: more than rounding, whatever the batch (as measured on
convolutional networks in float32, which stay below 1e-5)."""


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
    if top > NO_OPINION / len(scores):
        return OUTPUT.ok("opinion", what)
    chance = f"{what}, hardly more than any other class"
    advice = (
        "maps of a score that is about nothing are about nothing: are the weights random, or the "
        "pictures prepared in another way than in training?"
    )
    return OUTPUT.warn("opinion", chance, advice)


def check_answers(case: Case) -> Iterator[Finding]:
    """Nothing is told where there is no answer to compare."""
    before = [value.clone() for value in case.model.buffers()]
    drawn = torch.random.get_rng_state()
    first = _numbers(case, case.batch)
    is_drawing = not torch.equal(drawn, torch.random.get_rng_state())
    same = _gap(first, _numbers(case, case.batch))
    yield _twice(case, same, is_drawing)
    yield _changed(case, before)
    if same <= DEPENDS:
        yield _threads(case, first)
        yield from _company(case, first)


def _numbers(case: Case, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n"]:
    """All real numbers that the network puts out, a row a picture."""
    parts = [t for t in tensors_in(case.scores(images)) if t.is_floating_point() and t.dim()]
    return torch.cat([part.reshape(len(part), -1).double() for part in parts], 1)


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the largest number; NaN at the same place is none."""
    both = a.isnan() & b.isnan()
    off = torch.where(both, 0.0, (a - b).abs())
    gap = float(off.max() / a.nan_to_num().abs().max().clamp(min=1e-30))
    return gap if gap == gap else float("inf")


def _twice(case: Case, gap: float, is_drawing: bool) -> Finding:
    case.facts["same picture twice"] = gap
    if gap > DEPENDS:
        why = "it draws random numbers in eval mode" if is_drawing else "it keeps something"
        what = f"answers differ by {gap:.1%} of the largest; {why}"
        advice = (
            "every map would be that of one draw: pass self.training to functional dropout, as "
            "F.dropout(x, p, self.training)"
        )
        return ANSWERS.bad("M591", "same picture twice", what, advice)
    if gap > 0 or is_drawing:
        what = f"answers differ by {gap:.1g} of the largest" if gap else "the same answer"
        what += ", though it draws random numbers in eval mode" if is_drawing else ""
        advice = "results can be repeated to rounding only; look for dropout that is always on"
        return ANSWERS.warn("same picture twice", what, advice)
    return ANSWERS.ok("same picture twice", "the same answer, bit for bit")


def _changed(case: Case, before: list[Tensor]) -> Finding:
    named = zip(case.model.named_buffers(), before, strict=False)
    changed = [name for (name, value), old in named if not torch.equal(value, old)]
    case.facts["changed by looking"] = changed
    if not changed:
        return ANSWERS.ok("changed by looking", "no: running it leaves its buffers as they were")
    advice = (
        "running it in eval mode moves these numbers, so that each picture changes the next "
        "answer; freeze them (the audit itself ran on copies)"
    )
    return ANSWERS.warn("changed by looking", f"yes: {some(changed)}", advice)


def _threads(case: Case, first: Tensor) -> Finding:
    with _threaded(1 if torch.get_num_threads() > 1 else 2):
        gap = _gap(first, _numbers(case, case.batch))
    case.facts["one thread or two"] = gap
    if gap > ROUNDING:
        advice = "fix the number of threads when results are to be compared"
        return ANSWERS.warn("one thread or two", f"answers differ by {gap:.1g}", advice)
    what = f"differ by {gap:.1g} of the largest: rounding" if gap else "the same, bit for bit"
    return ANSWERS.ok("one thread or two", what)


@contextmanager
def _threaded(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _company(case: Case, first: Tensor) -> Iterator[Finding]:
    """Does a picture's answer depend on what else is in the batch?"""
    other = neighbour(case.image, case.seed)
    try:
        pairs = [_numbers(case, torch.stack([case.image, beside])) for beside in (other, other * 3)]
    except Exception as fault:  # whatever a stranger's code raises
        advice = "methods that run batches fail; reshape by len(x), not by 1"
        yield ANSWERS.warn("neighbours in the batch", f"takes no batch of 2: {said(fault)}", advice)
        return
    if any(len(pair) != 2 or pair.shape[1] != first.shape[1] for pair in pairs):
        advice = "methods expect one row of scores for each picture; reshape by len(x), not by 1"
        what = f"two pictures give {len(pairs[0])} rows of {pairs[0].shape[1]} numbers"
        yield ANSWERS.warn("neighbours in the batch", what, advice)
        return
    gap = max(_gap(first, pair[:1]) for pair in pairs)
    case.facts["neighbours"] = gap
    if gap > DEPENDS:
        what = f"a picture's scores change by {gap:.1%} of the largest with its neighbours"
        advice = (
            "the network normalises over the batch: no answer is about one picture alone. Look "
            "for batch norm without running statistics, or always in train mode"
        )
        yield ANSWERS.bad("M592", "neighbours in the batch", what, advice)
        return
    what = f"alone and in a batch of 2 alike, to rounding ({gap:.1g})" if gap else "no influence"
    yield ANSWERS.ok("neighbours in the batch", what)
