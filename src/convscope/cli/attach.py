"""How do studies come into an atlas that is there already?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.progress import tell


def attach(
    atlas: Annotated[Path, typer.Argument(help="Folder that convscope atlas wrote.")],
    studies: Annotated[
        list[Path], typer.Argument(help="Folders that studies wrote: filters, invariance, …")
    ],
) -> None:
    """Show studies in an atlas: their figures and numbers become pages of it.

    Example: convscope attach atlas filters invariance
    """
    from convscope.pages.studies import add_studies, read_study

    tell(add_studies(atlas, [read_study(study) for study in studies]))
