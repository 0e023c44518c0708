"""Commands that write pages: atlas, attach (studies into an atlas), mark (parts, boxes), demo."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.options import Model, Opening, Passing, Reading, Sending, expanded
from convscope.cli.predict import Tune, chosen
from convscope.cli.results import claim, new_study, progress, say, tell
from convscope.cli.stop import stop_on_signals
from convscope.cli.train import training_bar
from convscope.core.run import PLAIN, Run

if TYPE_CHECKING:
    from convscope.network.load import Network
    from convscope.network.tuning import Tuning
    from convscope.pages.atlas import LearningNetwork, RealNetwork
    from convscope.pictures.pictures import Picture, Pictures
    from convscope.records.maps import OcclusionExample
    from convscope.records.predictions import Evaluation, Evolution
    from convscope.representations.predict import Judge
    from convscope.training.trainer import TrainResult


Bars = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar under a name."""


@dataclass(frozen=True)
class Pages(Sending):
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
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="Search in bfloat16 where that is faster, candidates again in float32."
        ),
    ] = False
    open_page: Annotated[bool, typer.Option("--open", help="Open the page when done.")] = False


@expanded
def atlas(
    model: Model,
    pictures: Annotated[
        str, typer.Argument(help="Folder of pictures or its URL, or builtin:photos.")
    ],
    options: Pages,
    opening: Opening,
    reading: Reading,
    passing: Passing,
) -> None:
    """The strongest pictures of every feature map beside their projections, as a static page.

    Example: convscope atlas torchvision:squeezenet1_0 pictures --out atlas
    """
    from convscope.pages.atlas import read_study

    claim(options.out)
    studies = [read_study(each) for each in options.study or ()]
    network = opening.network(model)
    over = passing.over(options.out)
    with reading.open(pictures) as folder, new_study(options.out, instead=over) as place:
        mining = {
            "layers": options.layers.split(",") if options.layers else None,
            "k": options.top,
            "rule": options.rule,
            "other": options.other,
            "tuning": chosen(network, options.tune),
            "precision": "fast" if options.fast else "float32",
            "run": passing.run(options.out),
        }
        title = options.title
        make_atlas(network, folder, place, progress, mining, title=title, studies=studies)
    tell(page := options.out / "index.html")
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
    from convscope.representations.fast import told as told_of_search
    from convscope.studies.features.study import features

    table = layer_table(network.model, network.preprocess.shape)
    judge = None if judged is not None else _judge(network, folder, mining.get("tuning"))
    with bars("strongest pictures") as tick:
        asked = {**mining, "run": mining.get("run", PLAIN).telling(tick), "also": judge}
        result, pictures, projected = features(network, folder, **asked)
    if told := told_of_search(result.origin):
        say(told)
    if judge is not None and judge.why:
        say(f"accuracy left out: {judge.why}")
        network = replace(network, notes=(*network.notes, f"no accuracy: {judge.why}"))
    elif judge is not None:
        judged = judge.evaluation()
    card = model_card(network, table, *((judged.top1, judged.top5) if judged is not None else ()))
    total = len(mining.get("layers") or ()) or sum(kind == "Conv2d" for kind in table.kind)
    with bars("projections and pages") as tick:
        layers = _counted(projected, total, tick)
        title = title or _title(network, folder)
        return write_atlas(out, card, table, pictures, layers, title=title, **more)


def _judge(network: Network, folder: Pictures, tuning: Tuning | None) -> Judge | None:
    """Who tells the accuracy, where the folder's classes are the network's, one a picture."""
    from convscope.core.errors import ModelError
    from convscope.representations.predict import Judge

    if not folder.classes or not set(folder.classes) <= set(network.classes):
        return None
    try:
        return Judge(network, folder, tuning=tuning)
    except ModelError:  # independent labels, or no scores of classes: no accuracy
        return None


def _title(network: Network, folder: Pictures) -> str:
    """Such as SqueezeNet 1.0 (torchvision), 702 pictures of imagenet-samples."""
    from convscope.pages.describe import readable

    name = folder.title
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


EPOCHS = (0, 1, 2, 3, 5, 8)
"""At which features are recorded."""
WATCHED = 240
"""Pictures in which their strongest activations are looked for."""

UNSURE = 0.8
"""Probability of the picture explained: high enough to be right, low enough to be changed."""
TRIED = 8
"""Pictures in which a hidden part may change the small network's answer."""

REAL = "efficientnet-lite0"
PHOTOGRAPHS = ("coffee", "cat", "camera", "motorcycle", "rocket", "astronaut")
"""Of scikit-image, that the real network is asked about."""
WHY, HIDDEN = "coffee", "rocket"
"""The one that is explained, and the one that is hidden part by part …"""
SQUARE, STEP = 80, 16
"""… by a square of this side, in pixels of the 224 that the network sees, at steps of so many."""
MAPS = {
    "blocks.2.1.bn2": (177, 231, 44, 153),
    "blocks.3.0.bn2": (85, 144, 127, 20),
    "blocks.3.2.bn2": (181, 245, 478, 256),
    "blocks.4.2.bn2": (426, 112, 516),
}
"""By layer, chosen by hand for these photographs."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run and the pages.")] = Path("demo"),
    open_page: Annotated[bool, typer.Option("--open", help="Open the page when done.")] = False,
) -> None:
    """A real ImageNet network looks at photographs, a small one learns; one page shows both.

    Example: convscope demo --open
    """
    page = out / "index.html"
    if page.exists():
        say(f"{out} was made before; remove it, or name another folder with --out, for a new one")
    else:
        from convscope.core.publish import claimed

        with claimed(page):
            _make(out)
    tell(page)
    if open_page:
        typer.launch(page.resolve().as_uri())


def _make(out: Path) -> None:
    started = time.monotonic()
    from convscope.pages.atlas import write_demo

    say("First act: a real ImageNet network, offline, looks at photographs.")
    real = _real(out)
    say(f"That took {time.monotonic() - started:.0f} s. Second act: a small network learns.")
    learning = _learning(out)
    write_demo(out, real, learning)
    say(f"done in {(time.monotonic() - started) / 60:.1f} minutes; open this page:")


def _real(out: Path) -> RealNetwork:
    """What a network with published weights sees; what a first try has left is taken again."""
    import shutil

    from convscope.network.load import load
    from convscope.pages.atlas import RealNetwork
    from convscope.pages.explain import write_explanation
    from convscope.pictures.builtin import CAMERA, PHOTOS, photo_file
    from convscope.pictures.pictures import one_picture
    from convscope.representations.predict import predicted
    from convscope.studies.explain.study import explain_picture as explain
    from convscope.studies.features.study import chosen_features

    network = load(REAL)
    files = {photo.name: photo_file(photo) for photo in (*PHOTOS, CAMERA)}
    framing = network.preprocess.framing
    seen = [
        (one_picture(files[name], framing).pixels, predicted(network, files[name]))
        for name in PHOTOGRAPHS
    ]
    for _, answer in seen:
        say(f"  {answer.picture}: {answer.names[0]}, {answer.probability[0]:.0%}")
    example = _hidden(network, one_picture(files[HIDDEN], framing), SQUARE, STEP)
    _first(out, example)
    with progress("explaining") as tick:
        found = explain(network, one_picture(files[WHY]), run=Run(progress=tick))
    why = out / "why"
    shutil.rmtree(why, ignore_errors=True)  # of a demo that did not get to its end
    write_explanation(why, found)
    units = [f"{layer}:{channel}" for layer, maps in MAPS.items() for channel in maps]
    with _scenes() as folder, progress("strongest pictures") as tick:
        features = chosen_features(network, folder, units=units, side=96, run=Run(progress=tick))
    told = (
        "EfficientNet-Lite0 with ImageNet weights by ML Illustrated (Apache License 2.0), "
        "on photographs that scikit-image brings along"
    )
    return RealNetwork(told, seen, found, "why/index.html", example, features)


def _first(out: Path, example: OcclusionExample) -> None:
    """Something to look at while the rest is made."""
    from convscope.core.publish import publish_file
    from convscope.drawing.plots import png
    from convscope.studies.occlusion.figure import occlusion_figure

    publish_file(out / "first-picture.png", png(occlusion_figure(example)))
    say(f"a first picture to look at: {out / 'first-picture.png'}")


def _scenes() -> Pictures:
    """The photographs whole and in halves: large enough for 224 pixels."""
    from convscope.pictures.opening import open_pictures

    folder = open_pictures("builtin:scenes")
    sides: dict[str, set[str]] = {}
    for name in folder.names:
        photo, _, part = name.partition("/")
        sides.setdefault(photo, set()).add(part[:4])
    large = {photo: sorted(found)[-2:] for photo, found in sides.items()}
    return folder.subset(lambda name: name.partition("/")[2][:4] in large[name.partition("/")[0]])


def _learning(out: Path) -> LearningNetwork:
    from convscope.network.load import load
    from convscope.pages.atlas import LearningNetwork
    from convscope.pictures.opening import open_pictures
    from convscope.representations.predict import evaluate

    with (
        open_pictures("builtin:photos") as teaching,
        open_pictures("builtin:photos-val") as judging,
    ):
        result, evolution = _trained(out / "run", teaching, judging)
        network = load(str(result.folder))
        with progress("evaluating") as tick:
            judged = evaluate(network, judging, run=Run(progress=tick))
        told = (
            f"A ZFNet of {sum(p.numel() for p in network.model.parameters()) / 1e6:.1f} million "
            f"weights was shown {len(teaching):,} patches of {len(teaching.classes)} photographs. "
            f"It recognises {judged.top1:.1%} of {len(judging)} patches that it never saw."
        )
        say(told)
        if not (out / "atlas" / "index.html").exists():
            more: dict[str, Any] = {
                "training": result.series,
                "evolution": evolution,
                "occlusion": [_explained(network, judging, judged)],
            }
            make_atlas(network, judging, out / "atlas", progress, {}, judged=judged, **more)
    return LearningNetwork(told, evolution, "atlas/index.html")


def _trained(
    run: Path, teaching: Pictures, judging: Pictures
) -> tuple[TrainResult, Evolution | None]:
    """The network, and how its features formed; a run that was stopped goes on."""
    from convscope.network.preprocess import Preprocess
    from convscope.pictures.framing import Framing
    from convscope.studies.evolution.recorder import EvolutionRecorder
    from convscope.training.recipe import recipe
    from convscope.training.trainer import train

    plan = recipe("demo")
    step = max(1, len(teaching) // WATCHED)
    watched = teaching.subset(range(0, len(teaching), step))
    size = (plan.test_size, plan.test_size)
    ready = Preprocess(Framing(plan.test_resize, size), plan.mean, plan.std, plan.input_range / 255)
    recorder = EvolutionRecorder(watched, ready, epochs=EPOCHS)
    with stop_on_signals() as stop, training_bar() as tell:
        result = train(plan, teaching, judging, run, observers=[recorder], progress=tell, stop=stop)
    return result, recorder.record() if recorder.recorded else None


def _explained(network: Network, folder: Pictures, judged: Evaluation) -> OcclusionExample:
    """A picture that the network is right about but not sure of, and whose answer changes when a
    part is hidden, if there is one among the first tried."""
    wrong = judged.likeliest[:, 0] != judged.labels
    unsure = (wrong + abs(judged.probability[:, 0] - UNSURE)).argsort(kind="stable")
    side = network.preprocess.size[0] * 50 // 224
    best: OcclusionExample | None = None
    for place in unsure[:TRIED].tolist():
        picture = folder.one(int(judged.numbers[place]), network.preprocess.framing)
        example = _hidden(network, picture, side, 3)
        if best is None or (example.occlusion.likeliest != example.occlusion.target).any():
            best = example
        if (best.occlusion.likeliest != best.occlusion.target).any():
            break
    assert best is not None
    return best


def _hidden(network: Network, picture: Picture, side: int, step: int) -> OcclusionExample:
    """The framed picture, hidden part by part."""
    from convscope.attribution.occlusion import occlusion
    from convscope.core.units import Unit
    from convscope.records.maps import OcclusionExample
    from convscope.representations.deconvnet import deconvnet
    from convscope.representations.projections import backward_paths

    image = network.preprocess.tensor(picture.pixels)
    with progress("one picture by occlusion") as tick:
        hidden = occlusion(network.model, image, patch=side, stride=step, run=Run(progress=tick))
    rule = backward_paths(network, image[None], [hidden.layer])[hidden.layer].rules[0]
    unit = Unit(hidden.layer, hidden.channel)
    return OcclusionExample(
        picture=picture.pixels,
        name=picture.name,
        label=-1 if picture.label is None else picture.label,
        classes=network.classes,
        occlusion=hidden,
        projection=deconvnet(network.model, image[None], [unit], rule=rule)[0],
    )
