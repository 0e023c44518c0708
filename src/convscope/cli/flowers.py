"""How do I get the tutorials' flower photographs?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.progress import progress


def flowers(
    out: Annotated[Path, typer.Option(help="New folder for the pictures.")] = Path("flower_photos"),
) -> None:
    """Download the 3,670 flower photographs of the tutorials (229 MB, CC-BY).

    The download goes on where it stopped, and is checked by its SHA-256.

    Example: convscope flowers --out flower_photos
    """
    from convscope.images.flowers import download

    with progress("flower photographs (bytes)") as tick:
        place = download(out, progress=tick)
    typer.echo(place)
