"""Does the network answer the same every time, and in any company?"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import ConvscopeError, ModelError
from convscope.core.text import plural
from convscope.lens.lens import HOOK, Lens
from convscope.lens.twin import ShadowModel
from convscope.network.outputs import Meaning, both_ways, leaves, meaning, scored
from convscope.network.user_code import assumed
from convscope.pictures.builtin import PHOTOS, photo_file
from convscope.pictures.pictures import one_picture
from convscope.studies.audit.network import ROUNDING, Case, Heading, some
from convscope.studies.audit.record import Finding

INPUT = Heading("input")
SIDES = (224, 32, 28, 64, 96, 128, 160, 192, 256, 299, 384, 448, 512)
"""Tried where the preprocessing's own size is refused or not known."""
COLOURS = 3
BUILTIN = "cat"
"""The photograph on which a network is tried if none is given."""


def check_input(case: Case, image: Float[Tensor, "c h w"] | None) -> Iterator[Finding]:
    """Find a picture that the network takes, and put it into the case; the last finding is bad
    (M589) if there is none."""
    first = _first_picture(case, image)
    tried: list[str] = []
    for picture in _others(case, first):
        size = _times(picture)
        try:
            case.scores(picture[None])
        except ModelError as fault:
            tried.append(f"{size}: {fault.what}")
            continue
        case.image = picture
        yield from _taken(case, first, tried)
        return
    yield _takes_none(case, tried)


def _first_picture(case: Case, image: Float[Tensor, "c h w"] | None) -> Float[Tensor, "c h w"]:
    if image is None:
        image = _builtin(case)
    weights = (weight for weight in case.model.parameters() if weight.is_floating_point())
    like = next(weights, image)
    return image.detach().clone().to(like.device, like.dtype)


def _builtin(case: Case) -> Float[Tensor, "c h w"]:
    """A photograph, prepared as the network wants it; of a bare module as ImageNet's are."""
    known = case.network
    preprocess = assumed(case.model) if known is None else known.preprocess
    photo = next(photo for photo in PHOTOS if photo.name == BUILTIN)
    case.pictured = f"the built-in photograph {photo.name}"
    return preprocess.tensor(one_picture(photo_file(photo), preprocess.framing).pixels)


def _others(case: Case, first: Float[Tensor, "c h w"]) -> Iterator[Float[Tensor, "c h w"]]:
    """The picture as it is, with the colours that the network seems to want, then other sizes."""
    convolutions = (m for m in case.model.modules() if isinstance(m, nn.Conv2d))
    wanted = next((m.in_channels for m in convolutions), len(first))
    yield first
    coloured = first
    if wanted != len(first):
        coloured = first.mean(0, keepdim=True).expand(wanted, -1, -1).contiguous()
        yield coloured
    for side in SIDES:
        if (side, side) != tuple(first.shape[1:]):
            yield _resized(coloured, side, side)


def _resized(image: Float[Tensor, "c h w"], height: int, width: int) -> Float[Tensor, "c _ _"]:
    return F.interpolate(image[None].float(), (height, width), mode="bilinear")[0].to(image.dtype)


def _taken(case: Case, first: Tensor, tried: list[str]) -> Iterator[Finding]:
    own, taken = _times(first), _times(case.image)
    case.facts["input"] = list(case.image.shape)
    if not tried:
        yield INPUT.ok("size", f"{own} as prepared{_more_sizes(case)}")
    else:
        what = f"refuses {own} as prepared ({tried[0].partition(': ')[2]}); takes {taken}"
        advice = f"{_advice(case, first)}; what follows was tried on {taken}"
        yield INPUT.warn("size", what + _more_sizes(case), advice)
    yield _colours(case, first)
    yield _prepared(case)


def _advice(case: Case, first: Tensor) -> str:
    if len(first) != len(case.image):
        return f"it is given {len(first)} colours and wants {len(case.image)}: prepare pictures so"
    height, width = case.image.shape[1:]
    return f"prepare pictures of {height} × {width} for it"


def _more_sizes(case: Case) -> str:
    """What other sizes are taken: smaller, larger, not square. Also the smallest side."""
    height, width = case.image.shape[1:]
    oblong, larger = (height, width + width // 7 // 2 * 2 + 2), (height + 32, width + 32)
    takes = [size for size in (oblong, larger) if _takes(case, *size)]
    least = _least(case)
    case.facts["smallest side"] = least
    case.facts["takes other sizes"] = bool(takes) or least < min(height, width)
    if not case.facts["takes other sizes"]:
        return ", and no other size"
    shown = [f"{high} × {wide}" for high, wide in takes]
    shown += [f"squares from {plural(least, 'pixel')}"] if least < min(height, width) else []
    return f"; also takes {', '.join(shown)}"


def _least(case: Case) -> int:
    """The smallest square that runs, if all larger ones run too."""
    works = min(case.image.shape[1:])
    if not any(_takes(case, side, side) for side in (works - 32, works // 2) if side > 0):
        return works
    fails = 0
    while works - fails > 1:
        middle = (works + fails) // 2
        if _takes(case, middle, middle):
            works = middle
        else:
            fails = middle
    return works


def _takes(case: Case, height: int, width: int) -> bool:
    try:
        case.scores(_resized(case.image, height, width)[None])
    except ModelError:
        return False
    return True


def _takes_none(case: Case, tried: list[str]) -> Finding:
    wanted = _more_arguments(case.model)
    if wanted:
        what = f"its forward wants more than a picture: {wanted}"
        advice = "wrap it in a module whose forward takes pictures and gives the rest itself"
    else:
        what = f"none was taken. {tried[0]}; nor at {len(tried) - 1} other sizes"
        advice = "run the network on a picture yourself; methods need model(pictures) to work"
    return INPUT.bad("M589", "size", what, advice)


def _more_arguments(model: nn.Module) -> str:
    """The signature of a forward that has further arguments without a default."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return ""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in signature.parameters.values() if p.kind in kinds and p.default is p.empty]
    return f"forward{signature}" if len(needed) > 1 else ""


def _colours(case: Case, first: Tensor) -> Finding:
    channels = len(case.image)
    kind = {1: "1: grey pictures", COLOURS: "3"}.get(channels, f"{channels} channels")
    if channels == len(first):
        return INPUT.ok("colours", kind)
    advice = f"pictures are prepared with {len(first)}: give methods tensors of {channels}"
    return INPUT.warn("colours", kind, advice)


def _prepared(case: Case) -> Finding:
    if case.network is None:
        advice = "prepare them as in training; with other means and scales every score is off"
        return INPUT.warn("preprocessing", "not known: this is a bare module", advice)
    described = case.network.preprocess.describe()
    if case.network.preprocess.assumed:
        advice = (
            "if it was trained with others, every score and map is off. Give its own: --size, "
            "--resize, --mean, --std, or load(…, preprocess=…)"
        )
        return INPUT.warn("preprocessing", described, advice)
    return INPUT.ok("preprocessing", described)


def _times(image: Tensor) -> str:
    channels, height, width = image.shape
    return f"{height} × {width}" if channels == COLOURS else f"{channels} × {height} × {width}"


def neighbour(image: Float[Tensor, "c h w"], seed: int) -> Float[Tensor, "c h w"]:
    """Another picture: noise of the same mean and spread."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(image) * image.std() + image.mean()


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
    return f"a {kind} of {plural(len(list(leaves(output))), 'tensor')}"


def _finite(scores: Tensor) -> Finding:
    lost = int((~torch.isfinite(scores)).sum())
    if not lost:
        low, high = float(scores.min()), float(scores.max())
        return OUTPUT.ok("finite scores", f"yes, from {low:.3g} to {high:.3g}")
    advice = "no map can be made of such scores; look for the layer that breaks down"
    what = f"{plural(lost, 'score')} NaN or infinite for this picture"
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
    twin = ShadowModel(case.model)
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
