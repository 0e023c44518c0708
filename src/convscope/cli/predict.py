"""What does a network take pictures for, and how often is it right?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.progress import progress, say
from convscope.cli.skipped import MaxBad, beside, free, listing_skipped, tell_skipped
from convscope.cli.tune import Tune, chosen
from convscope.errors import UsageError, printable

if TYPE_CHECKING:
    from convscope.images.folder import Folder
    from convscope.models.load import Network
    from convscope.records.predictions import Evaluation

Checkpoint = Annotated[Path | None, typer.Option(help="Weights: .safetensors, .pt or .pth.")]
Views = Annotated[
    int, typer.Option(help="1: the centre; 10: corners and centre and their mirror images.")
]
ANY_MODEL = "zfnet, torchvision:NAME, timm:NAME, package.module:factory or a run's folder."


def predict(
    model: Annotated[str, typer.Argument(help=ANY_MODEL)],
    pictures: Annotated[list[str], typer.Argument(help="Pictures, and folders of pictures.")],
    checkpoint: Checkpoint = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to tell.")] = 5,
    views: Views = 1,
    out: Annotated[Path, typer.Option(help="Folder for a figure of each picture.")] = Path(
        "predictions"
    ),
    max_bad: MaxBad = 0.01,
) -> None:
    """The likeliest classes of pictures with their probabilities, and a figure of each.

    Example: convscope predict run photograph.jpg
    """
    from convscope.images.builtin import open_all
    from convscope.models.load import load
    from convscope.publish import require_folder

    require_folder(out)
    folders = open_all(pictures)
    network = load(model, checkpoint)
    for note in network.notes:
        say(note)
    for folder in folders:
        folder.max_bad = max_bad
        with folder:
            _predict_all(network, folder, out, top, views)
    with listing_skipped(folders, out / "skipped.csv"):
        for folder in folders:
            folder.check_bad()
    tell_skipped(folders, out / "skipped.csv")


def _predict_all(network: Network, folder: Folder, out: Path, top: int, views: int) -> None:
    from convscope.figures.plots import png
    from convscope.figures.prediction import prediction_figure
    from convscope.methods.predict import predict as ask
    from convscope.publish import publish_file

    for picture in folder.read():
        found = ask(network, picture, top=top, views=views)
        typer.echo(_listed(picture.name, found.names, found.probability.tolist()))
        name = Path(picture.name).with_suffix(".png")
        figure = free(out / (name.name if folder.root == Path() else name))
        publish_file(figure, png(prediction_figure(picture.pixels, found)))
        typer.echo(figure)


def evaluate(
    model: Annotated[str, typer.Argument(help=ANY_MODEL)],
    pictures: Annotated[str, typer.Argument(help="Pictures, with their classes as folders.")],
    checkpoint: Checkpoint = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="JSON: class index by file name, or by class folder."),
    ] = None,
    views: Views = 1,
    out: Annotated[Path, typer.Option(help="New folder for the record.")] = Path("evaluation"),
    max_bad: MaxBad = 0.01,
    tune: Tune = False,
) -> None:
    """Top-1 and top-5 on pictures with known classes, and which class is taken for which.

    Example: convscope evaluate run builtin:photos-val --views 10
    """
    from convscope.images.builtin import open_pictures
    from convscope.methods.predict import evaluate as measure
    from convscope.models.load import load
    from convscope.publish import require_free

    require_free(out)
    network = load(model, checkpoint)
    for note in network.notes:
        say(note)
    known = None if labels is None else _labels(labels)
    tuning = chosen(network, tune)
    with open_pictures(pictures) as folder:
        folder.max_bad = max_bad
        with listing_skipped([folder], beside(out)), progress("evaluating") as tick:
            found = measure(
                network, folder, views=views, labels=known, tuning=tuning, progress=tick
            )
            folder.check_bad()
    save_evaluation(found, out)
    tell_skipped([folder], out / "skipped.csv")
    typer.echo(_told(found))
    typer.echo(out)


def save_evaluation(found: Evaluation, out: Path) -> None:
    from convscope.figures.plots import confusion, png
    from convscope.publish import publish_file

    found.save(out)
    publish_file(out / "confusion.png", png(confusion(found)))


def _told(found: Evaluation) -> str:
    many = len(found.labels)
    top = min(5, found.likeliest.shape[1])
    right = round(found.top1 * many)
    near = round(found.top5 * many)
    return (
        f"top-1  {found.top1:7.2%}  {right:,} of {many:,} pictures\n"
        f"top-{top}  {found.top5:7.2%}  {near:,} of {many:,} pictures"
    )


def _listed(title: str, names: Sequence[str], probability: Sequence[float]) -> str:
    """A picture's classes, one a line, aligned."""
    shown = [printable(name) for name in names]
    wide = max(map(len, shown))
    lines = [f"  {name:<{wide}}  {p:6.1%}" for name, p in zip(shown, probability, strict=True)]
    return "\n".join([printable(title), *lines])


def _labels(path: Path) -> dict[str, int]:
    """Raises UsageError U313 unless the file is JSON with a whole number for each name."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UsageError("U313", str(path), f"is not readable as JSON ({fault})") from fault
    if not isinstance(plain, dict) or any(type(value) is not int for value in plain.values()):
        raise UsageError("U313", str(path), "must hold a class index for each name")
    return plain
