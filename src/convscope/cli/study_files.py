"""How does a study's command write its figures and tables beside its record?"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from convscope.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


KINDS = ("pdf", "svg", "png")
"""For print, for pages and for looking."""


def save_figure(figure: Figure, place: Path) -> Path:
    """`place` with each ending of KINDS; the PDF's path."""
    from convscope.publish import publish_file

    for kind in KINDS:
        publish_file(place.with_suffix(f".{kind}"), drawn(figure, kind))
    return place.with_suffix(".pdf")


def drawn(figure: Figure, kind: str) -> bytes:
    """The figure as a file of that kind, with letters as letters and without a date, so that the
    same record gives the same file."""
    import matplotlib

    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    letters: dict[Any, Any] = {
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "convscope",
    }
    with warnings.catch_warnings(), matplotlib.rc_context(letters):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        out = io.BytesIO()
        figure.savefig(out, format=kind, dpi=200, metadata=dated)
    return out.getvalue()


def save_table(lines: Iterable[str], place: Path) -> None:
    """Kept as `place` and printed."""
    from convscope.publish import publish_file

    text = "\n".join(lines)
    publish_file(place, f"{text}\n".encode())
    typer.echo(text)


def listed(names: str | None) -> Sequence[str] | None:
    """Names with commas between."""
    found = [name.strip() for name in (names or "").split(",") if name.strip()]
    return found or None


def epochs_listed(text: str | None) -> Sequence[int] | None:
    """Epochs with commas between. Raises UsageError U386 on anything else."""
    names = listed(text)
    if names is None:
        return None
    if not all(name.isascii() and name.isdigit() and len(name) < 8 for name in names):
        raise UsageError(
            "U386", str(text), "is no list of epochs", next_step="write them as 1,2,5,10"
        )
    return [int(name) for name in names]
