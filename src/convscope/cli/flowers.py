"""How do I get the tutorials' flower photographs?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.progress import progress, say


def flowers(
    cache: Annotated[
        Path | None, typer.Option(help="Where to keep them; by default the user's cache folder.")
    ] = None,
) -> None:
    """Download the 3,670 flower photographs of the tutorials (229 MB, CC-BY).

    The download goes on where it stopped and is checked by its SHA-256. Afterwards `flowers`
    stands for them wherever a command wants pictures.

    Example: convscope flowers
    """
    from convscope.images.flowers import flowers as fetch

    with progress("flowers (bytes)") as tick, progress("unpacking (files)") as unpacked:
        folder = fetch(cache, progress=tick, unpacking=unpacked)
    say(f"{len(folder):,} photographs of {', '.join(folder.classes)}")
    typer.echo(folder.root)
