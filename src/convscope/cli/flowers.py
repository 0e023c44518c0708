"""How do I get the tutorials' flower photographs?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.progress import progress, tell


def flowers(
    out: Annotated[
        Path | None, typer.Option(help="New folder for them; by default the user's cache.")
    ] = None,
) -> None:
    """Download the 3,670 flower photographs of the tutorials (229 MB, CC-BY).

    The download goes on where it stopped and is checked by its SHA-256. Without --out, `flowers`
    then stands for them wherever a command wants pictures.

    Example: convscope flowers
    """
    from convscope.pictures.flowers import download

    with progress("flower photographs (bytes)") as tick:
        place = download(out, progress=tick)
    tell(place)
