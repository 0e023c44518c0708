"""What does a network take pictures for, and how often is it right?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.progress import progress, say
from convscope.errors import UsageError, printable

if TYPE_CHECKING:
    from convscope.records.predictions import Evaluation

Checkpoint = Annotated[Path | None, typer.Option(help="Weights: .safetensors, .pt or .pth.")]
Views = Annotated[
    int, typer.Option(help="1: the centre; 10: corners and centre and their mirror images.")
]
ANY_MODEL = "zfnet, torchvision:NAME, timm:NAME, package.module:factory or a run's folder."


def predict(
    model: Annotated[str, typer.Argument(help=ANY_MODEL)],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures.")],
    checkpoint: Checkpoint = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to tell.")] = 5,
    views: Views = 1,
    out: Annotated[Path, typer.Option(help="Folder for a figure of each picture.")] = Path(
        "predictions"
    ),
) -> None:
    """The likeliest classes of pictures with their probabilities, and a figure of each.

    Example: convscope predict run photograph.jpg
    """
    from convscope.figures.plots import png
    from convscope.figures.prediction import prediction_figure
    from convscope.images.folder import one_picture
    from convscope.methods.predict import predict as ask
    from convscope.models.load import load
    from convscope.publish import publish_file

    network = load(model, checkpoint)
    for note in network.notes:
        say(note)
    for path in pictures:
        picture = one_picture(path)
        found = ask(network, picture, top=top, views=views)
        typer.echo(_listed(str(path), found.names, found.probability.tolist()))
        figure = _free(out / f"{path.stem}.png")
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
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unusable pictures allowed.")
    ] = 0.01,
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
    with open_pictures(pictures) as folder, progress("evaluating") as tick:
        folder.max_bad = max_bad
        known = None if labels is None else _labels(labels)
        found = measure(network, folder, views=views, labels=known, progress=tick)
        folder.check_bad()
        say(folder.summary())
    save_evaluation(found, out)
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


def _free(path: Path) -> Path:
    """The path, or with a number where it is taken: nothing is overwritten."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found


def _labels(path: Path) -> dict[str, int]:
    """Raises UsageError U313 unless the file is JSON with a whole number for each name."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UsageError("U313", str(path), f"is not readable as JSON ({fault})") from fault
    if not isinstance(plain, dict) or any(type(value) is not int for value in plain.values()):
        raise UsageError("U313", str(path), "must hold a class index for each name")
    return plain
