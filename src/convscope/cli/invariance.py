"""How far do features and answer stay the same while a picture is moved, enlarged or turned?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.options import Beside, Model, Opening, Reading, expanded
from convscope.cli.progress import progress, tell
from convscope.cli.study_files import claim, listed, new_study, save_figure, save_table


@expanded
def invariance(
    model: Model,
    pictures: Annotated[list[str], typer.Argument(help="A folder of pictures, or pictures.")],
    opening: Opening,
    reading: Reading,
    labels: Annotated[
        Path | None,
        typer.Option(help="JSON: class index by file name; without, the likeliest is followed."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Names with commas, low to high; default: first and last.")
    ] = None,
    border: Annotated[
        str, typer.Option(help="Where the picture ends: mean, edge or mirror.")
    ] = "mean",
    crop: Annotated[
        bool, typer.Option("--crop", help="Let the border begin at the network's crop.")
    ] = False,
    out: Annotated[Path, typer.Option(help="New folder for record, figures and table.")] = Path(
        "invariance"
    ),
    beside: Beside = False,
) -> None:
    """Distances and probability under translation, scale and rotation (figure 5).

    Example: convscope invariance torchvision:squeezenet1_0 dog.jpg car.jpg
    """
    from convscope.figures.invariance import invariance_figure, invariance_table
    from convscope.pictures.annotations import read_labels
    from convscope.studies.invariance import invariance as study

    claim(out)
    whole = reading.one_folder(pictures)
    known = None if labels is None else read_labels(labels)
    network = opening.scoring(model)
    with (
        whole as folder,
        progress("moving pictures") as tick,
    ):
        found = study(
            network,
            folder,
            layers=listed(layers),
            border=border,
            beyond=not crop,
            labels=known,
            progress=tick,
        )
        folder.check_bad()
    with new_study(out) as place:
        found.write(place)
        save_table(invariance_table(found, beside=beside), place / "table.md")
        save_figure(invariance_figure(found, normalised=False), place / "figure-raw")
        save_figure(invariance_figure(found), place / "figure")
    tell(out / "figure.pdf")
