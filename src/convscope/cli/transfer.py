"""How well do a network's features serve for other classes?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.probes import Folds, Seed, Test, percent, tell_short
from convscope.cli.progress import phases, say, tell
from convscope.cli.results import claim, new_study, save_figure, save_table
from convscope.cli.similar import Cache, Layer, Vector, read_vector, told_duplicates
from convscope.errors import UsageError, nearest
from convscope.records.table import Part, Table
from convscope.run import Run

if TYPE_CHECKING:
    from convscope.studies.transfer.record import Transfer


@expanded
def transfer(
    model: Model,
    pictures: Annotated[str, typer.Argument(help="Pictures, with their classes as folders.")],
    opening: Opening,
    reading: Reading,
    per_class: Annotated[
        str, typer.Option(help="Training pictures of each class, with commas.")
    ] = "1,2,3,5,7,10,15,30",
    layer: Layer = None,
    test: Test = 50,
    folds: Folds = 5,
    source: Annotated[
        str | None,
        typer.Option(help="Pictures the network learned from: what occurs there is left out."),
    ] = None,
    scratch: Annotated[
        str | None, typer.Option(help="Recipe; also train from scratch on the same pictures.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE of the recipe.")
    ] = None,
    beside: Annotated[
        str, typer.Option(help="The paper's numbers to show: caltech-101 or caltech-256.")
    ] = "",
    vector: Vector = "auto",
    seed: Seed = 0,
    cache: Cache = None,
    out: Annotated[Path, typer.Option(help="New folder for record and figure.")] = Path("transfer"),
) -> None:
    """A new softmax on frozen features, by the number of training pictures a class.

    Example: convscope transfer run caltech101 --per-class 15,30 --beside caltech-101
    """
    from convscope.studies.retrieval.study import duplicates
    from convscope.studies.transfer.figure import transfer_figure
    from convscope.studies.transfer.record import PAPER
    from convscope.studies.transfer.study import transfer as measure
    from convscope.training.recipe import recipe

    claim(out)
    if beside and beside not in PAPER:
        raise UsageError(
            "U432", beside, f"the paper has no such pictures; {nearest(beside, PAPER)}"
        )
    way, counts = read_vector(vector), _counts(per_class)
    plan = None if scratch is None else recipe(scratch, changes or ())
    folder = reading.open(pictures)
    network = opening.network(model)
    with folder, phases() as bar:
        twice = None
        if source is not None:
            twice = duplicates(
                network, folder, source, vector=way, cache=cache, run=Run(progress=bar("looking"))
            )
            say(told_duplicates(twice))
        found = measure(
            network,
            folder,
            layer,
            per_class=counts,
            test=test,
            folds=folds,
            vector=way,
            without=twice,
            scratch=plan,
            runs=None if plan is None else out.with_name(f"{out.name}-runs"),
            cache=cache,
            run=Run(seed=seed, progress=bar("features")),
            training=bar("classifiers"),
        )
    tell_short(found.short)
    with new_study(out) as place:
        found.write(place)
        save_table(_table(found, beside), place / "table.md")
        save_figure(transfer_figure(found, beside=beside), place / "figure")
    tell(out / "figure.pdf")


def _counts(text: str) -> list[int]:
    """Raises UsageError U429."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise UsageError("U429", f"--per-class {text}", "is no list of numbers such as 15,30")
    return [int(word) for word in words]


def _table(found: Transfer, beside: str) -> list[Part]:
    from convscope.studies.transfer.record import PAPER, PAPER_SCRATCH

    columns = {"accuracy": found.accuracy, "mean AP": found.precision}
    if (found.scratch == found.scratch).any():
        columns["from scratch"] = found.scratch
    papers = {"paper": PAPER, "paper, from scratch": PAPER_SCRATCH} if beside else {}
    rows = [
        [
            str(count),
            *(percent(values[row]) for values in columns.values()),
            *(_paper(table[beside], count) for table in papers.values()),
        ]
        for row, count in enumerate(found.per_class)
    ]
    return [Table.of(["pictures a class", *columns, *papers], rows)]


def _paper(table: dict[int, tuple[float, float]], count: int) -> str:
    return f"{table[count][0]:.1f} ± {table[count][1]:.1f}" if count in table else ""
