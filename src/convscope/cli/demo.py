"""What does convscope do? Shown on built-in photographs, in a few minutes, without a network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.atlas import make_atlas
from convscope.cli.progress import progress, say, tell
from convscope.cli.stop import stop_on_signals
from convscope.cli.training_bar import training_bar

if TYPE_CHECKING:
    from convscope.images.folder import Folder
    from convscope.models.load import Network
    from convscope.records.maps import OcclusionExample
    from convscope.records.predictions import Evaluation
    from convscope.records.series import Evolution
    from convscope.training.train import TrainResult

EPOCHS = (0, 1, 2, 3, 5, 8)
"""At which features are recorded."""
WATCHED = 240
"""Pictures in which their strongest activations are looked for."""

UNSURE = 0.8
"""Probability of the picture explained: high enough to be right, low enough to be changed."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run and the pages.")] = Path("demo"),
    open_page: Annotated[bool, typer.Option("--open", help="Open the page when done.")] = False,
) -> None:
    """Train a small network on built-in photographs, look inside every layer, make the page.

    Example: convscope demo --open
    """
    page = out / "atlas" / "index.html"
    if page.exists():
        say(f"{out} was made before; remove it, or name another folder with --out, for a new one")
    else:
        _make(out)
    tell(page)
    if open_page:
        typer.launch(page.resolve().as_uri())


def _make(out: Path) -> None:
    started = time.monotonic()
    say(
        "A small ZFNet learns to tell 14 photographs apart, patch by patch; then we look inside it."
    )
    from convscope.images.builtin import open_pictures
    from convscope.methods.predict import evaluate
    from convscope.models.load import load

    with (
        open_pictures("builtin:photos") as teaching,
        open_pictures("builtin:photos-val") as judging,
    ):
        result, evolution = _trained(out / "run", teaching, judging)
        network = load(str(result.folder))
        with progress("evaluating") as tick:
            judged = evaluate(network, judging, progress=tick)
        say(f"{100 * judged.top1:.1f} % of the patches it never saw are recognised")
        example = _explained(network, judging, judged)
        make_atlas(
            network,
            judging,
            out / "atlas",
            bars=progress,
            judged=judged,
            training=result.series,
            evolution=evolution,
            occlusion=[example],
        )
    say(f"done in {(time.monotonic() - started) / 60:.1f} minutes; open this page:")


def _trained(run: Path, teaching: Folder, judging: Folder) -> tuple[TrainResult, Evolution | None]:
    """The network, and how its features formed; a run that was stopped goes on."""
    from convscope.images.framing import Framing
    from convscope.models.preprocess import Preprocess
    from convscope.studies.evolution import EvolutionRecorder
    from convscope.training.recipe_text import recipe
    from convscope.training.train import train

    plan = recipe("demo")
    step = max(1, len(teaching) // WATCHED)
    watched = teaching.subset(range(0, len(teaching), step))
    size = (plan.test_size, plan.test_size)
    ready = Preprocess(Framing(plan.test_resize, size), plan.mean, plan.std, plan.input_range / 255)
    recorder = EvolutionRecorder(watched, ready, epochs=EPOCHS)
    with stop_on_signals() as stop, training_bar() as tell:
        result = train(plan, teaching, judging, run, observers=[recorder], progress=tell, stop=stop)
    return result, recorder.record() if recorder.recorded else None


def _explained(network: Network, folder: Folder, judged: Evaluation) -> OcclusionExample:
    """A picture that the network is right about but not sure of, hidden part by part."""
    from convscope.methods.deconvnet import deconvnet
    from convscope.methods.occlusion import occlusion
    from convscope.records.maps import OcclusionExample
    from convscope.units import Unit

    wrong = judged.likeliest[:, 0] != judged.labels
    chosen = int((wrong + abs(judged.probability[:, 0] - UNSURE)).argmin())
    picture = folder.one(int(judged.numbers[chosen]), network.preprocess.framing)
    image = network.preprocess.tensor(picture.pixels)
    side = network.preprocess.size[0] * 50 // 224
    with progress("one picture by occlusion") as tick:
        hidden = occlusion(network.model, image, patch=side, stride=3, progress=tick)
    unit = Unit(hidden.layer, hidden.channel)
    return OcclusionExample(
        picture=picture.pixels,
        name=picture.name,
        label=-1 if picture.label is None else picture.label,
        classes=network.classes,
        occlusion=hidden,
        projection=deconvnet(network.model, image[None], [unit])[0],
    )
