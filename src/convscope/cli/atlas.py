"""Commands that write pages: atlas, attach (studies into an atlas) and mark (parts and boxes)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.options import Model, Opening, Reading, Sending, expanded
from convscope.cli.predict import Tune, chosen
from convscope.cli.results import claim, new_study, progress, say, tell
from convscope.core.run import Run

if TYPE_CHECKING:
    from convscope.network.load import Network
    from convscope.network.tuning import Tuning
    from convscope.pictures.pictures import Picture, Pictures
    from convscope.records.predictions import Evaluation
    from convscope.representations.predict import Judge


Bars = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar under a name."""


@dataclass(frozen=True)
class Pages:
    """What an atlas shows."""

    out: Annotated[Path, typer.Option(help="New folder for the pages.")] = Path("atlas")
    layers: Annotated[
        str | None, typer.Option(help="Names with commas; default: all convolutions.")
    ] = None
    top: Annotated[int, typer.Option(min=1, max=100, help="Pictures for each feature map.")] = 9
    study: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that a study wrote, to be shown too; may be given again."),
    ] = None
    title: Annotated[
        str, typer.Option(help="Of the pages; default: the network's name and the pictures'.")
    ] = ""
    tune: Tune = False
    open_page: Annotated[bool, typer.Option("--open", help="Open the page when done.")] = False


@expanded
def atlas(
    model: Model,
    pictures: Annotated[
        str, typer.Argument(help="Folder of pictures, builtin:photos or builtin:photos-val.")
    ],
    options: Pages,
    opening: Opening,
    reading: Reading,
    sending: Sending,
) -> None:
    """The strongest pictures of every feature map beside their projections, as a static page.

    Example: convscope atlas torchvision:squeezenet1_0 pictures --out atlas
    """
    from convscope.pages.atlas import read_study

    claim(options.out)
    studies = [read_study(each) for each in options.study or ()]
    network = opening.network(model)
    with reading.open(pictures) as folder, new_study(options.out) as place:
        mining = {
            "layers": options.layers.split(",") if options.layers else None,
            "k": options.top,
            "rule": sending.rule,
            "other": sending.other,
            "tuning": chosen(network, options.tune),
        }
        title = options.title
        make_atlas(network, folder, place, progress, mining, title=title, studies=studies)
    page = options.out / "index.html"
    tell(page)
    if options.open_page:
        typer.launch(page.resolve().as_uri())


def make_atlas(
    network: Network,
    folder: Pictures,
    out: Path,
    bars: Bars,
    mining: Mapping[str, Any],
    *,
    judged: Evaluation | None = None,
    title: str = "",
    **more: Any,
) -> Path:
    """Mine, project and write the pages; return the path of index.html.

    mining: options of `features`. judged: the network's accuracy on the folder, for the model card;
    measured here where the folder's classes are the network's. more: `training`, `evolution` and
    `occlusion` records, and `studies`.
    """
    from convscope.network.layers import layer_table, model_card
    from convscope.pages.atlas import write_atlas
    from convscope.studies.features.study import features

    table = layer_table(network.model, network.preprocess.shape)
    judge = None if judged is not None else _judge(network, folder, mining.get("tuning"))
    with bars("strongest pictures") as tick:
        run = Run(progress=tick)
        _, pictures, projected = features(network, folder, **mining, also=judge, run=run)
    if judge is not None:
        judged, network = judge.told(network)
    accuracy = (judged.top1, judged.top5) if judged is not None else ()
    card = model_card(network, table, *accuracy)
    total = len(mining.get("layers") or ()) or sum(kind == "Conv2d" for kind in table.kind)
    with bars("projections and pages") as tick:
        layers = _counted(projected, total, tick)
        title = title or _title(network, folder)
        return write_atlas(out, card, table, pictures, layers, title=title, **more)


class _Spared:
    """A judge whose failing costs the atlas nothing but the accuracy, and is noted."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._why = ""

    def __call__(self, pictures: Sequence[Picture]) -> None:
        from convscope.core.errors import ModelError

        if not self._why:
            try:
                self._judge(pictures)
            except ModelError as fault:
                self._why = fault.what

    def told(self, network: Network) -> tuple[Evaluation | None, Network]:
        """The accuracy, and the network with a note where there is none."""
        if not self._why:
            return self._judge.evaluation(), network
        say(f"accuracy left out: {self._why}")
        return None, replace(network, notes=(*network.notes, f"no accuracy: {self._why}"))


def _judge(network: Network, folder: Pictures, tuning: Tuning | None) -> _Spared | None:
    """Who tells the accuracy, where the folder's classes are the network's, one a picture."""
    from convscope.core.errors import ModelError
    from convscope.representations.predict import Judge

    if not folder.classes or not set(folder.classes) <= set(network.classes):
        return None
    try:
        return _Spared(Judge(network, folder, tuning=tuning))
    except ModelError:  # independent labels, or no scores of classes: no accuracy
        return None


def _title(network: Network, folder: Pictures) -> str:
    """Such as SqueezeNet 1.0 (torchvision), 702 pictures of imagenet-samples."""
    from convscope.pages.describe import readable

    name = folder.root.resolve().name
    many = f"{len(folder):,} picture{'' if len(folder) == 1 else 's'}"
    return f"{readable(network.spec)}, {many}" + (f" of {name}" if name else "")


def _counted(items: Iterator[Any], total: int, tick: Callable[[int, int], None]) -> Iterator[Any]:
    for done, item in enumerate(items, start=1):
        yield item
        tick(done, total)


def attach(
    atlas: Annotated[Path, typer.Argument(help="Folder that convscope atlas wrote.")],
    studies: Annotated[
        list[Path], typer.Argument(help="Folders that studies wrote: filters, invariance, …")
    ],
) -> None:
    """Show studies in an atlas: their figures and numbers become pages of it.

    Example: convscope attach atlas filters invariance
    """
    from convscope.pages.atlas import add_studies, read_study

    tell(add_studies(atlas, [read_study(study) for study in studies]))


@dataclass(frozen=True)
class Marking:
    """What is marked."""

    parts: Annotated[
        str, typer.Option(help='Names with commas: "left_eye,right_eye,nose"; none: boxes alone.')
    ] = ""
    start: Annotated[
        Path | None, typer.Option(help="A parts.json to go on from or to correct.")
    ] = None
    boxes: Annotated[
        Path | None, typer.Option(help="A boxes.json to go on from or to correct.")
    ] = None
    out: Annotated[Path, typer.Option(help="New folder for the page.")] = Path("marking")
    open_page: Annotated[bool, typer.Option("--open", help="Open the page when done.")] = False


@expanded
def mark(
    pictures: Annotated[str, typer.Argument(help="A folder of pictures.")],
    options: Marking,
    reading: Reading,
) -> None:
    """A page on which parts are marked by clicking and boxes by dragging.

    It saves the parts.json that `convscope correspondence` reads, and the boxes.json of
    `convscope occlusion`, `explain` and `pointing`.

    Example: convscope mark dogs --parts left_eye,right_eye,nose --open
    """
    from convscope.pages.mark import write_marking
    from convscope.pictures.annotations import read_boxes, read_parts

    claim(options.out)
    names = [name.strip() for name in options.parts.split(",")] if options.parts else []
    marked = None if options.start is None else read_parts(options.start)
    boxed = None if options.boxes is None else read_boxes(options.boxes)
    with (
        reading.open(pictures) as folder,
        progress("pictures") as tick,
        new_study(options.out) as place,
    ):
        write_marking(place, folder, names, marked=marked, boxes=boxed, run=Run(progress=tick))
    page = options.out / "index.html"
    tell(page)
    if options.open_page:
        typer.launch(page.resolve().as_uri())
