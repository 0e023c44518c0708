"""How is done from Python, in one call, what a command does?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from convscope.cli.atlas import make_atlas
from convscope.core.publish import require_free
from convscope.core.run import PLAIN, Progress, Run
from convscope.core.text import as_path
from convscope.network.arguments import FolderLike, Layers, pictures_of, taking
from convscope.network.network import Network, whole
from convscope.network.tuning import Tuning
from convscope.pages.atlas import read_study
from convscope.pictures.opening import opened
from convscope.representations.projections import Choice
from convscope.trace.backward_rule import Other


@taking(pictures=pictures_of)
def atlas(
    network: Network,
    pictures: FolderLike,
    layers: Layers = None,
    *,
    out: Path | str = "atlas",
    k: int = 9,
    rule: Choice = "auto",
    other: Other = "refuse",
    title: str = "",
    studies: Sequence[Path | str] = (),
    tuning: Tuning | None = None,
    run: Run = PLAIN,
) -> Path:
    """The strongest pictures of every feature map beside their projections, as a static page.

    out: a new folder. k: pictures of each map. rule, other: of the projections, see `features`.
    title: of the page; without, made of the network's and the pictures' names. studies: folders
    that studies wrote, to be shown too. run: its progress is of one step after the other. Returns
    the path of index.html; pictures that were left out or changed are listed beside it.

    Raises what `features` and `evaluate` raise, OutputError O501 (something is there).
    """
    place, network = as_path("out", out), whole(network)
    require_free(place)
    shown = [read_study(Path(study)) for study in studies]

    @contextmanager
    def bars(_: str) -> Iterator[Progress]:
        yield run.progress or (lambda *_: None)

    names = [layers] if isinstance(layers, str) else layers
    mining = {"layers": names, "k": k, "rule": rule, "other": other, "tuning": tuning, "run": run}
    with opened(pictures) as folder:
        page = make_atlas(network, folder, place, bars, mining, title=title, studies=shown)
        if folder.skipped:
            folder.write_skipped(place / "skipped.csv")
        if folder.changes:
            folder.write_notes(place / "notes.csv")
    return page
