"""Commands that ask one network: predict, evaluate, layers and tune."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.options import Model, Opening, Passing, Reading, expanded
from convscope.cli.results import add_file, claim, keep_table, new_study, progress, say, tell
from convscope.core.errors import EnvironmentFault, UsageError, nearest, printable
from convscope.core.run import Run

if TYPE_CHECKING:
    from convscope.network.network import Network
    from convscope.network.tuning import Tuning
    from convscope.pictures.pictures import Pictures
    from convscope.records.features import LayerTable
    from convscope.records.predictions import Evaluation, Share


Views = Annotated[
    int, typer.Option(help="1: the centre; 10: corners and centre and their mirror images.")
]


@dataclass(frozen=True)
class Answering:
    """What is told of each picture."""

    top: Annotated[int, typer.Option(min=1, help="Classes to tell.")] = 5
    views: Views = 1
    out: Annotated[Path, typer.Option(help="Folder for a figure of each picture.")] = Path(
        "predictions"
    )


@expanded
def predict(
    model: Model,
    pictures: Annotated[list[str], typer.Argument(help="Pictures, and folders of pictures.")],
    options: Answering,
    opening: Opening,
    reading: Reading,
) -> None:
    """The likeliest classes of pictures with their probabilities, and a figure of each.

    Example: convscope predict run photograph.jpg
    """
    from convscope.core.publish import require_folder

    require_folder(options.out)
    folders = reading.open_all(pictures)
    network = opening.scoring(model)
    for folder in folders:
        with folder:
            _predict_all(network, folder, options.out, options.top, options.views)


def _predict_all(network: Network, folder: Pictures, out: Path, top: int, views: int) -> None:
    from convscope.drawing.tiles import prediction_png
    from convscope.representations.predict import predicted as ask

    for picture in folder.read():
        found = ask(network, picture, top=top, views=views)
        tell(*_listed(picture.name, found.names, found.probability.tolist()))
        name = Path(picture.name).with_suffix(".png")
        place = out / (name.name if folder.loose else name)
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


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
Tune = Annotated[
    bool, typer.Option("--tune", help="Run the network in the way that is fastest here.")
]


@expanded
def tune(
    model: Model,
    opening: Opening,
    memory: Annotated[
        str | None, typer.Option(help="Most that the network may take up, as 2GB or 500MB.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Half precision may be chosen: other numbers.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again, whatever is remembered.")
    ] = False,
) -> None:
    """Measure how the network runs fastest here: batch, memory format, threads, decoders.

    It takes some seconds, once; `atlas --tune` and `evaluate --tune` then use it.

    Example: convscope tune torchvision:squeezenet1_0 --memory 2GB
    """
    allowed = None if memory is None else as_bytes(memory)
    for line in tuned(opening.network(model), memory=allowed, half=half, fresh=fresh).lines():
        tell(line)


def tuned(
    network: Network, *, memory: int | None = None, half: bool = False, fresh: bool = False
) -> Tuning:
    """What is remembered, or else measured under a progress bar."""
    from convscope.network.tuning import tune as measure

    with progress("measuring") as tick:
        return measure(network, half=half, fresh=fresh, run=Run(memory=memory, progress=tick))


def chosen(network: Network, wanted: bool) -> Tuning | None:
    """For a command's `--tune`: the tuning, told in a line, or None."""
    if not wanted:
        return None
    tuning = tuned(network)
    decoders = f"{tuning.workers} decoding process{'es' if tuning.workers > 1 else ''}"
    say(f"tuned: {tuning.best.named()}, {decoders}")
    return tuning


def as_bytes(text: str) -> int:
    """Raises UsageError U402 for what is no amount of memory."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError("U402", text, "is no amount of memory", next_step="write 2GB or 500MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


TABLES = ("table2",)


@dataclass(frozen=True)
class Judging:
    """How a network is judged."""

    together: Annotated[
        list[str] | None,
        typer.Option("--with", help="MODEL or MODEL@WEIGHTS; the mean softmax of all is judged."),
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option(help="JSON: class index by file name, or by class folder."),
    ] = None
    views: Views = 1
    beside: Annotated[
        str, typer.Option(help="table2: the paper's errors on ImageNet, and ours below.")
    ] = ""
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu"
    workers: Annotated[int, typer.Option(min=1, help="Decoding processes.")] = 1
    out: Annotated[Path, typer.Option(help="New folder for the record.")] = Path("evaluation")
    tune: Tune = False

    def require_table(self) -> None:
        """Raises UsageError U407 before anything is computed."""
        if self.beside and self.beside not in TABLES:
            what = f"no such table; {nearest(self.beside, TABLES)}"
            raise UsageError("U407", self.beside, what)


@expanded
def evaluate(
    model: Model,
    pictures: Annotated[
        str,
        typer.Argument(
            help='Class folders, or shards as "val-{000000..000049}.tar"; or their URL.'
        ),
    ],
    options: Judging,
    opening: Opening,
    reading: Reading,
    passing: Passing,
) -> None:
    """Top-1 and top-5 on pictures with known classes, and which class is taken for which.

    Example: convscope evaluate run builtin:photos-val --views 10
    """
    from convscope.pictures.annotations import read_labels
    from convscope.records.predictions import table2
    from convscope.representations.predict import evaluate as measure

    claim(out := options.out)
    options.require_table()
    known = None if options.labels is None else read_labels(options.labels)
    with reading.open(pictures, workers=options.workers) as folder:
        networks = _together(model, options, opening)
        tuning = chosen(networks[0], options.tune)
        with progress("evaluating") as tick:
            way: dict[str, Any] = {"views": options.views, "labels": known, "tuning": tuning}
            result = measure(networks, folder, **way, run=passing.run(out, tick))
            folder.check_bad()
    _tell(result)
    with new_study(out, instead=passing.over(out)) as place:
        save_evaluation(result, place)
        if options.beside:
            tell(*keep_table(table2(result), place / "table2.md"))
    tell(out)


def _together(model: str, options: Judging, opening: Opening) -> list[Network]:
    """The model, and those whose answers are joined with its."""
    members = [(model, opening), *(_member(name, opening) for name in options.together or ())]
    return [_opened(name, how, options.device) for name, how in members]


def _member(name: str, opening: Opening) -> tuple[str, Opening]:
    """A model, opened with the file of weights after the last @."""
    model, sign, weights = name.rpartition("@")
    return model if sign else name, opening.other(Path(weights) if sign else None)


def _opened(model: str, opening: Opening, device: str) -> Network:
    """Raises UsageError U378 on an unknown device, EnvironmentFault R641 if it is not there."""
    import torch

    kind, _, number = device.partition(":")
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind not in there or not (number or "0").isdecimal():
        hint = nearest(device, there).replace("it has", "there are")
        raise UsageError("U378", device, f"no such device; {hint}")
    if int(number or 0) >= there[kind]:
        what = "this machine has none that torch can use"
        raise EnvironmentFault("R641", device, what, next_step="pass --device cpu")
    network = opening.scoring(model)
    network.model.to(device)
    return network


def _tell(found: Evaluation) -> None:
    if assumed := found.origin.get("class order"):
        say(f"class order {assumed}: --classes FILE tells it")
    for name, top1, top5 in found.members:
        tell(f"alone  {top1:7.2%} and {top5:7.2%}  {name}")
    tell(*_told(found))


def _told(found: Evaluation) -> tuple[str, str]:
    top = min(5, found.likeliest.shape[1])
    first = _line(1, found.top1, found.error1, found)
    return first, _line(top, found.top5, found.error5, found)


def _line(top: int, right: float, error: Share, found: Evaluation) -> str:
    many = len(found.labels)
    wrong = f"error {100 * error.part:.1f} % ({100 * error.low:.1f} to {100 * error.high:.1f})"
    return f"top-{top}  {right:7.2%}  {round(right * many):,} of {many:,} pictures; {wrong}"


HEAD = ("layer", "kind", "kernel", "output", "parameters", "multiply-adds", "field", "stride")
TO_THE_LEFT = 2
"""Columns of words, which stand at the left; numbers stand at the right."""


@expanded
def layers(
    model: Model,
    opening: Opening,
) -> None:
    """Layers with their output, parameters, multiply-adds, receptive field and stride in pixels.

    Example: convscope layers zfnet
    """
    from convscope.network.layers import layer_table

    network = opening.network(model)
    for line in lines(layer_table(network.model, network.preprocess.shape)):
        tell(line)


def lines(table: LayerTable) -> list[str]:
    """The table as text, a line a layer, with head and sums."""
    channels, *pixels = table.input
    rows: list[tuple[str, ...]] = [
        HEAD,
        ("input", "", "", _times((channels, *pixels)), "", "", "", ""),
    ]
    rows += [_cells(table, layer) for layer in range(len(table.name))]
    total = f"{table.parameters.sum():,}", f"{table.multiply_adds.sum():,}"
    rows.append(("sum", "", "", "", *total, "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_line_layers(row, widths) for row in rows]


def _cells(table: LayerTable, layer: int) -> tuple[str, ...]:
    whole = table.field[layer].any() and not table.stride[layer].any()
    return (
        printable(table.name[layer]) or "(the network)",
        printable(table.kind[layer] + (f" of {table.of[layer]}" if table.of[layer] else "")),
        _times(table.kernel[layer]),
        _times(table.shape[layer]),
        _count(table.parameters[layer]),
        _count(table.multiply_adds[layer]),
        "all" if whole else _side(table.field[layer]),
        _side(table.stride[layer]),
    )


def _line_layers(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        cell.ljust(width) if place < TO_THE_LEFT else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _times(sides: tuple[int, ...]) -> str:
    return "×".join(map(str, sides))


def _side(pair: tuple[int, int]) -> str:
    """Pixels down and across; one number if they are the same, nothing if there are none."""
    down, across = (int(side) for side in pair)
    if not (down or across):
        return ""
    return str(down) if down == across else f"{down}×{across}"
