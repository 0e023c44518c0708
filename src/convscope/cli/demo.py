"""What does convscope do? Two acts on built-in photographs, in two minutes, offline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.atlas import make_atlas
from convscope.cli.results import progress, say, tell
from convscope.cli.stop import stop_on_signals
from convscope.cli.train import training_bar
from convscope.core.run import Run

if TYPE_CHECKING:
    from convscope.network.load import Network
    from convscope.pages.demo import LearningNetwork, RealNetwork
    from convscope.pictures.pictures import Picture, Pictures
    from convscope.records.maps import OcclusionExample
    from convscope.records.predictions import Evaluation, Evolution
    from convscope.training.trainer import TrainResult

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
    from convscope.pages.demo import write_demo

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
    from convscope.pages.demo import RealNetwork
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
    from convscope.pages.demo import LearningNetwork
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
