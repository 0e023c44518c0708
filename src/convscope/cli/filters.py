"""What did the first layer learn, which maps are wasted, and what do strides fold?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.progress import progress, tell
from convscope.cli.study_files import claim, new_study, save_figure, save_table

if TYPE_CHECKING:
    from convscope.pictures.pictures import Folder
    from convscope.records.filters import Filters


@expanded
def filters(
    model: Model,
    opening: Opening,
    reading: Reading,
    pictures: Annotated[
        str | None, typer.Argument(help="Pictures, to find wasted maps and what strides fold.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another network, or the same after a change.")
    ] = None,
    against_checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of that network.")
    ] = None,
    clip: Annotated[
        float, typer.Option(min=0, help="Also show filters clipped to this RMS (paper: 0.1).")
    ] = 0.0,
    out: Annotated[Path, typer.Option(help="New folder for records, figure and table.")] = Path(
        "filters"
    ),
) -> None:
    """First filters, wasted maps, frequencies and aliasing, with advice (figure 6).

    Example: convscope filters alexnet --against zfnet
    """

    claim(out)
    asked = [(model, opening)]
    if against:
        asked.append((against, opening.other(against_checkpoint)))
    if pictures is None:
        found = [_one(*each, None, clip) for each in asked]
    else:
        with reading.open(pictures) as folder:
            found = [_one(*each, folder, clip) for each in asked]
            folder.check_bad()
    _save(found, out)


def _one(model: str, opening: Opening, folder: Folder | None, clip: float) -> Filters:
    from convscope.studies.filters import filters as study

    network = opening.network(model)
    with progress(f"looking at {model}"[:28]) as tick:
        return study(network, folder, clip=clip, progress=tick)


def _save(found: list[Filters], out: Path) -> None:
    from convscope.figures.filters import filters_figure
    from convscope.figures.filters_table import filters_table

    with new_study(out) as place:
        for record, name in zip(found, ("network", "against"), strict=False):
            record.save(place / name)
        save_table(filters_table(found), place / "table.md")
        save_figure(filters_figure(found), place / "figure")
    tell(out / "figure.pdf")
