"""How do people talk to convscope from a shell?

Each command reads arguments, calls one function, saves one record and prints its path. Results go
to stdout, progress and faults to stderr; torch is imported by the commands that need it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import CommandInfo

from convscope import __version__
from convscope.cli.atlas import atlas, attach, demo, mark
from convscope.cli.explain import check, explain
from convscope.cli.optimise import optimise
from convscope.cli.predict import evaluate, layers, predict, tune
from convscope.cli.results import command_running, tell
from convscope.cli.run_study import command_of
from convscope.cli.stop import past_stopping, stoppable
from convscope.cli.train import flowers, train
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
from convscope.studies.registry import studies

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
        return _say(fault.line(), fault.exit_status)
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
