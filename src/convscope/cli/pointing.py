"""Which method points at the marked things most often?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.explain import read_target
from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.progress import progress, tell
from convscope.cli.results import claim, new_study
from convscope.run import Run

if TYPE_CHECKING:
    from convscope.studies.pointing.record import PointingGame


@expanded
def pointing(
    model: Model,
    pictures: Annotated[str, typer.Argument(help="A folder of pictures.")],
    opening: Opening,
    reading: Reading,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="JSON {name: [[xmin, ymin, xmax, ymax], …]}; default: boxes.json of the folder."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Class name or index; default: each one's likeliest.")
    ] = None,
    method: Annotated[str, typer.Option(help="Names with commas, or all.")] = "all",
    layer: Annotated[str | None, typer.Option(help="For methods that take one.")] = None,
    margin: Annotated[
        int, typer.Option(min=0, help="Pixels by which a peak may miss, for the column near.")
    ] = 15,
    out: Annotated[Path, typer.Option(help="New folder for the record.")] = Path("pointing"),
) -> None:
    """How often each method's map peaks in the boxes, beside a random map and a centred blob.

    Example: convscope pointing torchvision:squeezenet1_0 kangaroo --target wallaby
    """
    from convscope.attribution.registry import chosen
    from convscope.pictures.annotations import BOXES_FILE, read_boxes
    from convscope.studies.pointing.study import pointing_game

    claim(out)
    names = [name.strip() for name in method.split(",") if name.strip()]
    methods = chosen(names or ["all"], layer)
    with reading.open(pictures) as folder, progress("pointing") as tick:
        marked = read_boxes(boxes or folder.root / BOXES_FILE)
        network = opening.scoring(model)
        found = pointing_game(
            network,
            folder,
            marked,
            methods,
            target=read_target(target),
            margin=margin,
            run=Run(progress=tick),
        )
    with new_study(out) as place:
        found.write(place)
    tell(*_table(found))
    tell(out)


def _table(found: PointingGame) -> list[str]:
    """Mean and 95 % interval by method, the best first; what needs no method last."""
    import numpy as np

    head = ("method", "peak in a box", f"within {found.margin} px", "energy in boxes", "empty")
    order = np.argsort(-np.nan_to_num(np.nanmean(found.near, 0), nan=-1.0), kind="stable")
    rows = [
        (
            found.methods[place],
            *(_mean(values[:, place]) for values in (found.exact, found.near, found.energy)),
            str(int(np.isnan(found.exact[:, place]).sum())),
        )
        for place in order
    ]
    blob = (found.middle, found.middle_near, found.middle_energy)
    rows.append(("centred blob", *(_mean(values) for values in blob), "0"))
    chance = (found.boxed, found.boxed_near, found.boxed)
    rows.append(("random map", *(_mean(values) for values in chance), "0"))
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(
            text.ljust(wide) if not column else text.rjust(wide)
            for column, (text, wide) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    lines += [f"{name}: not defined here: {why}" for name, why in found.refused.items()]
    return lines


def _mean(values: object) -> str:
    from convscope.records.faithfulness import interval

    mean, low, high = interval(values)  # type: ignore[arg-type]
    return f"{mean:.1%} ({low:.0%} to {high:.0%})"
