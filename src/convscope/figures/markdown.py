"""How are rows of words laid out as a table that is legible as text and as Markdown?"""

from __future__ import annotations

from collections.abc import Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of one length, the head first, each column as wide as its longest cell."""
    every = [head, ["---"] * len(head), *rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    return [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in every
    ]
