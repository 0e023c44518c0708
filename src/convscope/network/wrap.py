"""How is a network looked at that takes more than a picture, or answers for pixels or boxes?

Each of these gives the network itself again, with the same layers and weights, that takes pictures
(b, c, h, w) alone and gives scores (b, classes). The network is not changed.

    network = convscope.load(convscope.wrap.segmentation(model, mask=mask), preprocess=…)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError, a_kind, nearest, shown
from convscope.core.units import Box
from convscope.lens.lens import Lens, dressed
from convscope.network.output_search import KINDS, Kind, at, leaves

OVERLAP = 0.5
"""How much a detection has in common with the box that is asked for, as their intersection over
their union, to be the same thing."""


def inputs(model: nn.Module, held: Mapping[str, Any], *, picture: str | None = None) -> nn.Module:
    """A network of several inputs, of which one is the picture and all others are held fixed.

    held: what to give for the others, by the names of forward's parameters; a tensor whose first
    axis has one row is repeated for a batch of pictures, and goes where these are. picture: the
    parameter's name; without it the first.

    Raises UsageError U240 where an input has both meanings, where forward has no input of a name,
    and where one that it needs is not told; U376 for what is no module.
    """
    _require_module(model)
    if not isinstance(held, Mapping) or not all(isinstance(name, str) for name in held):
        step = 'give {"NAME": value}, by the names of forward\'s parameters'
        raise UsageError("U240", "", f"{shown(held)} is no table of inputs", next_step=step)
    if picture in held:
        what = "is the picture, and cannot be held fixed"
        raise UsageError("U240", str(picture), what, next_step="leave it out of the others")
    _require_inputs(model, held, picture)
    kept = {name: _detached(value) for name, value in held.items()}
    tensors = [value for value in kept.values() if isinstance(value, Tensor)]
    return dressed(model, _Inputs(kept, picture), tensors)


def segmentation(
    model: nn.Module, mask: Tensor | np.ndarray | None = None, *, output: str | int | None = None
) -> nn.Module:
    """A network that gives maps of scores (b, classes, h, w): the mean of each class's in a mask.

    So the target "class 12" is the mean score of class 12 in the mask. mask: (h, w), where it is
    True or above 0; of the maps' size or of another, as the picture's, which is brought to it
    (nearest place); without it everywhere. `region` gives that of a class. output: where the maps
    are in what the network gives; without it `out`, or the only ones.

    Raises UsageError U240 for a mask that is none, or is empty.
    """
    _require_module(model)
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "biuf":
        mask = torch.from_numpy(np.ascontiguousarray(mask))
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dim() != 2 or not bool((mask > 0).any()):
            got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            what = f"{got} is no mask (height, width) with anything in it"
            raise UsageError("U240", "mask", what, next_step="give a tensor of True and False")
        mask = (mask.detach() > 0).float()
    where = "" if output is None else str(output)
    return dressed(model, _Segmentation(mask, where), [] if mask is None else [mask])


def region(
    model: nn.Module, image: Float[Tensor, "c h w"], label: int, *, output: str | int | None = None
) -> Bool[Tensor, "h w"]:
    """Where in a picture a segmentation network takes this class for the likeliest: a mask.

    image: preprocessed. Raises ModelError M520 (no maps of scores), UsageError U240 where the
    class is nowhere.
    """
    _require_module(model)
    if not isinstance(image, Tensor) or image.dim() not in (3, 4):
        what = f"{shown(image)} is no preprocessed picture"
        raise UsageError("U240", "image", what, next_step="give a tensor (c, h, w)")
    label = _whole("label", label)
    with torch.no_grad(), Lens(model, ()) as lens:
        result = lens(image[None] if image.dim() == 3 else image[:1])
    mask = _maps(result, "" if output is None else str(output))[0].argmax(0) == label
    if not bool(mask.any()):
        raise UsageError("U240", f"class {label}", "is nowhere the likeliest in this picture")
    return mask


def detection(
    model: nn.Module,
    box: Box | Sequence[float],
    label: int | None = None,
    *,
    overlap: float = OVERLAP,
) -> nn.Module:
    """A network that gives boxes: how sure it is of the thing in one of them, a probability.

    That is the highest score among its detections of this label that share enough with the box,
    and 0 where there is none. It becomes two classes: 1 for the thing, 0 against it. The network
    is called as torchvision's detectors are, with a list of pictures (c, h, w), and gives for each
    a dictionary of `boxes` (n, 4), `labels` (n,) and `scores` (n,).

    box: a Box, or left, top, right and bottom as torchvision has them, in pixels of the network's
    input. label: as the network numbers them; without it any. overlap: least intersection over
    union.

    Raises UsageError U240 for what is no box.
    """
    _require_module(model)
    label = None if label is None else _whole("label", label)
    if not isinstance(overlap, float | int) or not 0 <= overlap <= 1:
        raise UsageError("U240", "overlap", f"{shown(overlap)} is no share from 0 to 1")
    if isinstance(box, Box):
        box = (box.left, box.top, box.right, box.bottom)
    try:
        sides = [float(one) for one in box]
    except (TypeError, ValueError):  # no numbers
        sides = []
    if len(sides) != 4 or sides[0] >= sides[2] or sides[1] >= sides[3]:
        what = "is no box: left, top, right and bottom, the last two the larger"
        raise UsageError("U240", shown(box), what)
    wanted = torch.tensor(sides)
    return dressed(model, _Detection(wanted, label, overlap), [wanted])


def _require_module(model: object) -> None:
    """Raises UsageError U376."""
    if not isinstance(model, nn.Module):
        what = f"{a_kind(model)} is no network"
        raise UsageError("U376", "", what, next_step="wrap a torch.nn.Module, then give it to load")


def _whole(name: str, given: Any) -> int:
    """Raises UsageError U240 for what is no whole number."""
    if (
        isinstance(given, bool)
        or not hasattr(given, "__index__")
        or bool(getattr(given, "ndim", False))
    ):
        what = f"{shown(given)} is not a whole number"
        raise UsageError("U240", name, what, next_step="give the number of the class")
    return int(given)


def _require_inputs(model: nn.Module, held: Mapping[str, Any], picture: str | None) -> None:
    """Raises UsageError U240 where forward could not be called with these."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # some programs do not say
        return
    places = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    by_name = [one.name for one in parameters if one.kind in places]
    free = {one.kind for one in parameters} & {inspect.Parameter.VAR_KEYWORD}
    first = next((one.name for one in parameters), None)
    named = [*held, *([] if picture is None else [picture])]
    if strange := [name for name in named if name not in by_name and not free]:
        what = f"forward has no such input; {nearest(str(strange[0]), by_name)}"
        raise UsageError("U240", shown(strange[0]), what)
    if picture is None and first in held and not free:
        what = "is forward's first input, which without picture=… is the picture"
        raise UsageError("U240", str(first), what, next_step="name the picture's: picture=…")
    told = {*held, first if picture is None else picture}
    for one in parameters:
        if one.kind in places and one.default is one.empty and one.name not in told:
            step = f'hold it fixed: {{"{one.name}": …}}'
            raise UsageError("U240", one.name, "forward needs this input too", next_step=step)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class _Inputs:
    held: Mapping[str, Any]
    picture: str | None

    def __call__(self, run: Callable[..., Any], images: Float[Tensor, "b c h w"]) -> Any:
        others = {name: _beside(value, images) for name, value in self.held.items()}
        if self.picture is None:
            return run(images, **others)
        return run(**{self.picture: images}, **others)


def _beside(value: Any, images: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.to(images.device, images.dtype if value.is_floating_point() else None)
    alone = value.dim() > 0 and len(value) == 1
    return value.expand(len(images), *value.shape[1:]) if alone else value


@dataclass(frozen=True)
class _Segmentation:
    mask: Float[Tensor, "h w"] | None
    where: str

    def __call__(self, run: Callable[..., Any], images: Float[Tensor, "b c h w"]) -> Any:
        maps = _maps(run(images), self.where)
        if self.mask is None:
            return maps.mean((2, 3))
        mask = self.mask.to(maps.device, maps.dtype)[None, None]
        if mask.shape[2:] != maps.shape[2:]:
            _require_proportions(tuple(mask.shape[2:]), tuple(images.shape[2:]))
            mask = F.interpolate(mask, maps.shape[2:], mode="nearest")
            if not bool(mask.any()):
                what = f"nothing of it is left on maps of {maps.shape[2]} × {maps.shape[3]}"
                raise UsageError("U240", "mask", what, next_step="give a larger one")
        return (maps * mask).sum((2, 3)) / mask.sum()


def _require_proportions(mask: tuple[int, ...], picture: tuple[int, ...]) -> None:
    """Raises UsageError U240 where a mask lies over another part than the network sees."""
    if abs(mask[0] * picture[1] - mask[1] * picture[0]) > max(*mask, *picture):
        what = f"is of {mask[0]} × {mask[1]}, where the network sees {picture[0]} × {picture[1]}"
        step = "make it of the picture as the network sees it, resized and cropped"
        raise UsageError("U240", "mask", what, next_step=step)


def _maps(output: Any, where: str) -> Float[Tensor, "b classes h w"]:
    """Raises ModelError M520 where there are none, or several."""
    result = {".".join(path): value for path, value in leaves(output)}
    maps = {name: value for name, value in result.items() if value.dim() == 4}
    chosen = maps.get(where or ("out" if "out" in maps else next(iter(maps), "")))
    if chosen is None or (not where and "out" not in maps and len(maps) > 1):
        there = ", ".join(f"{name or 'a tensor'} {tuple(v.shape)}" for name, v in result.items())
        what = f"puts out {there or 'no tensor'}: where are the maps (b, classes, h, w)?"
        step = "name them: segmentation(model, mask, output=…)"
        raise ModelError("M520", "the network", what, next_step=step)
    return chosen


@dataclass(frozen=True)
class _Detection:
    box: Float[Tensor, "4"]
    label: int | None
    overlap: float
    scores: Kind = KINDS[3]
    """What it gives, as a user would say it: a probability of its own."""

    def __call__(self, run: Callable[..., Any], images: Float[Tensor, "b c h w"]) -> Any:
        result = run(list(images))
        if not isinstance(result, (list, tuple)) or len(result) != len(images):
            what = f"gives a {type(result).__name__} where a list of detections was expected"
            raise ModelError("M520", "the network", what)
        return torch.stack([self._sure(one, images) for one in result])[:, None]

    def _sure(self, detections: Any, images: Tensor) -> Float[Tensor, ""]:
        parts = [at(detections, (name,)) for name in ("boxes", "labels", "scores")]
        if not all(isinstance(part, Tensor) for part in parts):
            what = "gives no boxes, labels and scores for a picture"
            raise ModelError("M520", "the network", what)
        boxes, labels, scores = parts
        same = _shared(boxes.detach(), self.box.to(boxes)) >= self.overlap
        if self.label is not None:
            same = same & (labels == self.label)
        # Where there is nothing the way of gradients stays open, though nothing comes along it.
        nothing = images.sum() * 0
        return torch.cat((scores[same], nothing.to(scores)[None])).amax()


def _shared(boxes: Float[Tensor, "n 4"], box: Float[Tensor, "4"]) -> Float[Tensor, "n"]:
    """Intersection over union of each with the box."""
    inside = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp(0)
    both = inside.prod(1)
    own, other = (boxes[:, 2:] - boxes[:, :2]).prod(1), (box[2:] - box[:2]).prod()
    return both / (own + other - both).clamp_min(1e-9)
