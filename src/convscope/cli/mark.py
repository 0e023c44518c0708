"""Where are the parts and the objects in these pictures, as somebody sees them?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.options import Reading, expanded
from convscope.cli.progress import progress, tell
from convscope.cli.results import claim, new_study
from convscope.core.run import Run


@dataclass(frozen=True)
class Marking:
    """What is marked."""

    parts: Annotated[
        str, typer.Option(help='Names with commas: "left_eye,right_eye,nose"; none: boxes alone.')
    ] = ""
    start: Annotated[
        Path | None, typer.Option(help="A parts.json to go on from or to correct.")
    ] = None
    boxes: Annotated[
        Path | None, typer.Option(help="A boxes.json to go on from or to correct.")
    ] = None
    out: Annotated[Path, typer.Option(help="New folder for the page.")] = Path("marking")
    open_page: Annotated[bool, typer.Option("--open", help="Open the page when done.")] = False


@expanded
def mark(
    pictures: Annotated[str, typer.Argument(help="A folder of pictures.")],
    options: Marking,
    reading: Reading,
) -> None:
    """A page on which parts are marked by clicking and boxes by dragging.

    It saves the parts.json that `convscope correspondence` reads, and the boxes.json of
    `convscope occlusion`, `explain` and `pointing`.

    Example: convscope mark dogs --parts left_eye,right_eye,nose --open
    """
    from convscope.pages.mark import write_marking
    from convscope.pictures.annotations import read_boxes, read_parts

    claim(options.out)
    names = [name.strip() for name in options.parts.split(",")] if options.parts else []
    marked = None if options.start is None else read_parts(options.start)
    boxed = None if options.boxes is None else read_boxes(options.boxes)
    with (
        reading.open(pictures) as folder,
        progress("pictures") as tick,
        new_study(options.out) as place,
    ):
        write_marking(place, folder, names, marked=marked, boxes=boxed, run=Run(progress=tick))
    page = options.out / "index.html"
    tell(page)
    if options.open_page:
        typer.launch(page.resolve().as_uri())
