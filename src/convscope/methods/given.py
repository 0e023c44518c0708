"""Can what was handed over to a test be used: one picture, its maps, numbers that are possible?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import UsageError
from convscope.methods.cam_case import prepared
from convscope.models.network import Network
from convscope.records.maps import Attribution


def alone(model: nn.Module | Network, image: Tensor) -> Float[Tensor, "1 c h w"]:
    """One picture as a batch of one, as the network takes it.

    Raises UsageError U355 (no preprocessed picture), U392 (several).
    """
    images = prepared(model, image)
    if len(images) != 1:
        what = f"{len(images)} pictures, where maps of one are tested"
        raise UsageError("U392", "", what, next_step="give them one by one, as images[0]")
    return images


def attributions(maps: Iterable[Any], size: tuple[int, ...] | None = None) -> list[Attribution]:
    """Maps of one picture; of this size, or of the first one's.

    Raises UsageError U390 (another size), U393 (no attribution), U394 (NaN or infinite).
    """
    if isinstance(maps, (Attribution, str, np.ndarray, Tensor)):
        raise _stranger(f"one {type(maps).__name__} in the place of several maps")
    found = list(maps)
    for one in found:
        if not isinstance(one, Attribution):
            raise _stranger(f"{type(one).__name__} in the place of a map")
        size = size or one.values.shape
        if one.values.shape != size:
            what = f"a map of {_times(one.values.shape)} beside a picture of {_times(size)}"
            step = "give the picture that it was made of"
            raise UsageError("U390", one.method, what, next_step=step)
        if not np.isfinite(one.values).all():
            raise UsageError("U394", one.method, "the map has NaN or infinite numbers")
    return found


def _stranger(what: str) -> UsageError:
    step = "give a list of Attribution, as methods return it, or Attribution(values, target)"
    return UsageError("U393", "", what, next_step=step)


def _times(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def one_map(answer: Any, size: tuple[int, ...]) -> Attribution:
    """The map in what a method returned for one picture. Raises as `attributions`."""
    found = attributions(answer, size)
    if len(found) != 1:
        raise _stranger(f"{len(found)} maps for one picture")
    return found[0]


def numbers(values: Any) -> Float[np.ndarray, "h w"]:
    """A map's numbers. Raises UsageError U393 on anything but an array of rows and columns."""
    if not isinstance(values, np.ndarray) or values.ndim != 2:
        shape = f" {_times(values.shape)}" if isinstance(values, np.ndarray) else ""
        step = "give an attribution's `values`"
        what = f"{type(values).__name__}{shape} in the place of a map's numbers"
        raise UsageError("U393", "", what, next_step=step)
    return values


def at_least(least: int, **counts: int) -> None:
    """Raises UsageError U391 on a count below the least."""
    for name, count in counts.items():
        if count < least:
            raise UsageError("U391", f"{name}={count}", f"must be {least} or more")
