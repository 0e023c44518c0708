"""Commands of the studies: each is made of its entry in `studies/registry.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.options import ANY_MODEL, Opening, Reading, Ready, expanded
from convscope.cli.results import (
    add_study,
    claim,
    keep_table,
    new_study,
    phases,
    save_figure,
    say,
    tell,
)
from convscope.cli.stop import stop_on_signals
from convscope.cli.train import pair, training_bar
from convscope.core.errors import StopAsked
from convscope.core.run import Progress
from convscope.studies.base import Shown, Study, option_of, records_of

if TYPE_CHECKING:
    from convscope.network.network import Network
    from convscope.pictures.pictures import Pictures

EMPTY = inspect.Parameter.empty
ARGUMENTS: dict[str, tuple[str, Any, str, Any]] = {
    "network": ("model", str, ANY_MODEL, EMPTY),
    "network or result": (
        "model",
        str,
        f"{ANY_MODEL} Without PICTURES: what this command or `atlas` wrote, to draw it again.",
        EMPTY,
    ),
    "picture folder": ("pictures", str, "Folder of pictures, or a set of them.", EMPTY),
    "pictures": ("pictures", list[str], "A folder of pictures, or pictures.", EMPTY),
    "pictures or none": ("pictures", str | None, "Pictures, for what needs some.", None),
    "training pictures": ("pictures", str, "Class folders.", EMPTY),
}
"""What a study may need: name, type, help and default of the command's argument."""


@dataclass(frozen=True)
class Asked:
    """What a study asks of its command, see `studies.base.Ask`."""

    study: Study
    model: str
    given: Sequence[str] | str | None
    opening: Ready
    reading: Reading
    out: Path
    progress: Callable[[str], Progress]

    @property
    def parts(self) -> Path:
        return self.out.with_name(f"{self.out.name}-parts")

    @property
    def told(self) -> Mapping[str, Any]:
        return self.opening.told()

    def network(self, name: str | None = None, *, checkpoint: Path | None = None) -> Network:
        assert isinstance(self.opening, Opening)
        opening = self.opening if name is None else self.opening.other(checkpoint)
        opened = opening.scoring if self.study.scores else opening.network
        return opened(name or self.model)

    def pictures(self, names: Sequence[str] | str | None = None) -> Pictures:
        given = self.given if names is None else names
        if isinstance(given, str):
            return self.reading.open(given)
        return self.reading.one_folder(given or ())

    def split(self, validation: str | None) -> tuple[Pictures, Pictures]:
        return pair(str(self.given), validation, self.reading)

    @contextmanager
    def training(self) -> Iterator[Mapping[str, Any]]:
        with stop_on_signals() as stop, training_bar() as progress:
            yield {"stop": stop, "progress": progress}

    def say(self, line: str) -> None:
        say(line)


def run_study(asked: Asked, options: Any) -> None:
    """Measure, write all of the result with one rename, print its tables and where it is."""
    study, out = asked.study, asked.out
    if not study.resumable:
        claim(out)
    with _parts_kept(asked):
        result = study.measure(asked, options)
    shown = study.show(result, options)

    def write(place: Path) -> None:
        for folder, record in records_of(result).items():
            (place / folder).mkdir(exist_ok=True)
            record.write(place / folder)
        _write_shown(shown, place)

    if study.resumable:
        out = add_study(out / "result", write)
    else:
        with new_study(out, instead=[asked.parts] if study.parts else ()) as place:
            write(place)
    for remark in shown.remarks:
        say(remark)
    figures = [name for name in shown.figures if re.fullmatch(r"figure(-\d+)?", name)]
    tell(*([out / f"{name}.pdf" for name in figures] or [out]))


def _write_shown(shown: Shown, place: Path) -> None:
    for name, content in shown.files.items():
        (place / name).write_bytes(content)
    for name, parts in shown.tables.items():
        lines = keep_table(parts, place / f"{name}.md")
        tell(*lines if shown.printed else ())
    tell(*shown.words)
    for name, figure in shown.figures.items():
        save_figure(figure, place / name)


@contextmanager
def _parts_kept(asked: Asked) -> Iterator[None]:
    """When it is stopped, say where it goes on."""
    try:
        yield
    except StopAsked as stop:
        if asked.study.parts and asked.parts.is_dir():
            stop.kept = f"{asked.study.parts}, in {asked.parts}"
        raise


def command_of(study: Study) -> Callable[..., None]:
    """The command, with its options in the order of the study's."""

    def command(reading: Reading, out: Path, **told: Any) -> None:
        model, given = told.pop("model", "") if named else "", told.pop("pictures", None)
        opening = told.pop("opening", None) or Ready()
        options = study.options(**{name: read(told[name]) for name, read in reads.items()})
        with phases() as bar:
            run_study(Asked(study, model, given, opening, reading, out, bar), options)

    named = any(need in ARGUMENTS and ARGUMENTS[need][0] == "model" for need in study.needs)
    groups = {"opening": Opening if named else Ready, "reading": Reading}
    if study.resumable:  # it trains networks, and opens none
        del groups["opening"]
    own = [one.name for one in fields(study.options)]
    reads = {name: _reading(study, name) for name in own}
    rest = [name for name in own if name not in study.needs]
    help = "Folder: new, or of the same study, which then goes on." if study.resumable else OUT
    out = Annotated[Path, typer.Option(help=help)]
    shown = [
        *(inspect.Parameter(name, KEYWORD, annotation=kind) for name, kind in groups.items()),
        *(_argument(study, need) for need in study.needs),
        *(_parameter(study, name) for name in rest),
        inspect.Parameter("out", KEYWORD, annotation=out, default=Path(study.name)),
    ]
    shown.sort(key=lambda one: one.default is not EMPTY)
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in shown}
    command.__name__ = study.name
    command.__doc__ = f"{study.summary}\n\nExample: {study.example}"
    return expanded(command)


KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
OUT = "New folder for records, figures and tables."


def _argument(study: Study, need: str) -> inspect.Parameter:
    if need in ARGUMENTS:
        name, kind, words, default = ARGUMENTS[need]
        words = (name == "pictures" and study.pictures) or words
    else:
        kind, option = option_of(study.options, need)
        name, words, default = need, option.help, EMPTY
    argument = Annotated[kind, typer.Argument(help=words)]
    return inspect.Parameter(name, KEYWORD, annotation=argument, default=default)


def _parameter(study: Study, name: str) -> inspect.Parameter:
    kind, said = option_of(study.options, name)
    option = typer.Option(*said.names, help=said.help, min=said.min, max=said.max)
    annotation = Annotated[said.shell or kind, option]
    default = next(one.default for one in fields(study.options) if one.name == name)
    if default is MISSING:
        default = EMPTY
    if said.default is not None:
        default = said.default
    elif isinstance(default, tuple):
        default = ",".join(map(str, default)) or None
    return inspect.Parameter(name, KEYWORD, annotation=annotation, default=default)


def _reading(study: Study, name: str) -> Callable[[Any], Any]:
    """What makes the option's value of that on the command line."""
    default = next(one.default for one in fields(study.options) if one.name == name)
    read = option_of(study.options, name)[1].read
    if read is None:
        return lambda value: value
    return lambda value: default if value is None else read(value)
