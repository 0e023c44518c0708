"""Commands explain and check: why this class, how far to believe it, and what suits a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.options import Model, Opening, Passing, Reading, expanded
from convscope.cli.results import claim, new_study, progress, say, tell
from convscope.core.errors import ModelError, printable
from convscope.core.run import Run
from convscope.studies.base import boxes_of, class_asked, spread

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from convscope.attribution.base import Method
    from convscope.network.network import Network
    from convscope.records.maps import Attribution
    from convscope.records.predictions import Prediction
    from convscope.studies.audit.record import Audit, Finding
    from convscope.studies.explain.record import Explanation, Explanations


@dataclass(frozen=True)
class Explaining:
    """What is explained, and how."""

    method: Annotated[
        str,
        typer.Option(
            help="Names with commas, all, or package.module:function; default: gradcam, layercam, "
            "integrated-gradients, occlusion. There are also gradcam++, xgradcam, ablationcam, "
            "scorecam, eigencam, eigengradcam, fullgrad, saliency, smoothgrad, gradient-x-input, "
            "guided-backprop, guided-gradcam, deconvnet."
        ),
    ] = ""
    layer: Annotated[str | None, typer.Option(help="For methods that take one.")] = None
    target: Annotated[
        str | None, typer.Option(help="Class name or index; default: the likeliest.")
    ] = None
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="JSON {name: [[xmin, ymin, xmax, ymax], …]}; default: boxes.json of the folder."
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pictures of a folder, spread evenly.")
    ] = None
    road: Annotated[bool, typer.Option("--road", help="Also remove and impute; slow.")] = False
    out: Annotated[Path, typer.Option(help="New folder for page, figure and records.")] = Path(
        "explanation"
    )
    open_page: Annotated[bool, typer.Option("--open", help="Open the page when done.")] = False


@expanded
def explain(
    model: Model,
    pictures: Annotated[str, typer.Argument(help="A picture, or a folder of pictures.")],
    options: Explaining,
    opening: Opening,
    reading: Reading,
    passing: Passing,
) -> None:
    """What speaks for a class, by any method, each map put to the test.

    Example: convscope explain torchvision:squeezenet1_0 photograph.jpg --method all
    """
    from convscope.attribution.registry import DEFAULT, chosen, require_layer
    from convscope.pictures.opening import is_file

    claim(options.out)
    names = [name.strip() for name in options.method.split(",") if name.strip()]
    methods = chosen(names or DEFAULT, options.layer)
    network = opening.scoring(model)
    if options.layer is not None:
        require_layer(network, methods, options.layer)
    wanted = None if options.target is None else class_asked(options.target)
    how = (options.boxes, options.road, reading, options.out, passing)
    asked = _Asked(network, methods, wanted, *how)
    lines = asked.one(pictures) if is_file(pictures) else asked.many(pictures, options.limit)
    page = options.out / "index.html"
    tell(*lines, page)
    if options.open_page:
        typer.launch(page.resolve().as_uri())


@dataclass(frozen=True)
class _Asked:
    """What is to be explained, and how."""

    network: Network
    methods: Mapping[str, Method]
    target: int | str | None
    boxes: Path | None
    road: bool
    reading: Reading
    out: Path
    passing: Passing

    def one(self, path: str) -> list[str]:
        """Explain a single picture; what to tell of it."""
        from convscope.pages.explain import write_explanation
        from convscope.pictures.annotations import read_boxes
        from convscope.studies.explain.study import Checks, explain_picture

        picture = self.reading.one(path)
        marked = read_boxes(self.boxes).get(picture.name, ()) if self.boxes else ()
        if self.boxes and not marked:
            say(f"{self.boxes} has no boxes for {picture.name}")
        with progress("explaining") as tick:
            result = explain_picture(
                self.network,
                picture,
                self.methods,
                target=self.target,
                boxes=marked,
                checks=Checks(road=self.road),
                shown=_first,
                run=Run(progress=tick),
            )
        with new_study(self.out) as place:
            write_explanation(place, result)
        return _lines(result)

    def many(self, pictures: str, limit: int | None) -> list[str]:
        """Explain a folder, each picture's page as soon as it is done; what to tell of all."""
        from convscope.pages.explain import write_explanations
        from convscope.studies.explain.figure import findings
        from convscope.studies.explain.study import QUICK, explain_folder

        kept: list[Explanations] = []
        with self.reading.open(pictures) as folder, progress("explaining") as tick:

            def run(each: Any) -> Explanations:
                result = explain_folder(
                    self.network,
                    folder,
                    self.methods,
                    target=self.target,
                    boxes=boxes_of(folder, self.boxes, say),
                    numbers=spread(len(folder), limit),
                    checks=replace(QUICK, road=self.road),
                    each=each,
                    run=self.passing.run(self.out, tick),
                )
                kept.append(result)
                return result

            with new_study(self.out, instead=self.passing.over(self.out)) as place:
                write_explanations(place, run)
        return [
            f"{'!' if one.level == 'warn' else '-'} {printable(one.text)}"
            for one in findings(kept[0])
        ]


def _first(prediction: Prediction, maps: Mapping[str, Attribution]) -> None:
    """What is known before the tests: the likeliest classes, and where each map is highest."""
    chances = zip(prediction.names, prediction.probability.tolist(), strict=True)
    classes = ", ".join(f"“{name}” {chance:.1%}" for name, chance in list(chances)[:3])
    lines = [f"{prediction.picture}: {classes}"]
    wide = max(map(len, maps))
    for name, one in maps.items():
        row, column = divmod(int(one.values.argmax()), one.values.shape[1])
        height, width = one.values.shape
        place = f"{_third(row, height, PLACES[0])} {_third(column, width, PLACES[1])}"
        shown = f"highest {place}" if one.positive else "nothing speaks for it"
        lines.append(f"  {name:<{wide}}  {shown}")
    for line in [*lines, "now each map is put to the test"]:
        say(printable(line))


PLACES = (("at the top", "in the middle", "at the bottom"), ("left", "centre", "right"))


def _third(at: int, extent: int, words: Sequence[str]) -> str:
    return words[min(2, 3 * at // extent)]


def _lines(found: Explanation) -> list[str]:
    """The classes, and a line for each map."""
    from convscope.studies.explain.figure import TITLES, summary, verdict

    wide = max(len(name) for name in found.methods)
    lines = [
        f"  {name:<{wide}}  {TITLES[said.level]:<13} {said.headline}"
        for name, said in ((name, verdict(found, n)) for n, name in enumerate(found.methods))
    ]
    lines += [f"  {name}: not defined here: {why}" for name, why in found.refused.items()]
    lines += [f"  left out: {test}: {why}" for test, why in found.untested.items()]
    return [printable(line) for line in [summary(found), *lines]]


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
    from convscope.pictures.opening import is_file

    framing = network.preprocess.framing
    if is_file(picture):
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
