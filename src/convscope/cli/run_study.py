"""Commands of the studies: each is made of its entry in `studies/registry.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from convscope.cli.options import Beside, Model, Opening, Reading, expanded
from convscope.cli.progress import progress, say, tell
from convscope.cli.results import claim, new_study, save_figure, save_table
from convscope.run import Progress
from convscope.studies.base import Option, Study, records_of

if TYPE_CHECKING:
    from convscope.network.network import Network
    from convscope.pictures.pictures import Pictures

PICTURES = {
    "picture folder": (str, "Folder of pictures, or a set of them.", inspect.Parameter.empty),
    "pictures": (list[str], "A folder of pictures, or pictures.", inspect.Parameter.empty),
    "pictures or none": (str | None, "Pictures, for what needs some.", None),
}


@dataclass(frozen=True)
class Asked:
    """What a study asks of its command, see `studies.base.Ask`."""

    study: Study
    model: str
    given: Sequence[str] | str | None
    opening: Opening
    reading: Reading
    out: Path

    def network(self, name: str | None = None, *, checkpoint: Path | None = None) -> Network:
        opening = self.opening if name is None else self.opening.other(checkpoint)
        opened = opening.scoring if self.study.scores else opening.network
        return opened(name or self.model)

    def pictures(self, names: Sequence[str] | str | None = None) -> Pictures:
        given = self.given if names is None else names
        if isinstance(given, str):
            return self.reading.open(given)
        return self.reading.one_folder(given or ())

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        return progress(what)

    def say(self, line: str) -> None:
        say(line)


def run_study(study: Study, asked: Asked, options: Any) -> None:
    """Measure, write all of the result with one rename, print its tables and where it is."""
    claim(asked.out)
    result = study.measure(asked, options)
    with new_study(asked.out) as place:
        for folder, record in records_of(result).items():
            (place / folder).mkdir(exist_ok=True)
            record.write(place / folder)
        shown = study.show(result, options)
        for name, content in shown.files.items():
            (place / name).write_bytes(content)
        for name, parts in shown.tables.items():
            save_table(parts, place / f"{name}.md")
        tell(*shown.words)
        for name, figure in shown.figures.items():
            save_figure(figure, place / name)
    for name in shown.figures:
        if re.fullmatch(r"figure(-\d+)?", name):
            tell(asked.out / f"{name}.pdf")


def command_of(study: Study) -> Callable[..., None]:
    """The command, with its options in the order of the study's."""

    def command(opening: Opening, reading: Reading, out: Path, **told: Any) -> None:
        model, given = told.pop("model", ""), told.pop("pictures", ())
        values = {name: read(told[name]) for name, read in reads.items()}
        run_study(study, Asked(study, model, given, opening, reading, out), study.options(**values))

    reads = {one.name: _reading(one.name, study) for one in fields(study.options)}
    shown = [
        inspect.Parameter("opening", KEYWORD, annotation=Opening),
        inspect.Parameter("reading", KEYWORD, annotation=Reading),
        *_arguments(study),
        *(_parameter(study, name) for name in reads),
        inspect.Parameter(
            "out",
            KEYWORD,
            annotation=Annotated[Path, typer.Option(help="New folder for the result.")],
            default=Path(study.name),
        ),
    ]
    shown.sort(key=lambda one: one.default is not inspect.Parameter.empty)
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in shown}
    command.__name__ = study.name
    command.__doc__ = f"{study.summary}\n\nExample: {study.example}"
    return expanded(command)


KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _arguments(study: Study) -> list[inspect.Parameter]:
    found = []
    for need in study.needs:
        if need == "network":
            found.append(inspect.Parameter("model", KEYWORD, annotation=Model))
            continue
        kind, words, default = PICTURES[need]
        argument = Annotated[kind, typer.Argument(help=words)]
        found.append(inspect.Parameter("pictures", KEYWORD, annotation=argument, default=default))
    return found


def _option(study: Study, name: str) -> tuple[Any, Option]:
    """Type of a field, and what is said of it as an option."""
    hint = get_type_hints(study.options, include_extras=True)[name]
    kind, *told = get_args(hint)
    return kind, next(one for one in told if isinstance(one, Option))


def _parameter(study: Study, name: str) -> inspect.Parameter:
    kind, told = _option(study, name)
    if name == "beside":
        annotation: Any = Beside
    else:
        option = typer.Option(*told.names, help=told.help, min=told.min, max=told.max)
        annotation = Annotated[told.shell or kind, option]
    default = next(one.default for one in fields(study.options) if one.name == name)
    if default is MISSING:
        default = inspect.Parameter.empty
    return inspect.Parameter(name, KEYWORD, annotation=annotation, default=default)


def _reading(name: str, study: Study) -> Callable[[Any], Any]:
    read = _option(study, name)[1].read
    if read is None:
        return lambda value: value
    return lambda value: None if value is None else read(value)
