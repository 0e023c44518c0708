"""Error rates on ImageNet of Zeiler and Fergus 2014, table 2, to compare with."""

from __future__ import annotations

from collections.abc import Sequence

from convscope.records.predictions import Evaluation, Share

TABLE2: tuple[tuple[str, float | None, float | None, float | None], ...] = (
    ("Gunji et al. 2012", None, None, 26.2),
    ("DeCAF (Donahue et al. 2013)", None, None, 19.2),
    ("Krizhevsky et al. 2012, 1 net", 40.7, 18.2, None),
    ("Krizhevsky et al. 2012, 5 nets", 38.1, 16.4, 16.4),
    ("Krizhevsky et al. 2012, 1 net, ImageNet 2011 too", 39.0, 16.6, None),
    ("Krizhevsky et al. 2012, 7 nets, ImageNet 2011 too", 36.7, 15.4, 15.3),
    ("paper, Krizhevsky's net rebuilt, 1 net", 40.5, 18.1, None),
    ("paper, 1 net (figure 3)", 38.4, 16.5, None),
    ("paper, 5 nets (figure 3) (a)", 36.7, 15.3, 15.3),
    ("paper, 1 net, layers 3-5 of 512-1024-512 maps (b)", 37.5, 16.0, 16.1),
    ("paper, 6 nets, (a) and (b)", 36.0, 14.7, 14.8),
    ("Howard 2013", None, None, 13.5),
    ("Clarifai, ILSVRC 2013", None, None, 11.7),
)
"""Network, then errors in % on ImageNet 2012: validation top-1 and top-5, test top-5.
Source: Zeiler and Fergus 2014, table 2 (ECCV table 1)."""


def table2(result: Evaluation) -> list[str]:
    """The paper's table with our rows below, in Markdown; ± is half of a 95 % interval."""
    lines = ["| error in % | val top-1 | val top-5 | test top-5 |", "|---|---|---|---|"]
    for name, *errors in TABLE2:
        lines.append(_row(name, ["" if error is None else f"{error:.1f}" for error in errors]))
    many = f"{len(result.labels):,} pictures, {result.views} view{'s' * (result.views > 1)}"
    for name, top1, top5 in result.members:
        lines.append(
            _row(f"ours, {name}", [f"{100 - 100 * top1:.1f}", f"{100 - 100 * top5:.1f}", ""])
        )
    which = (
        f"mean of {len(result.members)} nets" if result.members else str(result.origin.get("model"))
    )
    ours = [_error(result.error1), _error(result.error5), ""]
    return [*lines, _row(f"**ours, {which}, {many}**", ours)]


def _error(error: Share) -> str:
    return f"**{100 * error.part:.1f}** ({100 * error.low:.1f}–{100 * error.high:.1f})"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"
