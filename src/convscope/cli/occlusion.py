"""What do the answers to these pictures rest on, if a square hides each part of them?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.explain import _boxes as read_boxes_of
from convscope.cli.explain import _spread, read_target
from convscope.cli.options import Beside, Model, Opening, Reading, expanded
from convscope.cli.progress import phases, say, tell
from convscope.cli.results import claim, new_study, save_figure, save_table
from convscope.errors import StopAsked, UsageError, nearest, printable
from convscope.run import Run

if TYPE_CHECKING:
    from convscope.pictures.pictures import Pictures
    from convscope.studies.occlusion.record import HiddenObjects, Occlusions
    from convscope.units import Box


GREY = "grey"
LISTED = 24
"""Pictures up to which each has its line in the printed table; of more the means are printed."""


@expanded
def occlusion(
    model: Model,
    pictures: Annotated[list[str], typer.Argument(help="A folder of pictures, or pictures.")],
    opening: Opening,
    reading: Reading,
    target: Annotated[
        str | None,
        typer.Option(help="Class name or index; default: each one's true class, or likeliest."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="JSON: class index by file name, or by class folder."),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="JSON {name: [[xmin, ymin, xmax, ymax], …]}; default: boxes.json of the folder."
        ),
    ] = None,
    others: Annotated[
        str | None,
        typer.Option(
            help="Pictures in which to look for what else excites a map; default: the same."
        ),
    ] = None,
    patch: Annotated[
        int | None, typer.Option(min=1, help="Side of the square; default: 50 of 224 pixels.")
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Its step; default: 6 of 224.")] = None,
    fill: Annotated[
        str, typer.Option(help="Of the square: grey (the preprocessing's), mean, blur or noise.")
    ] = GREY,
    layer: Annotated[
        str | None, typer.Option(help="Whose strongest map is followed; default: layer 5's.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pictures of a folder, spread evenly.")
    ] = None,
    draw: Annotated[int, typer.Option(min=0, help="Pictures in figures, from the first.")] = 24,
    seed: Annotated[int, typer.Option(help="Of noise and of permutations.")] = 0,
    out: Annotated[Path, typer.Option(help="New folder for records, figures and tables.")] = Path(
        "occlusion"
    ),
    beside: Beside = False,
) -> None:
    """Probability, answer and activity with a square at every place; objects hidden (figure 7).

    Example: convscope occlusion torchvision:squeezenet1_0 dog.jpg wheel.jpg
    """
    from convscope.attribution.sliding_mask import NAMED
    from convscope.pictures.annotations import read_labels
    from convscope.studies.occlusion.study import occlusion_study

    claim(out)
    if fill not in (GREY, *NAMED):
        raise UsageError("U531", fill, f"is no fill; {nearest(fill, (GREY, *NAMED))}")
    whole = reading.one_folder(pictures)
    known = None if labels is None else read_labels(labels)
    network = opening.scoring(model)
    kept = out.with_name(f"{out.name}-parts")
    numbers = _spread(len(whole), limit)
    chosen = whole if numbers is None else whole.subset(numbers)
    source = chosen if others is None else reading.open(others)
    with (
        chosen as folder,
        source,
        _kept_in(kept),
        phases() as bar,
    ):
        found = occlusion_study(
            network,
            folder,
            target=read_target(target),
            labels=known,
            boxes=_boxes(folder, boxes),
            others=source,
            layer=layer,
            patch=patch,
            stride=stride,
            fill=0.0 if fill == GREY else fill,  # type: ignore[arg-type]
            kept=kept,
            searching=bar("strongest pictures"),
            run=Run(seed=seed, progress=bar("hiding parts")),
        )
    with new_study(out, instead=[kept]) as place:
        shown = _save(found, place, draw, seed, beside)
    for name in shown:
        tell(out / name)


@contextmanager
def _kept_in(place: Path) -> Iterator[None]:
    """When it is stopped, say where it goes on."""
    try:
        yield
    except StopAsked as stop:
        if place.is_dir():
            stop.kept = f"finished pictures, in {place}"
        raise


def _boxes(folder: Pictures, told: Path | None) -> Mapping[str, Sequence[Box]] | None:
    if told is None and folder.root == Path():  # single pictures
        return None
    found = read_boxes_of(folder, told)
    of_these = found is not None and any(found.get(name) for name in folder.names)
    return found if told is not None or of_these else None


def _save(found: Occlusions, place: Path, draw: int, seed: int, beside: bool) -> list[str]:
    """Write and tell it; the names of the figures."""
    from convscope.studies.occlusion.figure import occlusion_pages
    from convscope.studies.occlusion.table import (
        occlusion_csv,
        occlusion_summary,
        occlusion_table,
        occlusion_words,
    )

    found.write(place)
    (place / "table.csv").write_bytes(occlusion_csv(found))
    if len(found.pictures) <= LISTED:
        save_table(occlusion_table(found, beside=beside), place / "table.md")
    else:
        save_table(occlusion_summary(found), place / "summary.md")
    words = occlusion_words(found)
    if any(found.boxes):
        words += _objects(found, place, seed)
    (place / "words.txt").write_bytes(("\n".join(words) + "\n").encode("utf-8", "backslashreplace"))
    for line in words:
        tell(printable(line))
    pages = occlusion_pages(found, range(min(draw, len(found.pictures))))
    names = ["figure"] if len(pages) == 1 else [f"figure-{n}" for n, _ in enumerate(pages, 1)]
    for page, name in zip(pages, names, strict=True):
        save_figure(page, place / name)
    if len(found.pictures) > draw:
        say(f"drawn: the first {draw} of {len(found.pictures)} pictures; more with --draw")
    return [f"{name}.pdf" for name in names]


def _objects(found: Occlusions, place: Path, seed: int) -> list[str]:
    from convscope.studies.occlusion.figure import hidden_objects_figure, hidden_objects_words
    from convscope.studies.occlusion.hidden_objects import hidden_objects

    compared: HiddenObjects = hidden_objects(found, run=Run(seed=seed))
    compared.save(place / "objects")
    save_figure(hidden_objects_figure(compared), place / "objects-figure")
    return hidden_objects_words(compared)
