"""What excites one feature map most at one moment of a training, and what is its projection?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from convscope.lens.backward import Rule
from convscope.lens.geometry import Field
from convscope.methods.deconvnet import deconvnet
from convscope.network.preprocess import Preprocess
from convscope.pictures.pictures import Folder
from convscope.studies.display import around, cut, patch, side_of
from convscope.units import Unit


class Moment(NamedTuple):
    """One feature map at one epoch."""

    value: float
    image: int
    at: tuple[int, int]
    patch: UInt8[np.ndarray, "s s 3"]
    projection: Float[np.ndarray, "s s 3"]


def moment(
    model: nn.Module,
    folder: Folder,
    preprocess: Preprocess,
    field: Field,
    rule: Rule,
    side: int,
    unit: Unit,
    number: int,
    value: float,
) -> Moment:
    """unit: with its place in the picture of this number, where its activation is value."""
    picture = folder.one(number, preprocess.framing)
    image = preprocess.tensor(picture.pixels)[None]
    (projection,) = deconvnet(model, image, [unit], rule=rule)
    row, column = unit.at or (0, 0)
    box, own = around(field.box(row, column), field.picture), side_of(field, side)
    small = cut(torch.tensor(projection.pixels), box, own, 0.0).expand(3, -1, -1)
    return Moment(
        value,
        number,
        (row, column),
        _enlarged(patch(preprocess.seen(picture.pixels), box, own), side),
        _enlarged(small.permute(1, 2, 0).numpy(), side),
    )


def _enlarged(square: np.ndarray, side: int) -> np.ndarray:
    """To the common side, by repeating pixels: what was small stays sharp."""
    place = np.arange(side) * len(square) // side
    return square[place][:, place]
