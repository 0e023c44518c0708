"""The command line: all commands, those of studies made of their entries, faults and exit codes.

Each command reads arguments, calls one function, saves one record and prints its path. Results go
to stdout, progress and faults to stderr; torch is imported by the commands that need it.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.models import CommandInfo

from convscope import __version__
from convscope.cli.atlas import atlas, attach, demo, mark
from convscope.cli.explain import check, explain
from convscope.cli.optimise import optimise
from convscope.cli.options import ANY_MODEL, Opening, Passing, Reading, Ready, expanded
from convscope.cli.predict import evaluate, layers, predict, tune
from convscope.cli.results import (
    add_study,
    claim,
    command_running,
    keep_table,
    new_study,
    phases,
    save_figure,
    say,
    tell,
)
from convscope.cli.stop import past_stopping, stop_on_signals, stoppable
from convscope.cli.train import flowers, pair, train, training_bar
from convscope.core.errors import (
    ConvscopeError,
    EnvironmentFault,
    ModelError,
    StopAsked,
    UsageError,
    is_out_of_memory,
    printable,
)
from convscope.core.foreign import blamed
from convscope.core.publish import environment_fault, is_full
from convscope.core.run import Progress, Run
from convscope.studies.base import Shown, Study, option_of, records_of
from convscope.studies.registry import studies

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
    passing: Passing
    out: Path
    progress: Callable[[str], Progress]

    def run(self, what: str) -> Run:
        run = self.passing.run(self.out, self.progress(what))
        return run.inside(re.sub(r"[^a-z0-9.]+", "-", what.lower()))

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
        with new_study(out, instead=asked.passing.over(out)) as place:
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


def command_of(study: Study) -> Callable[..., None]:
    """The command, with its options in the order of the study's."""

    def command(reading: Reading, out: Path, **told: Any) -> None:
        passing = told.pop("passing", None) or Passing()
        model, given = told.pop("model", "") if named else "", told.pop("pictures", None)
        opening = told.pop("opening", None) or Ready()
        options = study.options(**{name: read(told[name]) for name, read in reads.items()})
        with phases() as bar:
            run_study(Asked(study, model, given, opening, reading, passing, out, bar), options)

    named = any(need in ARGUMENTS and ARGUMENTS[need][0] == "model" for need in study.needs)
    groups = {"opening": Opening if named else Ready, "reading": Reading, "passing": Passing}
    if study.resumable:  # it trains networks, and opens none
        del groups["opening"], groups["passing"]
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


CommandFault: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""What typer raises on a wrong command line; newer ones carry their own copy of click."""

app = typer.Typer(
    name="convscope",
    help="See what a convolutional network sees, and whether to trust it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    demo,
    train,
    predict,
    evaluate,
    layers,
    atlas,
    attach,
    flowers,
    check,
    explain,
    optimise,
    tune,
    mark,
):
    app.command()(command)
for study in studies():
    if study.by_hand:
        continue
    for name in (study.name, *study.aliases):
        app.command(name, hidden=name != study.name)(command_of(study))


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if show:
        tell(f"convscope {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """The `convscope` command: every fault is one line on stderr and a stable exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    status = run(arguments)
    past_stopping()
    sys.exit(status)


def run(arguments: list[str] | None = None) -> int:
    """Run one command line; return its exit status."""
    told = sys.argv[1:] if arguments is None else arguments
    try:
        with stoppable():
            return _status(told)
    except StopAsked as stop:
        return _say(stop.line(), stop.exit_status)
    except typer.Exit as end:
        return end.exit_code
    except CommandFault as fault:
        if type(fault).__name__ == "NoArgsIsHelpError":
            return _say(fault.format_message(), fault.exit_code)
        return _say(f"convscope: error[U200]: {_usage(fault)}", fault.exit_code)
    except ConvscopeError as fault:
        return fault.exit_status if fault.told else _say(fault.line(), fault.exit_status)
    except KeyboardInterrupt as fault:
        return _not_ours(fault) or _say(StopAsked(signal.SIGINT).line(), 130)
    except SystemExit as fault:
        if status := _not_ours(fault):
            return status
        raise
    except BrokenPipeError:
        # The reader of our output left (`| head`): that is its right. Keep Python from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as fault:
        return _failed(fault)


def _status(told: Sequence[str]) -> int:
    """Not by `app()`, which would end at EOFError and KeyboardInterrupt without a word."""
    _refuse_empty(told)
    command = typer.main.get_command(_needed(told))
    with command_running(), command.make_context("convscope", list(told)) as context:
        status = command.invoke(context)
    sys.stdout.flush()
    return int(status or 0)


def _needed(told: Sequence[str]) -> typer.Typer:
    """The app with what this command line can be about. To make every command with all its options
    takes half as long as to import typer, and the list of commands shows no option of theirs."""
    needed = copy(app)
    if list(told) in ([], ["--help"]):
        needed.registered_commands = [_without_options(one) for one in app.registered_commands]
    elif named := [one for one in app.registered_commands if _name(one) == told[0]]:
        needed.registered_commands = named
    return needed


def _name(command: CommandInfo) -> str:
    assert command.callback is not None
    return command.name or typer.main.get_command_name(command.callback.__name__)


def _without_options(command: CommandInfo) -> CommandInfo:
    def shown() -> None:
        """Nothing runs it."""

    shown.__doc__ = command.callback.__doc__
    bare = copy(command)
    bare.name, bare.callback = _name(command), shown
    return bare


def _failed(fault: Exception) -> int:
    if is_out_of_memory(fault):
        return _say(_no_memory(fault).line(), EnvironmentFault.exit_status)
    if is_full(fault):
        full = environment_fault(fault, Path(str(getattr(fault, "filename", None) or "")))
        return _say(full.line(), full.exit_status)
    return _not_ours(fault) or _own_bug(fault)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """An empty name means the working folder to Path; what was meant is a variable not set."""
    for place, argument in enumerate(arguments):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            where = argument or (arguments[place - 1] if place else "")
            raise UsageError("U375", where, "is empty", next_step="give a name or a value")


def _usage(fault: Any) -> str:
    context = getattr(fault, "ctx", None)
    where = f" Next: {context.command_path} --help" if context else ""
    said = printable(fault.format_message().rstrip("."))
    return said + ("" if said.endswith("?") else ".") + where


def _say(line: str, status: int) -> int:
    print(line, file=sys.stderr)  # noqa: T201
    return status


def _no_memory(fault: Exception) -> EnvironmentFault:
    asked = re.search(r"allocate ([\d.]+) ?(\w+)", str(fault))
    much = f" ({asked[1]} {asked[2]} were asked for)" if asked else ""
    return EnvironmentFault(
        "R640", "", f"memory ran out{much}", next_step="take smaller pictures or a smaller network"
    )


def _not_ours(fault: BaseException) -> int:
    """Say what somebody else's code did, where it was that; 0 where it was not."""
    if not (said := blamed(fault)):
        return 0
    told = ModelError("M574", "the network", said)
    return _say(told.line(), told.exit_status)


def _own_bug(fault: Exception) -> int:
    """Our own mistake: one line, and the traceback in a file that can be sent to us."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="convscope-crash-", suffix=".txt", delete=False, encoding="utf-8"
    ) as report:
        report.write("".join(traceback.format_exception(fault)))
    what = printable(f"{type(fault).__name__}: {fault}")
    return _say(
        f"convscope: error[X070]: a bug in convscope, not in your input: {what}. "
        f"Next: report it with {Path(report.name)}.",
        70,
    )
