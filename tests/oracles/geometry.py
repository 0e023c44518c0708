"""Receptive fields the slow way: one row (or column) of the picture is made NaN at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def reads(model: nn.Module, size: tuple[int, int, int], axis: int) -> dict[str, list[list[int]]]:
    """For each leaf layer with maps: for each of its rows (axis 0) or columns (1) all rows
    (columns) of the picture whose NaN reaches it."""
    tables: dict[str, list[list[int]]] = {}
    number = 0

    def hook(name: str):
        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                hit = output[0].isnan().any(dim=0).any(dim=1 - axis)
                table = tables.setdefault(name, [[] for _ in range(len(hit))])
                for place in torch.nonzero(hit).flatten().tolist():
                    table[place].append(number)

        return note

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if n]
    with torch.no_grad():
        for number in range(size[1 + axis]):
            picture = torch.full((1, *size), 0.5)
            picture.select(2 + axis, number).fill_(float("nan"))
            model(picture)
    for handle in handles:
        handle.remove()
    return tables
