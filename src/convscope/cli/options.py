"""Which options do several commands have, and how does a command take a whole group of them?

A group is a frozen dataclass whose fields are `Annotated[type, typer.Option(…)]` with defaults. A
command under `@expanded` has parameters of such types; in the shell they are the groups' options,
listed after its own.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from functools import wraps
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from convscope.cli.results import reporting, say
from convscope.core.errors import (
    ConvscopeError,
    EnvironmentFault,
    OutputError,
    StopAsked,
    Stopped,
    UsageError,
    shown,
)
from convscope.core.publish import require_free
from convscope.studies.base import hints

if TYPE_CHECKING:
    from convscope.core.run import Progress, Run
    from convscope.network.network import Network
    from convscope.pictures.pictures import Frame, Picture, Pictures

PARTS = ("size", "resize", "interpolation", "mean", "std")
"""Options of the preprocessing, as `Preprocess.changed` takes them."""
ANY_MODEL = (
    "zfnet, torchvision:NAME, timm:NAME, package.module:factory, a run's folder, or a .toml that "
    "--remember wrote."
)
Model = Annotated[str, typer.Argument(help=ANY_MODEL)]


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer is to see it: each parameter that is a group became its fields."""
    known = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in known.items() if is_dataclass(kind)}
    own = [
        one.replace(annotation=known[name])
        for name, one in inspect.signature(command).parameters.items()
        if name not in groups
    ]
    shown = [*own, *(option for kind in groups.values() for option in _options(kind))]

    @wraps(command)
    def run(**told: Any) -> None:
        built = {
            name: kind(**{field.name: told.pop(field.name) for field in _told_fields(kind)})
            for name, kind in groups.items()
        }
        out = told.get("out") or next(
            (group.out for group in built.values() if hasattr(group, "out")), None
        )
        passing = next((group for group in built.values() if isinstance(group, Passing)), None)
        if passing is not None and passing.new and out is not None:
            out = passing.fresh(out)
            told |= {"out": out} if "out" in told else {}
            built = {
                name: replace(group, out=out) if hasattr(group, "out") else group
                for name, group in built.items()
            }
        with ExitStack() as ends:
            if passing is not None and out is not None:
                ends.enter_context(passing.keeping(out))
            for group in built.values():
                if isinstance(group, Reading):
                    ends.enter_context(reporting(group.opened, out))
            command(**told, **built)

    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in shown}
    return run


def _told_fields(group: Any) -> list[Field[Any]]:
    return [field for field in fields(group) if field.init]


def _options(group: Any) -> list[inspect.Parameter]:
    kinds = hints(group)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=field.default,
            annotation=kinds[field.name],
        )
        for field in _told_fields(group)
    ]


@dataclass(frozen=True)
class Ready:
    """How pictures are made ready for a network, and what its classes are called."""

    size: Annotated[
        str | None, typer.Option(help="Input in pixels: 224, or HEIGHTxWIDTH; default: its own.")
    ] = None
    resize: Annotated[
        str | None,
        typer.Option(
            help="Shorter side before the centre is cut, HEIGHTxWIDTH, or none: stretched to the "
            "size; default: its own, or that times the size over its own size."
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(help="Subtracted from 0 to 1: 0.5, or R,G,B; imagenet; none; default: own."),
    ] = None
    std: Annotated[
        str | None, typer.Option(help="Divided by: 0.5, or R,G,B; imagenet; none; default: own.")
    ] = None
    interpolation: Annotated[
        str | None, typer.Option(help="bilinear, bicubic, nearest, lanczos, box or hamming.")
    ] = None
    preprocess: Annotated[
        str | None,
        typer.Option(
            help="Instead: package.module:transform (torchvision's, timm's), or a "
            "preprocessor_config.json."
        ),
    ] = None
    classes: Annotated[
        str | None,
        typer.Option(help="Names: a file of them (a line each, or JSON), or a,b,c; or how many."),
    ] = None

    def told(self) -> dict[str, Any]:
        """What is told, as `load` takes it. Raises UsageError U233."""
        parts = {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}
        if self.preprocess is not None and parts:
            what = "says all of the preprocessing"
            step = f"leave out --{next(iter(parts))}"
            raise UsageError("U233", "--preprocess", what, next_step=step)
        return {"preprocess": self.preprocess or parts or None, "classes": self.classes}


@dataclass(frozen=True)
class Opening(Ready):
    """How a network is opened."""

    checkpoint: Annotated[Path | None, typer.Option(help="Weights: .safetensors, .pt or .pth.")] = (
        None
    )

    remember: Annotated[
        Path | None,
        typer.Option(help="New file.toml for all this, to be given as the network afterwards."),
    ] = None

    output: Annotated[
        str | None,
        typer.Option(help="Where its scores are in what it puts out: 1, logits, out.logits, …"),
    ] = None
    scores: Annotated[
        str | None,
        typer.Option(
            help="What they are: logits, probabilities, log-probabilities, sigmoid (labels that "
            "stand each for itself) or sigmoid-logits; default: found."
        ),
    ] = None

    def scoring(self, model: str) -> Network:
        """The network, for a command that needs its scores: what its output was taken for is
        told too."""
        from convscope.network.outputs import meaning

        network = self.network(model)
        for note in meaning(network).notes:
            say(note)
        return network

    def network(self, model: str) -> Network:
        """The network; what was repaired or assumed is told."""
        network = self.load(model)
        for note in network.notes:
            say(note)
        return network

    def load(self, model: str) -> Network:
        """The network, for a command that tells the notes in its own way."""
        from convscope.network.load import load

        if self.remember is not None:
            require_free(self.remember)
        network = load(
            model, self.checkpoint, output=self.output, scores=self.scores, **self.told()
        )
        if self.remember is not None:
            say(f"remembered in {self._remembered(model, self.remember)}")
        return network

    def other(self, checkpoint: Path | None) -> Opening:
        """For another network beside the first."""
        return replace(self, checkpoint=checkpoint, remember=None)

    def _remembered(self, model: str, place: Path) -> Path:
        """What was told here, and else in the file that named the network."""
        from convscope.network.load import (
            KEYS,
            SUFFIX,
            Remembered,
            classes_asked,
            remember,
            remembered,
        )

        kept = remembered(model) if model.endswith(SUFFIX) else Remembered(model)
        told: dict[str, Any] = {key: getattr(self, key, None) for key in KEYS if key != "network"}
        if self.checkpoint is not None:
            told["checkpoint"] = str(self.checkpoint)
        if self.classes is not None:
            count, names = classes_asked(self.classes)
            told["classes"] = names or count
        told = {key: value for key, value in told.items() if value is not None}
        parts = [part for part in PARTS if part in told]
        if kept.preprocess and parts:
            what = f"of {model} is {kept.preprocess}, which cannot be remembered with another"
            raise UsageError("U233", f"--{parts[0]}", what, next_step="leave out --remember")
        if self.preprocess is not None:  # it says all
            told = dict.fromkeys(PARTS) | told
        written = replace(kept, **told)
        code = written.network.partition(":")[0].replace(".", "/") + ".py"
        if place.resolve().parent != Path.cwd() and Path(code).is_file():
            say(f"{place} names {written.network}, whose code lies here: it works from this folder")
        return remember(place, written)


@dataclass(frozen=True)
class Sending:
    """How activations are sent down to the pixels."""

    rule: Annotated[
        str,
        typer.Option(
            help="Of projections: deconvnet, guided, both, or auto: deconvnet where the switches "
            "of max pools stand on the way, guided where none do."
        ),
    ] = "auto"
    other: Annotated[
        str, typer.Option(help="Activations such as GELU on the way down: refuse, or gradient.")
    ] = "refuse"


@dataclass(frozen=True)
class Passing:
    """How passes over pictures are computed, and where what is finished is kept meanwhile."""

    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that run the network on parts of the pictures."),
    ] = None
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of torch, in each; results depend on it a little.")
    ] = None
    engine: Annotated[
        str | None,
        typer.Option(metavar="ray", help="Where parts are computed: ray, on a Ray cluster."),
    ] = None
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the Ray cluster; default: $RAY_ADDRESS, or this machine."),
    ] = None
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs for each process on a Ray cluster; 0.5: two on one.")
    ] = 0
    run_folder: Annotated[
        str | None,
        typer.Option(help="Folder or URL for finished parts; default: OUT-run, until OUT is done."),
    ] = None
    new: Annotated[
        bool, typer.Option("--new", help="Begin anew, under a name with a number if OUT is taken.")
    ] = False

    def folder(self, out: Path) -> str:
        """Where the finished parts of what becomes `out` are kept."""
        return self.run_folder or str(out.with_name(f"{out.name}-run"))

    def run(self, out: Path, progress: Progress | None = None) -> Run:
        from convscope.cli.stop import StopSignals
        from convscope.core.run import Run

        return Run(
            progress=progress,
            stop=StopSignals(),
            folder=self.folder(out),
            engine=self._computing(),
            threads=self.threads,
        )

    def __post_init__(self) -> None:
        """Raises UsageError U224."""
        if self.engine not in (None, "ray"):
            raise UsageError("U224", f"--engine {shown(self.engine)}", "there is only ray")
        if self.engine is None and (self.address is not None or self.gpus):
            option = "--gpus" if self.address is None else "--address"
            what = "is for Ray clusters alone"
            raise UsageError("U224", option, what, next_step="add --engine ray, or leave it out")

    def _computing(self) -> Any:
        """What computes the parts; None for this process."""
        if self.engine is not None:
            from convscope.scale.ray_engine import RayEngine

            return RayEngine(self.address, self.processes, self.gpus)
        if self.processes is None:
            return None
        from convscope.scale.processes import Processes

        return Processes(self.processes)

    def over(self, out: Path) -> list[Path]:
        """What is of no use once the result is there."""
        return [] if self.run_folder else [Path(self.folder(out))]

    def fresh(self, out: Path) -> Path:
        """`out`, or the first of its names with a number that neither a result nor parts have."""
        names = chain([out], (out.with_name(f"{out.name}-{number}") for number in count(2)))
        return next(
            one
            for one in names
            if not one.exists() and (self.run_folder or not Path(self.folder(one)).exists())
        )

    @contextmanager
    def keeping(self, out: Path) -> Iterator[None]:
        """Where the command does not come to its end, say what is kept, or leave nothing."""
        from convscope.pictures.remote import is_url, redacted

        place = Path(self.folder(out))
        if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(out)):
            what = "is to hold the result, and cannot hold finished parts too"
            step = "name another folder with --run-folder, or leave it out"
            raise OutputError("O501", str(place), what, next_step=step)
        was_there = place.exists()
        try:
            yield
        except (StopAsked, ConvscopeError) as fault:
            goes_on = isinstance(fault, StopAsked | EnvironmentFault | Stopped)
            goes_on |= not was_there or getattr(fault, "code", "") == "D118"
            if isinstance(fault, OutputError):
                pass  # what is there may be another command's
            elif self.run_folder and is_url(self.run_folder):
                if isinstance(fault, StopAsked | EnvironmentFault | Stopped):
                    fault.kept = fault.kept or f"what is finished, in {redacted(self.run_folder)}"
            elif any(place.rglob("*.seg")):
                if goes_on:
                    fault.kept = fault.kept or f"the finished parts, in {place}"
            elif not was_there and not self.run_folder:
                shutil.rmtree(place, ignore_errors=True)
            self._mend(fault, out)
            raise

    def _mend(self, fault: StopAsked | ConvscopeError, out: Path) -> None:
        """Advice that these options make untrue."""
        if isinstance(fault, ConvscopeError) and fault.code in ("O514", "O515"):
            if self.run_folder and "--new" in fault.next_step:
                fault.next_step = "give the same command and pictures as then, or name another "
                fault.next_step += "--run-folder"
        elif self.new and fault.kept and isinstance(fault, StopAsked | EnvironmentFault | Stopped):
            # --new again would begin once more, under another number
            is_ill = isinstance(fault, EnvironmentFault) and fault.next_step
            fault.next_step = f"{fault.next_step}, then " if is_ill else ""
            fault.next_step += f"the same command without --new and with --out {out} goes on"


@dataclass(frozen=True)
class Reading:
    """How pictures are read."""

    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unusable pictures allowed, 0 to 1.")
    ] = 0.01
    range: Annotated[
        str,
        typer.Option(
            metavar="auto|full|LOW,HIGH", help="Black and white of pictures of more than 8 bits."
        ),
    ] = "full"
    exif: Annotated[
        str, typer.Option(metavar="ignore|apply", help="Whether pictures are turned as EXIF says.")
    ] = "ignore"
    background: Annotated[
        str,
        typer.Option(
            metavar="COLOUR|none", help="Below transparent pixels: black, white, grey or R,G,B."
        ),
    ] = "black"
    opened: list[Any] = field(default_factory=list, init=False)
    """The folders that a command has opened: at its end they are reported."""

    @property
    def ways(self) -> dict[str, Any]:
        return {"range": self.range, "exif": self.exif, "background": self.background}

    def open(self, name: str, *, workers: int = 1) -> Pictures:
        """What `open_pictures` makes of the name."""
        from convscope.pictures.opening import open_pictures

        return self._told(open_pictures(name, workers=workers, **self.ways))

    def open_all(self, names: Sequence[str]) -> list[Pictures]:
        """What `open_all` makes of several names: single pictures become one folder."""
        from convscope.pictures.opening import open_all

        return [self._told(folder) for folder in open_all(names, **self.ways)]

    def one_folder(self, names: Sequence[str]) -> Pictures:
        """A folder or a set by its name, or pictures as one. Raises UsageError U412 (several)."""
        found = self.open_all(names)
        if len(found) != 1:
            step = "name one folder, or pictures"
            raise UsageError("U412", " ".join(names), "is more than one folder", next_step=step)
        return found[0]

    def one(self, path: Path | str, framing: Frame | None = None) -> Picture:
        """A single file, as `one_picture` reads it; what was changed in it is told."""
        from convscope.pictures.pictures import one_picture

        found = one_picture(path, framing, **self.ways)
        for note in found.notes:
            say(f"note: {found.name}: {note}")
        return found

    def _told(self, folder: Pictures) -> Pictures:
        """With what is odd about it, before the work."""
        folder.max_bad = self.max_bad
        if folder.remarks:
            say(f"{folder.place}: {'; '.join(folder.remarks)}")
        self.opened.append(folder)
        return folder
