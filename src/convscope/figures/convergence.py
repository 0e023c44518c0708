"""Which layers settle first? Curves over epochs, and a table beside what the paper says.

Source of what is beside ours: Zeiler and Fergus 2014, §4: "a few epochs" for low layers, 40 to 50
for high ones; it gives no other numbers.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convscope.errors import printable
from convscope.figures.style import INK, SOFT, shortened
from convscope.records.series import Convergence
from convscope.records.table import Part, Table

TICKS = (0, 1, 2, 5, 10, 20, 30, 40, 64, 100, 200, 300)
MARKERS = "osD^vP*X<>hp"


def convergence_figure(record: Convergence) -> Figure:
    """Likeness to the last epoch by layer: responses, strongest pictures, projections. Bands are
    95 % intervals over a layer's maps; rings mark 90 % of the way."""
    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    curves = (record.responses_curve, record.same_curve, record.projection_curve)
    followed = max((len(record.followed(n)) for n in range(len(record.layers))), default=0)
    titles = (
        "same responses\n(rank correlation)",
        "same strongest picture\n(share of maps)",
        f"same projection\n(cosine, up to {followed} maps a layer)",
    )
    for axes, values, title in zip(panels, curves, titles, strict=True):
        _draw(axes, record, values)
        axes.set_title(title, fontsize=8, color=INK, loc="left")
    _ring(panels[0], record)
    panels[0].set_ylabel("likeness to the last epoch", fontsize=8, color=SOFT)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(len(names), 6),
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
    )
    return figure


def convergence_table(record: Convergence, *, beside: bool = False) -> list[Part]:
    """A row a layer. beside: what the paper says at the end."""
    head = ("layer", "maps", "jumps a map", "picture settled", "projection settled")
    more = ("90 % of the way", "middle of the way", "responses at the first")
    rows: list[tuple[str, ...]] = []
    for number, layer in enumerate(record.layers):
        maps, followed = record.maps(number), record.followed(number)
        living = followed[~np.isnan(record.projection[followed, -1])]
        first = record.responses_curve[number, 0, 0]
        rows.append(
            (
                printable(layer),
                str(maps.stop - maps.start),
                f"{record.jumps[maps].sum(axis=1).mean():.1f}",
                _quartiles(record.settled_image[maps]),
                _quartiles(record.settled_projection[living]),
                _interval(record.arrived[number], "g"),
                _interval(record.centre[number], ".1f"),
                f"{first:.2f}",
            )
        )
    if beside:
        rows.append(("paper: low layers", "", "", "", "a few epochs", "", "", ""))
        rows.append(("paper: high layers", "", "", "", "40 to 50", "", "", ""))
    return [Table.of((*head, *more), rows)]


def _draw(axes: Axes, record: Convergence, values: Float64[np.ndarray, "layers epochs 3"]) -> None:
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(2, len(record.layers))))
    for number, layer in enumerate(record.layers):
        mean, low, high = values[number].T
        axes.fill_between(record.epochs, low, high, color=shades[number], alpha=0.18, linewidth=0)
        axes.plot(
            record.epochs,
            mean,
            color=shades[number],
            marker=MARKERS[number % len(MARKERS)],
            markersize=3.5 if len(record.epochs) < 20 else 0,
            linewidth=1.2,
            label=shortened(layer),
            clip_on=False,
        )
    # Half of what happens, happens in the first epochs.
    axes.set_xscale("function", functions=(np.sqrt, np.square))
    last = int(record.epochs[-1])
    ticks = [tick for tick in TICKS if record.epochs[0] <= tick < 0.85 * last] + [last]
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.set_xlim(int(record.epochs[0]), last)
    axes.set_xlabel("epoch", fontsize=8, color=SOFT)
    axes.set_ylim(min(0.0, float(np.nanmin(values))), 1.02)
    axes.tick_params(colors=SOFT, labelsize=7)
    axes.grid(axis="y", color="#e4e4e0", linewidth=0.8)
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def _ring(axes: Axes, record: Convergence) -> None:
    for number in range(len(record.layers)):
        at = int(np.searchsorted(record.epochs, record.arrived[number, 0]))
        place = (record.epochs[at], record.responses_curve[number, at, 0])
        (ring,) = axes.plot(*place, "o", color=INK, clip_on=False)
        ring.set(markersize=7.5, markeredgewidth=0.8, fillstyle="none")


def _quartiles(epochs: np.ndarray) -> str:
    if not len(epochs):
        return ""
    low, middle, high = np.percentile(epochs, (25, 50, 75))
    return f"{middle:g} ({low:g} to {high:g})"


def _interval(values: Float64[np.ndarray, "3"], form: str) -> str:
    mean, low, high = (format(value, form) for value in values)
    return f"{mean} ({low} to {high})"
