"""How did a network's features form, seen from the checkpoints of its training?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Beside, Reading, Ready, expanded
from convscope.cli.progress import progress, say, tell
from convscope.cli.results import claim, epochs_listed, listed, new_study, save_figure, save_table
from convscope.errors import UsageError
from convscope.run import Run

if TYPE_CHECKING:
    from convscope.network.network import Network
    from convscope.records.series import Convergence, Evolution


@expanded
def evolution(
    checkpoints: Annotated[
        Path, typer.Argument(help="Folder of checkpoints, or of a run trained with --keep.")
    ],
    pictures: Annotated[str, typer.Argument(help="Pictures to find strongest activations in.")],
    ready: Ready,
    reading: Reading,
    model: Annotated[
        str | None,
        typer.Option(help="Network that they are weights of, where they do not say so."),
    ] = None,
    epochs: Annotated[
        str | None, typer.Option(help="E.g. 1,2,5,10; default: the paper's that are there.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Names with commas; default: all convolutions.")
    ] = None,
    units: Annotated[
        str | None, typer.Option(help="Maps to draw, as conv1:3,conv5:41; default: random ones.")
    ] = None,
    per_layer: Annotated[int, typer.Option(min=1, help="Random maps of each layer.")] = 6,
    every: Annotated[int, typer.Option(min=1, help="Take only every so many-th picture.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the random maps and places.")] = 0,
    out: Annotated[Path, typer.Option(help="New folder for records, figures and table.")] = Path(
        "evolution"
    ),
    beside: Beside = False,
) -> None:
    """Feature maps over the epochs of a training, and in which order layers settle (figure 4).

    Example: convscope evolution run flower_photos
    """
    from convscope.studies.evolution.checkpoints import evolution as study

    claim(out)
    wanted = epochs_listed(epochs)
    network = _told(model, ready)
    with reading.open(pictures) as whole:
        folder = whole.subset(range(0, len(whole), every))
        with progress("looking at epochs") as tick:
            found = study(
                checkpoints,
                folder,
                network,
                epochs=wanted,
                layers=listed(layers),
                units=listed(units) or (),
                per_layer=per_layer,
                run=Run(seed=seed, progress=tick),
            )
    _save(*found, out, beside)


def _told(model: str | None, ready: Ready) -> Network | None:
    from convscope.network.load import load

    if model is None:
        if ready != Ready():
            what = "say something of a network that is not named"
            raise UsageError("U233", "options", what, next_step="name it with --model")
        return None
    network = load(model, **ready.told())
    for note in network.notes:
        if not note.startswith("the weights are random"):
            say(note)
    return network


def _save(features: Evolution, layers: Convergence, out: Path, beside: bool) -> None:
    from convscope.studies.evolution.figure import (
        convergence_figure,
        convergence_table,
        evolution_figure,
    )

    with new_study(out) as place:
        features.save(place / "features")
        layers.save(place / "convergence")
        save_figure(evolution_figure(features, patches=True), place / "patches")
        save_figure(convergence_figure(layers), place / "layers")
        save_table(convergence_table(layers, beside=beside), place / "table.md")
        save_figure(evolution_figure(features), place / "figure")
    tell(out / "figure.pdf")
