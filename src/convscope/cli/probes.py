"""What does each layer of a network know?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.progress import phases, say, tell
from convscope.cli.results import claim, new_study, save_figure, save_table
from convscope.cli.similar import Cache, Vector, read_vector
from convscope.errors import printable
from convscope.records.table import Part, Table
from convscope.run import Run

if TYPE_CHECKING:
    import numpy as np

    from convscope.studies.transfer.record import Probes

Test = Annotated[int, typer.Option(help="Most test pictures of each class.")]
Folds = Annotated[int, typer.Option(help="Random divisions into training and test pictures.")]
Seed = Annotated[int, typer.Option(help="Of the divisions.")]


@expanded
def probes(
    model: Model,
    pictures: Annotated[str, typer.Argument(help="Pictures, with their classes as folders.")],
    opening: Opening,
    reading: Reading,
    layers: Annotated[
        str | None, typer.Option(help="Names with commas; default: the network's own steps.")
    ] = None,
    per_class: Annotated[int, typer.Option(help="Training pictures of each class.")] = 30,
    test: Test = 50,
    folds: Folds = 5,
    kind: Annotated[str, typer.Option(help="svm, softmax, or both with a comma.")] = "svm,softmax",
    vector: Vector = "auto",
    seed: Seed = 0,
    cache: Cache = None,
    out: Annotated[Path, typer.Option(help="New folder for record and figure.")] = Path("probes"),
) -> None:
    """Linear classifiers on the features of every layer: accuracy by depth.

    Example: convscope probes run flower_photos --folds 3
    """
    from convscope.studies.probes.study import probes as measure
    from convscope.studies.transfer.figure import probes_figure

    claim(out)
    way = read_vector(vector)
    folder = reading.open(pictures)
    network = opening.network(model)
    with folder, phases() as bar:
        found = measure(
            network,
            folder,
            None if layers is None else [name.strip() for name in layers.split(",")],
            per_class=per_class,
            test=test,
            folds=folds,
            kinds=[name.strip() for name in kind.split(",") if name.strip()],
            vector=way,
            cache=cache,
            run=Run(seed=seed, progress=bar("features")),
            training=bar("classifiers"),
        )
    tell_short(found.short)
    with new_study(out) as place:
        found.write(place)
        save_table(_table(found), place / "table.md")
        save_figure(probes_figure(found), place / "figure")
    tell(out / "figure.pdf")


def tell_short(names: tuple[str, ...]) -> None:
    if names:
        say(f"too few pictures to test, so left out: {', '.join(names)}")


def percent(values: np.ndarray) -> str:
    """Mean and standard deviation over the folds."""
    return f"{100 * values.mean():.1f} ± {100 * values.std():.1f}"


def _table(found: Probes) -> list[Part]:
    head = ["layer", "numbers", *found.kinds]
    rows = [
        [printable(layer), f"{numbers:,}", *(percent(values) for values in row)]
        for layer, numbers, row in zip(found.layers, found.numbers, found.accuracy, strict=True)
    ]
    return [Table.of(head, rows)]
