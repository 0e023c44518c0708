"""What a study is: its options, its command, how it is measured and shown, and its atlas page.

Each study has a folder, whose `__init__.py` holds a frozen dataclass of options and one `Study`;
`studies/registry.py` lists them. From that its command, its page of an atlas, its row in
docs/studies.md and the list for its tests are made. Nothing here imports torch: `--help` is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from convscope.run import Progress, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convscope.network.network import Network
    from convscope.pictures.pictures import Pictures
    from convscope.records.record import Record
    from convscope.records.table import Part

Needs = Literal["network", "picture folder", "pictures", "pictures or none"]


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


class Ask(Protocol):
    """What a study may ask of the command that runs it."""

    @property
    def given(self) -> Sequence[str] | str | None:
        """Pictures as the command line names them."""

    @property
    def out(self) -> Path:
        """The folder that the result will be."""

    def network(self, name: str | None = None, *, checkpoint: Path | None = None) -> Network:
        """The network of the command line, or another one opened in the same way."""

    def pictures(self, names: Sequence[str] | str | None = None) -> Pictures:
        """The pictures of the command line, or others read in the same way; told about."""

    def progress(self, what: str) -> AbstractContextManager[Progress]:
        """A bar on a terminal."""

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


@dataclass(frozen=True)
class Study:
    """One study, as people meet it.

    `studies/FOLDER/study.py` has the function `FUNCTION(network, pictures, **options)`, or, where
    more is to be opened than that, `from_command(ask, options)`, which gives its record or records
    by folder. `figure.py` has `show(result, options)`, which gives `Shown`.
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
    options: type
    needs: tuple[Needs, ...] = ("network", "picture folder")
    scores: bool = False
    """Whether it uses the network's scores, so that what they were taken for is told."""
    doing: str = "looking"
    """What its progress bar says."""
    paper: str = ""
    """Which figure or table of Zeiler and Fergus 2014 it repeats."""
    beside: bool = False
    """Whether the paper's numbers can be put beside its own (`--beside`)."""
    function: str = ""
    """Its public name; the folder's, if none is given."""
    command: str = ""
    """Its name in the shell; the folder's with hyphens, if none is given."""
    aliases: tuple[str, ...] = ()
    """Older names of the command, which still work."""

    @property
    def name(self) -> str:
        return self.command or self.folder.replace("_", "-")

    def measure(self, ask: Ask, options: Any) -> Any:
        """Its result: a record, or records by the names of their folders."""
        module = import_module(f"convscope.studies.{self.folder}.study")
        if hasattr(module, "from_command"):
            return module.from_command(ask, options)
        network, told = ask.network(), arguments(options)
        with ask.pictures() as folder, ask.progress(self.doing) as tick:
            run = Run(seed=told.pop("seed", 0), progress=tick)
            found = getattr(module, self.function or self.folder)(network, folder, **told, run=run)
            folder.check_bad()
        return found

    def show(self, result: Any, options: Any) -> Shown:
        module = import_module(f"convscope.studies.{self.folder}.figure")
        shown: Shown = module.show(result, options)
        return shown


def arguments(options: Any) -> dict[str, Any]:
    """The options as keyword arguments; those that are only for showing are left out."""
    shown_only = {"beside"}
    return {
        one.name: getattr(options, one.name)
        for one in fields(options)
        if one.name not in shown_only and not one.metadata.get("shown")
    }


def records_of(result: Record | Mapping[str, Record]) -> Mapping[str, Record]:
    """By folder; "" is the result's own."""
    return result if isinstance(result, Mapping) else {"": result}


def only_shown(default: Any) -> Any:
    """A field that is for figures and tables alone, and not given to the study's function."""
    return field(default=default, metadata={"shown": True})


def names(text: str) -> list[str] | None:
    """Names with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()] or None


def labels(path: Path) -> Mapping[str, int]:
    """Class indices by file name or class folder. Raises UsageError U313."""
    from convscope.pictures.annotations import read_labels

    return read_labels(path)
