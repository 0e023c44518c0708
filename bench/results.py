"""What did the benchmarks find, as bars and as a table?

    python bench/topk.py --json bench/results/topk.json          and so on for each benchmark
    python bench/results.py

Draws `ratios.svg` beside this file from the rows that have a goal, and prints all rows with every
run; `RESULTS.md` tells what they mean.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from rows import Row

HERE = Path(__file__).parent
INK, OURS, LINE = "#808890", "#2f8f83", "#a0a6ad"
"""Greys and a green that can be read on white and on black."""


def told(path: Path) -> tuple[dict[str, str], list[Row]]:
    plain = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        Row(**{**row, "ours": tuple(row["ours"]), "theirs": tuple(row["theirs"])})
        for row in plain.pop("rows")
    ]
    return plain, rows


def table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| job | peer | ratio | range | floor, goal | ours | peer takes | memory, MB | runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        goal = "" if row.floor is None else f"{row.floor:g}, {row.goal:g}"
        memory = _memory(row)
        runs = f"{len(row.ours)} + {len(row.theirs)}" + (f", {row.noisy} noisy" * bool(row.noisy))
        job = f"{row.job} ({row.note})" if row.note else row.job
        lines.append(
            f"| {job} | {row.peer} | **{_short(row.ratio)}** | {_short(row.low)} to "
            f"{_short(row.high)} | {goal} | {_amount(row.ours, row.unit)} | "
            f"{_amount(row.theirs, row.unit)} | {memory} | {runs} |"
        )
    return lines


def raw(rows: Sequence[Row]) -> list[str]:
    """All runs, one job a line."""
    lines = []
    for row in rows:
        ours, theirs = (", ".join(f"{value:.4g}" for value in s) for s in (row.ours, row.theirs))
        lines.append(f"{row.job}, {row.unit}: {ours}; {row.peer}: {theirs}")
    return lines


def _memory(row: Row) -> str:
    if row.ours_mb is None or row.theirs_mb is None:
        return ""
    return f"{row.ours_mb:.0f}, {row.theirs_mb:.0f}"


def _amount(values: Sequence[float], unit: str) -> str:
    middle = statistics.median(values)
    return f"{middle * 1e3:.3g} ms" if unit == "s" and middle < 1 else f"{middle:.3g} {unit}"


def _short(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}" if ratio >= 10 else f"{ratio:.2f}"


def bars(rows: Sequence[Row]) -> Figure:
    """Ratios on a logarithmic axis, with their ranges; 1 is the peer."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "convscope", "font.size": 9})
    rows = sorted(rows, key=lambda row: row.ratio)
    figure = Figure(figsize=(8.0, 0.8 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        axes.barh(place, row.ratio - 1, left=1, height=0.6, color=OURS)
        axes.plot([row.low, row.high], [place, place], color=INK, linewidth=1)
        end = max(row.ratio, row.high, 1)
        axes.text(end * 1.06, place, f"{_short(row.ratio)}×", va="center", color=INK)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(min(0.7, *(r.low for r in rows)), 2.2 * max(2.0, *(r.high for r in rows)))
    axes.set_yticks(range(len(rows)), [f"{row.job}\nagainst {row.peer}" for row in rows])
    axes.tick_params(colors=INK, labelsize=7)
    axes.set_xlabel("times as fast as the peer", color=INK)
    low, high = axes.get_xlim()
    ticks = [10.0**n for n in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(axis="x", color=LINE, linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kept = sorted((HERE / "results").glob("*.json"))
    parser.add_argument("files", nargs="*", type=Path, default=kept)
    every = list[Row]()
    for path in parser.parse_args().files:
        about, rows = told(path)
        every += rows
        print("\n".join([f"{about['command']}, {about['date']}", *table(rows), *raw(rows), ""]))
    named = [row for row in every if row.unit == "s" and row.floor is not None]
    place = HERE / "ratios.svg"
    bars(named).savefig(place, transparent=True, metadata={"Date": None})
    print(place)


if __name__ == "__main__":
    main()
