"""What does the network answer: in which form, how many classes, and has it an opinion?"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.errors import ConvscopeError
from convscope.lens.lens import Lens
from convscope.network.outputs import Meaning, both_ways, leaves, meaning, scored
from convscope.records.audit import Finding
from convscope.studies.audit_case import Case, Heading, many, some

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
        scores, read = _scores(case)
    except ConvscopeError as fault:
        case.facts["classes"] = 0
        advice = "methods about a class are refused; units of layers can be looked at all the same"
        advice = f"{fault.next_step}. Otherwise {advice}" if fault.next_step else advice
        unclear = "its scores are not clear" if fault.code == "M521" else "no scores of classes"
        yield OUTPUT.warn("form", f"{unclear}: {fault.subject} {fault.what}", advice)
        return
    where = f"scores are {'.'.join(read.where)}" if read.where else "its scores are taken"
    what = form if isinstance(output, Tensor) else f"{form}; {where}"
    yield OUTPUT.ok("form", f"{what} ({len(scores)}, {read.columns})")
    yield _finite(scores)
    yield _classes(case, read)
    yield _meaning(case, read)
    if bool(torch.isfinite(scores).all()):
        yield _likeliest(case, read, read.probabilities(scores)[0].double())


def _scores(case: Case) -> tuple[Float[Tensor, "1 classes"], Meaning]:
    """Read by the one place that knows; raises as `meaning` does."""
    known = case.network
    given = case.model if known is None else replace(known, model=case.model)
    case.scored = scored(given, case.batch)
    read = meaning(case.scored)
    with torch.no_grad(), Lens(case.scored, ()) as lens:
        return read.require(lens(case.batch.clone())), read


def _form(output: Any) -> str:
    if isinstance(output, Tensor):
        return "a tensor"
    kind = type(output).__name__
    if isinstance(getattr(output, "logits", None), Tensor):
        return f"a {kind} with logits"
    if isinstance(output, Mapping):
        return f"a {kind} with {some([str(key) for key in output])}"
    return f"a {kind} of {many(len(list(leaves(output))), 'tensor')}"


def _finite(scores: Tensor) -> Finding:
    lost = int((~torch.isfinite(scores)).sum())
    if not lost:
        low, high = float(scores.min()), float(scores.max())
        return OUTPUT.ok("finite scores", f"yes, from {low:.3g} to {high:.3g}")
    advice = "no map can be made of such scores; look for the layer that breaks down"
    what = f"{many(lost, 'score')} NaN or infinite for this picture"
    return OUTPUT.bad("M590", "finite scores", what, advice)


def _classes(case: Case, read: Meaning) -> Finding:
    count, names = read.columns, case.network.classes if case.network is not None else ()
    case.facts["classes"] = count
    if names and len(names) not in (count, read.classes):
        advice = "names would stand beside the wrong scores; give the names of all classes"
        return OUTPUT.warn("classes", f"{count}, but {len(names)} names", advice)
    if read.is_single:
        told = f"1 score: for {named(names, 1)}, and against it ({named(names, 0)})"
        return OUTPUT.ok("classes", told)
    return OUTPUT.ok("classes", f"{count}, {'with names' if names else 'without names'}")


def _meaning(case: Case, read: Meaning) -> Finding:
    case.facts["scores are"] = read.kind
    told = "; ".join(note for note in read.notes if not note.startswith("the network puts out"))
    if not told:
        what = "logits, of which a softmax makes probabilities"
        step = "if each label stands for itself say so: --scores sigmoid, load(…, scores=)"
        return OUTPUT.ok("scores are", what, step)
    if read.space == "logit" or read.last:
        more = "; maps explain the score from before that" if read.last else ""
        return OUTPUT.ok("scores are", told + more)
    advice = (
        "where the network is sure, probabilities are flat and gradients of them vanish: let it "
        "put out what comes before"
    )
    return OUTPUT.warn("scores are", told, advice)


def named(names: Sequence[str], number: int) -> str:
    known = both_ways(names)
    return known[number] if number < len(known) else f"class {number}"


def _likeliest(case: Case, read: Meaning, shares: Float[Tensor, "classes"]) -> Finding:
    """What the picture is taken for; a network that has learned something has an opinion."""
    top, number = float(shares.max()), int(shares.argmax())
    name = named(case.network.classes if case.network is not None else (), number)
    case.facts["likeliest"] = {"class": number, "probability": top}
    what = f"{case.pictured} is taken for {name} ({top:.1%})"
    if not read.is_exclusive:
        return OUTPUT.ok("opinion", f"{what}, of labels that stand each for itself")
    entropy = float(torch.special.entr(shares).sum()) / math.log(len(shares))
    if entropy < NO_OPINION:
        return OUTPUT.ok("opinion", what)
    chance = f"{what}, hardly more than any other class"
    advice = (
        "maps of a score that is about nothing are about nothing: are the weights random, or the "
        "pictures prepared in another way than in training?"
    )
    return OUTPUT.warn("opinion", chance, advice)
