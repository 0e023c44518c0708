"""Which feature maps matter?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.progress import progress, tell
from convscope.cli.study_files import claim, listed, new_study, save_figure, save_table
from convscope.errors import UsageError


@expanded
def silence(
    model: Model,
    pictures: Annotated[str, typer.Argument(help="Pictures, with their classes as folders.")],
    opening: Opening,
    reading: Reading,
    layers: Annotated[
        str | None, typer.Option(help="Layers, with commas; else the last convolution's.")
    ] = None,
    fill: Annotated[
        str, typer.Option(help="What a silent map is set to: zero, or its mean.")
    ] = "zero",
    labels: Annotated[
        Path | None, typer.Option(help="JSON: class index by file name, or by class folder.")
    ] = None,
    first: Annotated[int, typer.Option(min=1, help="Maps of each layer in the table.")] = 10,
    out: Annotated[Path, typer.Option(help="New folder for record, figure and table.")] = Path(
        "silence"
    ),
) -> None:
    """Accuracy and loss without each map of a layer, one by one, and without training.

    Example: convscope silence run builtin:photos-val --layers relu4,relu5
    """
    from convscope.figures.silence import silence_figure
    from convscope.figures.silence_table import silence_table
    from convscope.methods.silence import silence as measure
    from convscope.pictures.annotations import read_labels

    claim(out)
    if fill not in ("zero", "mean"):
        raise UsageError("U404", f"--fill {fill}", "is neither zero nor mean")
    known = None if labels is None else read_labels(labels)
    network = opening.scoring(model)
    with reading.open(pictures) as folder, progress("silencing maps") as tick:
        found = measure(
            network,
            folder,
            listed(layers),
            fill="mean" if fill == "mean" else "zero",
            labels=known,
            progress=tick,
        )
        folder.check_bad()
    with new_study(out) as place:
        found.write(place)
        save_table(silence_table(found, first), place / "table.md")
        save_figure(silence_figure(found), place / "figure")
    tell(out / "figure.pdf")
