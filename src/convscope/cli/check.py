"""Can this network be looked at, by which methods, and what should one know beforehand?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.progress import progress, tell
from convscope.cli.results import claim, new_study
from convscope.core.errors import ModelError, printable
from convscope.core.run import Run

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from convscope.network.network import Network
    from convscope.studies.audit.record import Audit, Finding

MARKS = {"ok": "ok", "warn": "WARN", "bad": "BAD"}
COLOURS = {"ok": "green", "warn": "yellow", "bad": "bold red"}
WIDTH = 110
"""Characters of the table where nobody's screen says otherwise."""


@dataclass(frozen=True)
class Checking:
    """How long is tried, and where it is written."""

    seconds: Annotated[
        float, typer.Option(min=0, help="For each method that runs the network many times.")
    ] = 0.5
    save_json: Annotated[Path | None, typer.Option("--json", help="New file for the findings.")] = (
        None
    )
    out: Annotated[Path | None, typer.Option(help="New folder for the record.")] = None


@expanded
def check(
    model: Model,
    options: Checking,
    opening: Opening,
    reading: Reading,
    picture: Annotated[
        str | None, typer.Argument(help="Picture, or folder of which the first is taken.")
    ] = None,
) -> None:
    """What to know about a network before looking at it, and which methods it allows.

    Everything is tried on a picture; without one, on a built-in photograph. The exit status is 4
    where the network cannot be used.

    Example: convscope check torchvision:resnet18
    """
    from convscope.core.publish import publish_file
    from convscope.studies.audit.study import audit

    for place in (options.save_json, options.out):
        if place is not None:
            claim(place)
    network = opening.load(model)
    image = None if picture is None else _prepared(network, picture, reading)
    with progress("trying methods") as tick:
        found = audit(network, image, seconds=options.seconds, run=Run(progress=tick))
    _show(found)
    if options.out is not None:
        with new_study(options.out) as place:
            found.write(place)
        tell(options.out)
    if options.save_json is not None:
        text = json.dumps(found.plain(), indent=1, ensure_ascii=False)
        publish_file(options.save_json, text.encode())
        tell(options.save_json)
    _refuse(found)


def _prepared(network: Network, picture: str, reading: Reading) -> Tensor:
    framing = network.preprocess.framing
    if Path(picture).is_file():
        pixels = reading.one(picture, framing).pixels
    else:
        with reading.open(picture) as folder:
            pixels = next(iter(folder.read(framing))).pixels
    return network.preprocess.tensor(pixels)


def _show(found: Audit) -> None:
    """The table, to stdout: it is the result."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    topic = ""
    for line in found.findings:
        if line.topic != topic:
            topic = line.topic
            console.print(f"\n{topic.upper()}", style="bold", markup=False)
            table = _table([f for f in found.findings if f.topic == topic])
            console.print(table)
    console.print(f"\n{_summary(found)}", markup=False)


def _table(findings: list[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(width=4)
    table.add_column(width=23)
    table.add_column(overflow="fold")
    for line in _joined(findings):
        told = Text(printable(line.finding))
        if line.advice:
            told.append(f"\n→ {printable(line.advice)}", style="dim")
        mark = Text(MARKS[line.verdict], style=COLOURS[line.verdict])
        table.add_row(mark, printable(line.question), told)
    return table


def _joined(findings: list[Finding]) -> list[Finding]:
    """What is said of several with the same words is said once."""
    said: dict[tuple[str, ...], list[str]] = {}
    for line in findings:
        said.setdefault((line.finding, line.verdict, line.advice), []).append(line.question)
    firsts = {questions[0]: questions for questions in said.values()}
    return [
        line._replace(question=", ".join(firsts[line.question]))
        for line in findings
        if line.question in firsts
    ]


def _summary(found: Audit) -> str:
    counts = {verdict: len(found.of(verdict)) for verdict in ("ok", "warn", "bad")}
    picture = found.origin.get("picture") or "no picture"
    return (
        f"{'usable' if found.usable else 'NOT usable'}: {counts['ok']} ok, "
        f"{counts['warn']} to know about, {counts['bad']} bad; tried on {picture}"
    )


def _refuse(found: Audit) -> None:
    """Raises ModelError with the code of the first bad finding."""
    for line in found.of("bad"):
        raise ModelError(
            line.code, found.network, f"{line.question}: {line.finding}", next_step=line.advice
        )
