"""How well do a network's features find classes in pictures that show several?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Beside, Model, Opening, Reading, expanded
from convscope.cli.progress import progress, say, tell
from convscope.cli.results import claim, new_study, save_figure, save_table
from convscope.cli.similar import Cache, Layer, Vector, read_vector
from convscope.records.table import Part, Table
from convscope.run import Run

if TYPE_CHECKING:
    from convscope.studies.transfer.record import ListTransfer

FORM = "FILE.json, FILE.csv, or VOC's ImageSets/Main:PART."


@expanded
def transfer_lists(
    model: Model,
    pictures: Annotated[str, typer.Argument(help="Folder with the pictures of both lists.")],
    teach: Annotated[str, typer.Argument(help=f"Classes of pictures to teach by: {FORM}")],
    judge: Annotated[str, typer.Argument(help="Classes of pictures to judge by, likewise.")],
    opening: Opening,
    reading: Reading,
    layer: Layer = None,
    vector: Vector = "auto",
    cache: Cache = None,
    out: Annotated[Path, typer.Option(help="New folder for record, table and figure.")] = Path(
        "transfer-lists"
    ),
    beside: Beside = False,
) -> None:
    """Average precision of each class, where a picture may show several (table 6, PASCAL VOC).

    Example: convscope transfer-lists run JPEGImages ImageSets/Main:train ImageSets/Main:val
    """
    from convscope.pictures.annotations import read_lists
    from convscope.studies.transfer.figure import lists_figure
    from convscope.studies.transfer.study import transfer_lists as measure

    claim(out)
    way, lists = read_vector(vector), (read_lists(teach), read_lists(judge))
    with reading.open(pictures) as folder:
        network = opening.network(model)
        with progress("features") as tick:
            found = measure(
                network, folder, *lists, layer, vector=way, cache=cache, run=Run(progress=tick)
            )
    say(
        f"{found.pictures[0]:,} pictures to teach, {found.several:,} of them several classes; "
        f"{found.pictures[1]:,} to judge, {found.hard:,} times a class too hard to see"
    )
    with new_study(out) as place:
        found.write(place)
        save_table(_table(found, beside=beside), place / "table.md")
        save_figure(lists_figure(found, beside=beside), place / "figure")
    tell(out / "figure.pdf")


def _table(found: ListTransfer, *, beside: bool) -> list[Part]:
    """A row a class. beside: the paper's numbers too, where the classes are VOC's."""
    from convscope.studies.transfer.record import PAPER_VOC

    known = beside and set(found.classes) == set(PAPER_VOC)
    head = ["class", "taught by", "judged by", "average precision", *["paper"] * known]
    columns = zip(found.classes, found.taught, found.judged, found.precision, strict=True)
    rows = [
        [name, f"{taught:,}", f"{judged:,}", f"{100 * precision:.1f}"]
        + ([f"{PAPER_VOC[name]:.1f}"] if known else [])
        for name, taught, judged, precision in columns
    ]
    rows.append(["mean", "", "", f"{100 * found.mean:.1f}", *["79.0"] * known])
    return [Table.of(head, rows)]
