"""What a study is: its options, its command, how it is measured and shown, and its atlas page.

Each study has a folder, whose `__init__.py` holds a frozen dataclass of options and one `Study`;
`studies/registry.py` lists them. From that its command, its page of an atlas, its row in
docs/studies.md and the list for its tests are made. Nothing here imports torch: `--help` is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args, get_type_hints

from convscope.core.errors import UsageError
from convscope.core.run import Progress, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convscope.core.record import Record
    from convscope.core.text import Part
    from convscope.core.units import Box
    from convscope.network.network import Network
    from convscope.pictures.pictures import Pictures


@dataclass(frozen=True)
class Option:
    """One option of a study, as an annotation of its field: `Annotated[int, Option("Side.")]`."""

    help: str
    names: tuple[str, ...] = ()
    """On the command line; by default the field's, as `--per-layer`."""
    min: float | None = None
    max: float | None = None
    shell: Any = None
    """Type on the command line, where it is another than the field's."""
    read: Callable[[Any], Any] | None = None
    """Makes the value of what stands on the command line; not asked where that is None."""
    default: Any = None
    """On the command line, where the field's cannot be written there."""
    command_only: bool = False
    """Whether it is for showing, or for `from_command`, and not given to the study's function."""


class Ask(Protocol):
    """What a study may ask of the command that runs it."""

    @property
    def model(self) -> str:
        """The network as the command line names it."""

    @property
    def given(self) -> Sequence[str] | str | None:
        """Pictures as the command line names them."""

    @property
    def out(self) -> Path:
        """The folder that the result will be."""

    @property
    def told(self) -> Mapping[str, Any]:
        """What the command line says of the network's preprocessing, as `load` takes it."""

    def network(self, name: str | None = None, *, checkpoint: Path | None = None) -> Network:
        """The network of the command line, or another one opened in the same way."""

    def pictures(self, names: Sequence[str] | str | None = None) -> Pictures:
        """The pictures of the command line, or others read in the same way; told about."""

    def split(self, validation: str | None) -> tuple[Pictures, Pictures]:
        """Pictures to train on and to validate by, out of those of the command line."""

    def progress(self, what: str) -> Progress:
        """A bar on a terminal, which appears with its first step in the place of any other."""

    def run(self, what: str) -> Run:
        """The same for passes over pictures, with where their finished parts are kept."""

    def training(self) -> AbstractContextManager[Mapping[str, Any]]:
        """`progress` and `stop` of a training, as keyword arguments."""

    def say(self, line: str) -> None:
        """A remark on stderr."""


@dataclass(frozen=True)
class Shown:
    """What a result looks like: tables and figures by the names of their files, and words."""

    figures: Mapping[str, Figure]
    tables: Mapping[str, Sequence[Part]] = field(default_factory=dict)
    words: Sequence[str] = ()
    """Printed below the tables."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Others, by name."""
    remarks: Sequence[str] = ()
    """On stderr."""
    printed: bool = True
    """Whether the tables are printed too."""


@dataclass(frozen=True)
class Study:
    """One study, as people meet it.

    `studies/FOLDER/study.py` has the function `FUNCTION(network, pictures, **options)`, or, where
    more is to be opened than that, `from_command(ask, options)`, which gives its record, records
    by folder, or `Illustrated`. `figure.py` has `show(result, options)`, which gives `Shown`.
    """

    folder: str
    records: tuple[str, ...]
    """Kinds of the records it writes, the one that stands for it first."""
    title: str
    shows: str
    """What its page in an atlas shows."""
    limits: str
    """What it does not."""
    summary: str
    """First sentence of the command's help."""
    example: str
    page: str
    """Of the documentation, `docs/PAGE.md`."""
    options: Any = None
    """The dataclass of its options; None where its command stands in `cli/`."""
    needs: tuple[str, ...] = ("network", "picture folder")
    """Its arguments, out of those that `cli/app.py` knows, or fields of its options."""
    pictures: str = ""
    """Which pictures, where that is to be said."""
    scores: bool = False
    """Whether it uses the network's scores, so that what they were taken for is told."""
    doing: str = "looking"
    """What its progress bar says."""
    paper: str = ""
    """Which figure or table of Zeiler and Fergus 2014 it repeats."""
    function: str = ""
    """Its public name; the folder's, if none is given."""
    command: str = ""
    """Its name in the shell; the folder's with hyphens, if none is given."""
    aliases: tuple[str, ...] = ()
    """Older names of the command, which still work."""
    resumable: bool = False
    """Whether the same command may go on in its folder: its results are in `result` there."""
    about: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """Title, shows and limits of kinds of records that have their own."""
    home: str = ""
    """Its folder, where that is another study's too."""
    by_hand: bool = False
    """Whether its command stands in `cli/` instead, as it writes something else than figures."""

    @property
    def name(self) -> str:
        return self.command or self.folder.replace("_", "-")

    def module(self, part: str) -> Any:
        """One of its folder's files."""
        return import_module(f"convscope.studies.{self.home or self.folder}.{part}")

    def call(self, *given: Any, **options: Any) -> Any:
        """Its public function."""
        module = self.module("study")
        return getattr(module, self.function or self.folder)(*given, **options)

    def measure(self, ask: Ask, options: Any) -> Any:
        """Its result: a record, or records by the names of their folders."""
        module = self.module("study")
        if hasattr(module, "from_command"):
            return module.from_command(ask, options)
        network = ask.network()
        with ask.pictures() as folder:
            result = self.call(network, folder, **arguments(options, ask.run(self.doing)))
            folder.check_bad()
        return result

    def show(self, result: Any, options: Any) -> Shown:
        shown: Shown = self.module("figure").show(result, options)
        return shown


@dataclass(frozen=True)
class Illustrated:
    """A record with what its figure needs beside it, such as pictures."""

    record: Record
    pictures: Any


def records_of(result: Any) -> Mapping[str, Record]:
    """By folder; "" is the result's own."""
    if isinstance(result, Mapping):
        return result
    return {"": result.record if isinstance(result, Illustrated) else result}


def arguments(options: Any, run: Run) -> dict[str, Any]:
    """The options that the study's function takes, as its keyword arguments, and its `run`."""
    kind = type(options)
    taken = {
        one.name: getattr(options, one.name)
        for one in fields(kind)
        if not option_of(kind, one.name)[1].command_only
    }
    seed = taken.pop("seed", 0)
    return {**taken, "run": replace(run, seed=seed)}


@cache
def hints(kind: Any) -> Mapping[str, Any]:
    """Types of a dataclass's fields with what is said of them. Each group of options is asked for
    by many commands, and to read its annotations takes as long as all else of `--help`."""
    return get_type_hints(kind, include_extras=True)


def option_of(options: type, name: str) -> tuple[Any, Option]:
    """Type of a field, and what is said of it as an option."""
    kind, *said = get_args(hints(options)[name])
    return kind, next(one for one in said if isinstance(one, Option))


def names(text: str) -> list[str] | None:
    """Names with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()] or None


def some_names(text: str) -> Sequence[str]:
    """The same for a field that may be empty, but not None. No lambda: one in an annotation does
    not see its module."""
    return names(text) or ()


def epochs(text: str) -> Sequence[int] | None:
    """Epochs with commas between. Raises UsageError U386 on anything else."""
    wanted = names(text) or []
    if not all(name.isascii() and name.isdigit() and len(name) < 8 for name in wanted):
        raise UsageError("U386", text, "is no list of epochs", next_step="write them as 1,2,5,10")
    return [int(name) for name in wanted] or None


def class_asked(text: str) -> int | str:
    """A class by its index or name."""
    return int(text) if text.isdecimal() else text


def vector(text: str) -> str | int:
    """auto, flat, or a whole number. Raises UsageError U425."""
    from convscope.representations.embedding import require_way

    way = int(text) if text.isascii() and text.isdecimal() else text
    require_way(way)
    return way


def labels(path: Path) -> Mapping[str, int]:
    """Class indices by file name or class folder. Raises UsageError U313."""
    from convscope.pictures.annotations import read_labels

    return read_labels(path)


def boxes_of(
    folder: Pictures, path: Path | None, say: Callable[[str], None]
) -> Mapping[str, Sequence[Box]] | None:
    """Boxes of the file, or of boxes.json in the folder, if that is there; told about."""
    from convscope.pictures.annotations import BOXES_FILE, read_boxes

    place = path or folder.beside(BOXES_FILE)
    if path is None and not place.is_file():
        return None
    boxes = read_boxes(place)
    known = sum(name in boxes for name in folder.names)
    unknown = len(boxes.keys() - set(folder.names)) if path is not None else 0
    more = f"; {unknown} of its names are not among them" if unknown else ""
    say(f"boxes: {place}, for {known} of {len(folder)} pictures{more}")
    return boxes


def spread(count: int, limit: int | None) -> list[int] | None:
    """So many numbers, evenly over all; None for all."""
    if limit is None or limit >= count:
        return None
    return [round(place * (count - 1) / max(1, limit - 1)) for place in range(limit)]


BESIDE = Option(
    "Put the numbers of Zeiler and Fergus 2014 beside.", names=("--beside",), command_only=True
)
VECTOR = Option(
    "How maps become a vector: auto, flat, or the side of a grid of means.",
    shell=str,
    read=vector,
)
CACHE = Option("Folder that keeps features, so that none is computed twice.")
LAYER = Option("Module, or pixels; default: the last step before the scores.")
BOXES = Option(
    "JSON {name: [[xmin, ymin, xmax, ymax], …]}; default: boxes.json of the folder.",
    command_only=True,
)
TEST = Option("Most test pictures of each class.")
FOLDS = Option("Random divisions into training and test pictures.")
