"""How often is a network right, or several together?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.predict import Views, save_evaluation
from convscope.cli.progress import progress, say, tell
from convscope.cli.study_files import claim, new_study, save_table
from convscope.cli.tune import Tune, chosen
from convscope.errors import EnvironmentFault, UsageError, nearest

if TYPE_CHECKING:
    from convscope.network.network import Network
    from convscope.records.predictions import Evaluation, Share

TABLES = ("table2",)


@expanded
def evaluate(
    model: Model,
    pictures: Annotated[
        str,
        typer.Argument(help='Class folders, or shards as "val-{000000..000049}.tar".'),
    ],
    opening: Opening,
    reading: Reading,
    together: Annotated[
        list[str] | None,
        typer.Option("--with", help="MODEL or MODEL@WEIGHTS; the mean softmax of all is judged."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="JSON: class index by file name, or by class folder."),
    ] = None,
    views: Views = 1,
    beside: Annotated[
        str, typer.Option(help="table2: the paper's errors on ImageNet, and ours below.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Decoding processes.")] = 1,
    out: Annotated[Path, typer.Option(help="New folder for the record.")] = Path("evaluation"),
    tune: Tune = False,
) -> None:
    """Top-1 and top-5 on pictures with known classes, and which class is taken for which.

    Example: convscope evaluate run builtin:photos-val --views 10
    """
    from convscope.methods.predict import evaluate as measure
    from convscope.pictures.annotations import read_labels
    from convscope.records.imagenet import table2

    claim(out)
    if beside and beside not in TABLES:
        raise UsageError("U407", beside, f"no such table; {nearest(beside, TABLES)}")
    known = None if labels is None else read_labels(labels)
    with reading.open(pictures, workers=workers) as folder:
        networks = [_opened(model, opening, device)]
        networks += [_opened(*_member(name, opening), device) for name in together or ()]
        tuning = chosen(networks[0], tune)
        with progress("evaluating") as tick:
            found = measure(
                networks, folder, views=views, labels=known, tuning=tuning, progress=tick
            )
            folder.check_bad()
    _tell(found)
    with new_study(out) as place:
        save_evaluation(found, place)
        if beside:
            save_table(table2(found), place / "table2.md")
    tell(out)


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
