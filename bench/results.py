"""What did the benchmarks find, as a table and as bars?

    python bench/topk.py --json bench/results/topk.json          and so on for each benchmark
    python bench/results.py bench/results/*.json

Writes `RESULTS.md` and `ratios.svg` beside this file, from what the benchmarks kept with `--json`.
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
HEAD = """# Benchmark results

Ours and a named peer on the same work, in turn, in one process. The ratio is the peer's median time
over ours: above 1 we take less. Its range is what the single runs allow. "Noisy" runs were kept
though other programs were at work. Seconds do not travel between machines; ratios nearly do.
"""


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
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the two files")
    chosen = parser.parse_args()
    lines, every = [HEAD], list[Row]()
    for path in chosen.files:
        about, rows = told(path)
        every += rows
        lines += [f"## `{about['command']}`", "", f"{about['date']}, {about['machine']}.", ""]
        lines += [*table(rows), "", "Every run:", "", "```text", *raw(rows), "```", ""]
    lines.insert(1, "![Ratios as bars](ratios.svg)\n")
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "RESULTS.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    times = [row for row in every if row.unit == "s"]
    if times:
        picture = chosen.out / "ratios.svg"
        bars(times).savefig(picture, transparent=True, metadata={"Date": None})
    print(chosen.out / "RESULTS.md")


if __name__ == "__main__":
    main()
