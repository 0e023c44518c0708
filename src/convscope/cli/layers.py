"""What is this network made of?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from convscope.cli.options import Model, Opening, expanded
from convscope.cli.progress import tell
from convscope.errors import printable

if TYPE_CHECKING:
    from convscope.records.features import LayerTable

HEAD = ("layer", "kind", "kernel", "output", "parameters", "multiply-adds", "field", "stride")
TO_THE_LEFT = 2
"""Columns of words, which stand at the left; numbers stand at the right."""


@expanded
def layers(
    model: Model,
    opening: Opening,
) -> None:
    """Layers with their output, parameters, multiply-adds, receptive field and stride in pixels.

    Example: convscope layers zfnet
    """
    from convscope.methods.layers import layer_table

    network = opening.network(model)
    for line in lines(layer_table(network.model, network.preprocess.shape)):
        tell(line)


def lines(table: LayerTable) -> list[str]:
    """The table as text, a line a layer, with head and sums."""
    channels, *pixels = table.input
    rows: list[tuple[str, ...]] = [
        HEAD,
        ("input", "", "", _times((channels, *pixels)), "", "", "", ""),
    ]
    rows += [_cells(table, layer) for layer in range(len(table.name))]
    total = f"{table.parameters.sum():,}", f"{table.multiply_adds.sum():,}"
    rows.append(("sum", "", "", "", *total, "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_line(row, widths) for row in rows]


def _cells(table: LayerTable, layer: int) -> tuple[str, ...]:
    whole = table.field[layer].any() and not table.stride[layer].any()
    return (
        printable(table.name[layer]) or "(the network)",
        printable(table.kind[layer] + (f" of {table.of[layer]}" if table.of[layer] else "")),
        _times(table.kernel[layer]),
        _times(table.shape[layer]),
        _count(table.parameters[layer]),
        _count(table.multiply_adds[layer]),
        "all" if whole else _side(table.field[layer]),
        _side(table.stride[layer]),
    )


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        cell.ljust(width) if place < TO_THE_LEFT else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _times(sides: tuple[int, ...]) -> str:
    return "×".join(map(str, sides))


def _side(pair: tuple[int, int]) -> str:
    """Pixels down and across; one number if they are the same, nothing if there are none."""
    down, across = (int(side) for side in pair)
    if not (down or across):
        return ""
    return str(down) if down == across else f"{down}×{across}"
