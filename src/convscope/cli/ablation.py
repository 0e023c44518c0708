"""What does each layer bring, when a network is trained again without it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.options import Beside, Reading, expanded
from convscope.cli.predict import Views
from convscope.cli.progress import say, tell
from convscope.cli.results import add_study, save_figure, save_table
from convscope.cli.stop import stop_on_signals
from convscope.cli.train import pair, training_bar


@expanded
def ablation(
    pictures: Annotated[
        str,
        typer.Argument(help="Class folders, a folder with train and val in it, or builtin:photos."),
    ],
    reading: Reading,
    recipe: Annotated[
        str, typer.Option(help="tutorial, paper, best, demo or a .toml file, for all variants.")
    ] = "tutorial",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE of the recipe.")
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(help="Names with commas, or one NAME=NETWORK; several times if need be."),
    ] = None,
    common: Annotated[
        str, typer.Option("--with", help="Options of all variants: width=0.25,norm=batch.")
    ] = "",
    seeds: Annotated[int, typer.Option(help="Trainings of each variant.")] = 1,
    validation: Annotated[
        str | None, typer.Option(help="Pictures to judge by; else a tenth of PICTURES.")
    ] = None,
    views: Views = 1,
    out: Annotated[
        Path, typer.Option(help="Folder: new, or of the same study, which then goes on.")
    ] = Path("ablation"),
    threads: Annotated[int, typer.Option(min=1, help="Threads that make batches.")] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, gpu, mps.")] = "auto",
    beside: Beside = False,
) -> None:
    """Retrain variants of AlexNet and ZFNet without layers or with larger ones (table 3).

    Example: convscope ablation flower_photos --recipe best --with width=0.25,norm=batch
    """
    from convscope.studies.ablation.figure import ablation_figure
    from convscope.studies.ablation.study import VARIANTS
    from convscope.studies.ablation.study import ablation as study
    from convscope.studies.ablation.table import ablation_table
    from convscope.training.recipe import recipe as read_recipe

    plan = read_recipe(recipe, changes or ())
    teaching, judging = pair(pictures, validation, reading)
    with stop_on_signals() as stop, training_bar() as progress:
        found = study(
            plan,
            teaching,
            judging,
            out,
            split_names(variants or VARIANTS),
            common=common,
            seeds=seeds,
            views=views,
            progress=progress,
            tell=say,
            stop=stop,
            threads=threads,
            accelerator=accelerator,
        )

    def write(place: Path) -> None:
        found.write(place)
        save_table(ablation_table(found, beside=beside), place / "table.md")
        save_figure(ablation_figure(found, beside=beside), place / "figure")

    tell(add_study(out / "result", write) / "figure.pdf")


def split_names(given: list[str] | dict[str, str]) -> list[str]:
    """`a,b` is two names, `a,b=network:x=1,y=2` as well: after the first `=` commas belong to
    the network."""
    found = []
    for text in given:
        names, equals, network = text.partition("=")
        *others, last = (name.strip() for name in names.split(","))
        found += [*others, last + equals + network]
    return [name for name in found if name]
