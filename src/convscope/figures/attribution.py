"""How is a map drawn so that it neither hides the picture nor claims more than it says?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from convscope.figures.heat import heat, signed
from convscope.records.maps import Attribution

OPAQUE = 0.85
"""How much of the picture the strongest place of a map covers."""
RARE = 99.5
"""Percent of the pixels below the value that is drawn strongest, for maps of single pixels: a few
outliers would leave the rest black."""
GREY = np.array((0.299, 0.587, 0.114))
"""Weights of red, green and blue in grey. Source: ITU-R BT.601."""


def drawn(picture: UInt8[np.ndarray, "h w 3"], found: Attribution) -> UInt8[np.ndarray, "h w 3"]:
    """A coarse map over the grey picture, where it is positive; a map of pixels on its own.

    A map with no positive part is drawn as the grey picture alone. Maps of pixels with both
    signs are red for and blue against the target, grey at 0.
    """
    if found.values.min() >= 0 and not found.positive:
        return _grey(picture)
    if _coarse(found):
        return over(picture, found.values)
    limit = float(np.percentile(np.abs(found.values), RARE)) or float(np.abs(found.values).max())
    if found.values.min() < 0:
        return signed(found.values, limit)
    return heat(found.values, 0.0, limit, table="magma")


def over(
    picture: UInt8[np.ndarray, "h w 3"], values: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Positive values over the grey picture, the more covering the larger they are."""
    top = float(values.max())
    if top <= 0:
        return _grey(picture)
    share = np.clip(np.asarray(values, np.float64) / top, 0, 1)
    cover = (OPAQUE * share)[..., None]
    mixed = _grey(picture) * (1 - cover) + heat(share, 0, 1) * cover
    whole: UInt8[np.ndarray, "h w 3"] = np.rint(mixed).astype(np.uint8)
    return whole


def legend(found: Attribution) -> str:
    """What the drawing's colours stand for."""
    if not found.positive and (_coarse(found) or found.values.min() >= 0):
        return "no positive evidence"
    if _coarse(found):
        return f"clear 0, yellow {float(found.values.max()):.3g}"
    limit = float(np.percentile(np.abs(found.values), RARE)) or float(np.abs(found.values).max())
    if found.values.min() < 0:
        return f"red +{limit:.2g} for, blue −{limit:.2g} against"
    return f"black 0, white {limit:.2g}"


def _coarse(found: Attribution) -> bool:
    """Maps of layers are smooth when enlarged; maps of pixels are not."""
    return found.pixels is None and (
        found.raw is None or found.raw.size * 4 <= found.values.size or found.values.min() >= 0
    )


def _grey(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    light = np.rint(picture @ GREY).astype(np.uint8)
    return np.repeat(light[..., None], 3, axis=2)
