"""Why this class, and how far is each map to be believed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.progress import progress, say, tell
from convscope.cli.results import claim, new_study
from convscope.errors import printable
from convscope.run import Run

if TYPE_CHECKING:
    from convscope.attribution.base import Method
    from convscope.network.load import Network
    from convscope.pictures.pictures import Pictures
    from convscope.records.maps import Attribution
    from convscope.records.predictions import Prediction
    from convscope.studies.explain.record import Explanation, Explanations
    from convscope.units import Box


@expanded
def explain(
    model: Model,
    pictures: Annotated[str, typer.Argument(help="A picture, or a folder of pictures.")],
    opening: Opening,
    reading: Reading,
    method: Annotated[
        str,
        typer.Option(
            help="Names with commas, all, or package.module:function; default: gradcam, layercam, "
            "integrated-gradients, occlusion. There are also gradcam++, xgradcam, ablationcam, "
            "scorecam, eigencam, eigengradcam, fullgrad, saliency, smoothgrad, gradient-x-input, "
            "guided-backprop, guided-gradcam, deconvnet."
        ),
    ] = "",
    layer: Annotated[str | None, typer.Option(help="For methods that take one.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Class name or index; default: the likeliest.")
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="JSON {name: [[xmin, ymin, xmax, ymax], …]}; default: boxes.json of the folder."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pictures of a folder, spread evenly.")
    ] = None,
    road: Annotated[bool, typer.Option("--road", help="Also remove and impute; slow.")] = False,
    out: Annotated[Path, typer.Option(help="New folder for page, figure and records.")] = Path(
        "explanation"
    ),
    open_page: Annotated[bool, typer.Option("--open", help="Open the page when done.")] = False,
) -> None:
    """What speaks for a class, by any method, each map put to the test.

    Example: convscope explain torchvision:squeezenet1_0 photograph.jpg --method all
    """
    from convscope.attribution.registry import DEFAULT, chosen, require_layer

    claim(out)
    names = [name.strip() for name in method.split(",") if name.strip()]
    methods = chosen(names or DEFAULT, layer)
    network = opening.scoring(model)
    if layer is not None:
        require_layer(network, methods, layer)
    if Path(pictures).is_file():
        page = _one(network, Path(pictures), methods, target, boxes, road, reading, out)
    else:
        page = _many(network, pictures, methods, target, boxes, road, limit, reading, out)
    if open_page:
        typer.launch(page.resolve().as_uri())


def _one(
    network: Network,
    path: Path,
    methods: Mapping[str, Method],
    target: str | None,
    boxes: Path | None,
    road: bool,
    reading: Reading,
    out: Path,
) -> Path:
    from convscope.pages.explain import write_explanation
    from convscope.pictures.annotations import read_boxes
    from convscope.studies.explain.study import Checks
    from convscope.studies.explain.study import explain_picture as study

    picture = reading.one(path)
    marked = read_boxes(boxes).get(path.name, ()) if boxes else ()
    if boxes and not marked:
        say(f"{boxes} has no boxes for {path.name}")
    with progress("explaining") as tick:
        found = study(
            network,
            picture,
            methods,
            target=read_target(target),
            boxes=marked,
            checks=Checks(road=road),
            shown=_first,
            run=Run(progress=tick),
        )
    with new_study(out) as place:
        write_explanation(place, found)
    page = out / "index.html"
    tell(*_told(found))
    tell(page)
    return page


def _many(
    network: Network,
    pictures: str,
    methods: Mapping[str, Method],
    target: str | None,
    boxes: Path | None,
    road: bool,
    limit: int | None,
    reading: Reading,
    out: Path,
) -> Path:
    from dataclasses import replace

    from convscope.pages.explain import write_explanations
    from convscope.studies.explain.study import QUICK, explain_folder
    from convscope.studies.explain.table import findings

    kept: list[Explanations] = []
    with reading.open(pictures) as folder, progress("explaining") as tick:

        def run(each: object) -> Explanations:
            found = explain_folder(
                network,
                folder,
                methods,
                target=read_target(target),
                boxes=_boxes(folder, boxes),
                numbers=_spread(len(folder), limit),
                checks=replace(QUICK, road=road),
                each=each,  # type: ignore[arg-type]
                run=Run(progress=tick),
            )
            kept.append(found)
            return found

        with new_study(out) as place:
            write_explanations(place, run)
    page = out / "index.html"
    for one in findings(kept[0]):
        tell(f"{'!' if one.level == 'warn' else '-'} {printable(one.text)}")
    tell(page)
    return page


def read_target(told: str | None) -> int | str | None:
    """Digits are an index."""
    return int(told) if told is not None and told.isdecimal() else told


def _boxes(folder: Pictures, told: Path | None) -> Mapping[str, Sequence[Box]] | None:
    from convscope.pictures.annotations import BOXES_FILE, read_boxes

    path = told or folder.root / BOXES_FILE
    if told is None and not path.is_file():
        return None
    found = read_boxes(path)
    known = sum(name in found for name in folder.names)
    unknown = len(found.keys() - set(folder.names)) if told is not None else 0
    more = f"; {unknown} of its names are not among them" if unknown else ""
    say(f"boxes: {path}, for {known} of {len(folder)} pictures{more}")
    return found


def _spread(count: int, limit: int | None) -> list[int] | None:
    """So many numbers, evenly over all."""
    if limit is None or limit >= count:
        return None
    return [round(place * (count - 1) / max(1, limit - 1)) for place in range(limit)]


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


def _told(found: Explanation) -> list[str]:
    """The classes, and a line for each map."""
    from convscope.studies.explain.table import TITLES, summary, verdict

    wide = max(len(name) for name in found.methods)
    lines = [
        f"  {name:<{wide}}  {TITLES[said.level]:<13} {said.headline}"
        for name, said in ((name, verdict(found, n)) for n, name in enumerate(found.methods))
    ]
    lines += [f"  {name}: not defined here: {why}" for name, why in found.refused.items()]
    lines += [f"  left out: {test}: {why}" for test, why in found.untested.items()]
    return [printable(line) for line in [summary(found), *lines]]
