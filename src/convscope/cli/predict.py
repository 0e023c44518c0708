"""What does a network take pictures for?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.progress import tell
from convscope.cli.study_files import add_file
from convscope.errors import printable

if TYPE_CHECKING:
    from convscope.network.load import Network
    from convscope.pictures.pictures import Folder
    from convscope.records.predictions import Evaluation

Views = Annotated[
    int, typer.Option(help="1: the centre; 10: corners and centre and their mirror images.")
]


@expanded
def predict(
    model: Model,
    pictures: Annotated[list[str], typer.Argument(help="Pictures, and folders of pictures.")],
    opening: Opening,
    reading: Reading,
    top: Annotated[int, typer.Option(min=1, help="Classes to tell.")] = 5,
    views: Views = 1,
    out: Annotated[Path, typer.Option(help="Folder for a figure of each picture.")] = Path(
        "predictions"
    ),
) -> None:
    """The likeliest classes of pictures with their probabilities, and a figure of each.

    Example: convscope predict run photograph.jpg
    """
    from convscope.publish import require_folder

    require_folder(out)
    folders = reading.open_all(pictures)
    network = opening.scoring(model)
    for folder in folders:
        with folder:
            _predict_all(network, folder, out, top, views)


def _predict_all(network: Network, folder: Folder, out: Path, top: int, views: int) -> None:
    from convscope.drawing.maps import prediction_png
    from convscope.methods.predict import predicted as ask

    for picture in folder.read():
        found = ask(network, picture, top=top, views=views)
        tell(*_listed(picture.name, found.names, found.probability.tolist()))
        name = Path(picture.name).with_suffix(".png")
        place = out / (name.name if folder.root == Path() else name)
        tell(add_file(place, prediction_png(picture.pixels, found)))


def save_evaluation(found: Evaluation, place: Path) -> None:
    """Record and confusion matrix, into a folder that is there."""
    from convscope.drawing.plots import confusion, png

    found.write(place)
    (place / "confusion.png").write_bytes(png(confusion(found)))


def _listed(title: str, names: Sequence[str], probability: Sequence[float]) -> list[str]:
    """A picture's classes, one a line, aligned."""
    shown = [printable(name) for name in names]
    wide = max(map(len, shown))
    lines = [f"  {name:<{wide}}  {p:6.1%}" for name, p in zip(shown, probability, strict=True)]
    return [printable(title), *lines]
