"""Does a network relate the same parts of different pictures to each other?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.options import Beside, Model, Opening, Reading, expanded
from convscope.cli.progress import progress, tell
from convscope.cli.study_files import claim, listed, new_study, save_figure, save_table


@expanded
def correspondence(
    model: Model,
    pictures: Annotated[str, typer.Argument(help="Folder of the pictures with marked parts.")],
    parts: Annotated[
        Path, typer.Option(help='JSON: {"images": {name: {part: [x, y]}}}, in pixels.')
    ],
    opening: Opening,
    reading: Reading,
    layers: Annotated[
        str | None,
        typer.Option(help="Names with commas; default: the last convolution's, and the last."),
    ] = None,
    patch: Annotated[
        int | None, typer.Option(min=1, help="Side of the masks; default: a seventh of the input.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Random masks for each picture.")] = 20,
    around: Annotated[
        float,
        typer.Option(min=0, help="Random masks: how far around the parts, in their box; or inf."),
    ] = 0.5,
    permutations: Annotated[int, typer.Option(min=1, help="Of the test.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of random masks and permutations.")] = 0,
    out: Annotated[Path, typer.Option(help="New folder for record, figure and table.")] = Path(
        "correspondence"
    ),
    beside: Beside = False,
) -> None:
    """Sign changes when the same part is hidden in each picture, against random places (table 1).

    Example: convscope correspondence torchvision:squeezenet1_0 dogs --parts dog_parts.json
    """
    from convscope.figures.correspondence import correspondence_figure, correspondence_table
    from convscope.studies.correspondence import correspondence as study

    claim(out)
    network = opening.network(model)
    with reading.open(pictures) as folder, progress("hiding parts") as tick:
        found = study(
            network,
            folder,
            parts,
            layers=listed(layers),
            patch=patch,
            draws=draws,
            around=around,
            permutations=permutations,
            seed=seed,
            progress=tick,
        )
    with new_study(out) as place:
        found.write(place)
        save_table(correspondence_table(found, beside=beside), place / "table.md")
        save_figure(correspondence_figure(found, beside=beside), place / "figure")
    tell(out / "figure.pdf")
