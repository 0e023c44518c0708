"""What is this network made of?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Model, Opening, expanded
from convscope.errors import UsageError, printable

if TYPE_CHECKING:
    from convscope.records.features import LayerTable

HEAD = ("layer", "kind", "kernel", "output", "parameters", "multiply-adds", "field", "stride")
MAX_SIDE = 8192
"""Pixels, as for any network's input."""
TO_THE_LEFT = 2
"""Columns of words, which stand at the left; numbers stand at the right."""


@expanded
def layers(
    model: Model,
    opening: Opening,
    size: Annotated[
        str | None, typer.Option(help="Input in pixels: 224, or HEIGHTxWIDTH; default: its own.")
    ] = None,
) -> None:
    """Layers with their output, parameters, multiply-adds, receptive field and stride in pixels.

    Example: convscope layers zfnet
    """
    from convscope.methods.layers import layer_table

    asked = None if size is None else _pixels(size)
    network = opening.network(model)
    pixels = asked or network.preprocess.size
    for line in lines(layer_table(network.model, (network.preprocess.shape[0], *pixels))):
        typer.echo(line)


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


def _pixels(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})(?:[x×]([1-9]\d{0,4}))?", text)
    if found is None:
        raise UsageError(
            "U320", text, "is no size in pixels", next_step="write 224 or HEIGHTxWIDTH"
        )
    height, width = int(found[1]), int(found[2] or found[1])
    if max(height, width) > MAX_SIDE:
        raise UsageError("U320", text, f"is over {MAX_SIDE} pixels, the most that are taken")
    return height, width
