"""Which pictures does the network take, and are they prepared as it was trained?"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.network.sources.user_code import assumed
from convscope.pictures.builtin import PHOTOS, photo_file
from convscope.pictures.pictures import one_picture
from convscope.records.audit import Finding
from convscope.studies.audit_case import Case, Heading, many

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
        yield from _told(case, first, tried)
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


def _told(case: Case, first: Tensor, tried: list[str]) -> Iterator[Finding]:
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
    shown += [f"squares from {many(least, 'pixel')}"] if least < min(height, width) else []
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
