"""Which pictures does a layer hold for alike, and which pictures occur twice?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.progress import progress, tell
from convscope.cli.results import claim, new_study, save_figure
from convscope.errors import printable
from convscope.run import Run

if TYPE_CHECKING:
    from convscope.pictures.pictures import Pictures
    from convscope.studies.retrieval.record import Duplicates, Neighbours

Layer = Annotated[
    str | None,
    typer.Option(help="Module, or pixels; default: the last step before the scores."),
]
Vector = Annotated[
    str, typer.Option(help="How maps become a vector: auto, flat, or the side of a grid of means.")
]
Cache = Annotated[
    Path | None, typer.Option(help="Folder that keeps features, so that none is computed twice.")
]
DRAWN = 10
"""Queries in a figure."""
LISTED = 20
"""Pairs on the terminal and in the figure."""


@expanded
def similar(
    model: Model,
    queries: Annotated[str, typer.Argument(help="A picture, or a folder of them.")],
    opening: Opening,
    reading: Reading,
    inside: Annotated[
        str | None, typer.Option("--in", help="Folder to look in; default: the queries' own.")
    ] = None,
    layer: Layer = None,
    k: Annotated[int, typer.Option("-k", help="Nearest pictures of each query.")] = 6,
    metric: Annotated[str, typer.Option(help="euclidean or cosine.")] = "euclidean",
    twice: Annotated[
        bool,
        typer.Option("--duplicates", help="Instead, find pictures that are in both folders."),
    ] = False,
    pixels_from: Annotated[
        float, typer.Option(help="Correlation of pixels from which a pair is flagged.")
    ] = 0.95,
    features_from: Annotated[
        float, typer.Option(help="Cosine of features from which a pair is flagged.")
    ] = 0.85,
    vector: Vector = "auto",
    cache: Cache = None,
    out: Annotated[Path, typer.Option(help="New folder for record and figure.")] = Path("similar"),
) -> None:
    """The nearest pictures by the features of a layer; or what two folders have in common.

    Example: convscope similar run photograph.jpg --in flower_photos
    """
    from convscope.studies.retrieval.study import duplicates, require_search
    from convscope.studies.retrieval.study import similar as look

    claim(out)
    require_search(k, metric)
    way = read_vector(vector)
    asked = reading.open_all([queries])[0]
    base = None if inside is None else reading.open(inside)
    network = opening.network(model)
    with asked, base or asked, progress("looking") as tick:
        if twice:
            limits = {"pixels_from": pixels_from, "features_from": features_from}
            pairs = duplicates(
                network,
                asked,
                base,
                layer,
                **limits,
                vector=way,
                cache=cache,
                run=Run(progress=tick),
            )
            _tell_duplicates(pairs, asked, base or asked, out)
            return
        found = look(
            network,
            asked,
            base,
            layer,
            k=k,
            metric="cosine" if metric == "cosine" else "euclidean",
            vector=way,
            cache=cache,
            run=Run(progress=tick),
        )
        _tell_neighbours(found, asked, base or asked, out)


def read_vector(text: str) -> str | int:
    """auto, flat, or a whole number. Raises UsageError U425."""
    from convscope.features.embedding import require_way

    way = int(text) if text.isascii() and text.isdecimal() else text
    require_way(way)
    return way


def _tell_neighbours(found: Neighbours, asked: Pictures, base: Pictures, out: Path) -> None:
    import numpy as np

    from convscope.studies.retrieval.figure import neighbour_figure
    from convscope.studies.retrieval.study import thumbnails

    many = len(found.queries)
    rows = np.unique(np.linspace(0, many - 1, min(DRAWN, many)).round().astype(int)).tolist()
    near = found.nearest[rows]
    ours = thumbnails(asked, found.query_number[rows].tolist())
    theirs = thumbnails(base, found.number[near[near >= 0]].tolist())
    with new_study(out) as place:
        found.write(place)
        save_figure(neighbour_figure(found, rows, ours, theirs), place / "figure")
    for row in rows if many > 1 else [0]:
        tell(printable(found.queries[row]))
        for index, distance in zip(found.nearest[row], found.distance[row], strict=True):
            if index >= 0:
                tell(f"  {distance:9.4g}  {printable(found.names[index])}")
    if found.classed:
        shares = " ".join(f"{share:.1%}" for share in found.same_class)
        tell(f"of the query's class, by place: {shares}; at random: {found.chance:.1%}")
    tell(out / "figure.pdf")


def _tell_duplicates(found: Duplicates, asked: Pictures, base: Pictures, out: Path) -> None:
    from convscope.studies.retrieval.figure import duplicate_figure
    from convscope.studies.retrieval.study import thumbnails

    rows = list(range(min(LISTED, len(found.first))))
    with new_study(out) as place:
        found.write(place)
        if rows:
            ours = thumbnails(asked, found.first_number[rows].tolist())
            theirs = thumbnails(base, found.second_number[rows].tolist())
            save_figure(duplicate_figure(found, rows, ours, theirs), place / "figure")
    for row in rows:
        tell(
            f"{found.kind[row]:<8}  {found.correlation[row]:.3f}  {found.cosine[row]:.3f}  "
            f"{printable(found.first[row])}  {printable(found.second[row])}"
        )
    if len(found.first) > len(rows):
        tell(f"… and {len(found.first) - len(rows):,} more pairs in the record")
    tell(told_duplicates(found))
    tell(out)


def told_duplicates(found: Duplicates) -> str:
    """One line."""
    counts = {kind: found.kind.count(kind) for kind in ("bytes", "pixels", "features")}
    return (
        f"{found.pictures:,} of {found.seen[0]:,} pictures occur twice or nearly: "
        f"{counts['bytes']:,} pairs of equal files, {counts['pixels']:,} with a correlation of "
        f"pixels from {found.pixels_from:g}, {counts['features']:,} more with a cosine of "
        f"{found.layer} from {found.features_from:g}"
    )
