"""Does the network answer the same every time, and in any company?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.errors import ModelError
from convscope.network.outputs import leaves
from convscope.records.audit import Finding
from convscope.studies.audit_case import ROUNDING, Case, Heading, some
from convscope.studies.audit_input import neighbour

ANSWERS = Heading("answers")
DEPENDS = 1e-3
"""Relative to the largest score: more than rounding, whatever the batch (as measured on
convolutional networks in float32, which stay below 1e-5)."""


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
    parts = [t for _, t in leaves(case.scores(images)) if t.is_floating_point() and t.dim()]
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
    except ModelError as fault:
        advice = "methods that run batches fail; reshape by len(x), not by 1"
        yield ANSWERS.warn("neighbours in the batch", f"takes no batch of 2: {fault.what}", advice)
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
