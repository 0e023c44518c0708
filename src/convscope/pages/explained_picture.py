"""What does the page of one explained picture say beside each drawing?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from convscope.errors import printable
from convscope.figures.attribution import drawn, legend
from convscope.figures.verdicts import TITLES, summary, verdict
from convscope.pages.describe import assumption
from convscope.pages.store import save
from convscope.records.explanation import Explanation
from convscope.records.faithfulness import Faithfulness
from convscope.units import Box

REWRITTEN = " rewritten"


def picture(found: Explanation, folder: Path, at: str) -> dict[str, Any]:
    """Write the drawings; return what the page says beside them."""
    save(found.picture, folder / "picture.webp", exact=False)
    return {
        "name": printable(found.prediction.picture),
        "summary": summary(found),
        "target": printable(found.target_name),
        "label": printable(found.label),
        "notes": [printable(note) for note in found.notes],
        "assumed": assumption(found.origin),
        "picture": f"{at}picture.webp",
        "boxes": [_box(found, box) for box in found.boxes],
        "size": found.picture.shape[:2],
        "classes": [
            (printable(name), f"{p:.1%}", float(p))
            for name, p in zip(found.prediction.names, found.prediction.probability, strict=True)
        ],
        "maps": [_map(found, number, folder, at) for number in range(len(found.methods))],
        "refused": {name: printable(why) for name, why in found.refused.items()},
        "untested": {name: printable(why) for name, why in found.untested.items()},
        "agreement": _agreement(found),
        "origin": {name: printable(str(value)) for name, value in found.origin.items() if value},
    }


def _box(found: Explanation, box: Box) -> tuple[int, int, int, int]:
    part = box.clipped(*found.picture.shape[:2])
    return part.left, part.top, part.width, part.height


def _map(found: Explanation, number: int, folder: Path, at: str) -> dict[str, Any]:
    seen, test, said = found.maps[number], found.tests[number], verdict(found, number)
    save(drawn(found.picture, seen), folder / f"map{number}.webp", exact=False)
    size = "" if seen.raw is None else f", {seen.raw.shape[0]}×{seen.raw.shape[1]}"
    facts = [("raw peak", f"{seen.peak:.4g}")]
    if not np.isnan(found.coverage[number]):
        facts.append(("half lies in", f"{found.coverage[number]:.0%} of the picture"))
    if test.is_known:
        facts += [
            ("hidden first", _against(test.deletion_area, test.random_deletion_areas)),
            ("shown first", _against(test.insertion_area, test.random_insertion_areas)),
            ("seen alone", f"{test.drop:.0%} lost"),
        ]
    if len(test.road_share):
        facts.append(("ROAD", f"{test.road:+.3f}"))
    facts += _sanity(found, number)
    if "coverage" in seen.origin:
        facts.append(
            ("by the rule", printable(str(seen.origin["coverage"])).removesuffix(REWRITTEN))
        )
    if "completeness" in seen.origin:
        facts.append(("of the score", _gap(seen.origin["completeness"])))
    return {
        "name": found.methods[number],
        "title": seen.method,
        "where": printable(f"{seen.layer}{size}"),
        "variant": seen.variant,
        "file": f"{at}map{number}.webp",
        "legend": legend(seen),
        "level": said.level,
        "verdict": TITLES[said.level],
        "headline": said.headline,
        "reasons": [*said.reasons, *(printable(str(n)) for n in seen.origin.get("notes", ()))],
        "limit": said.limit,
        "facts": facts,
        "curves": _curves(test),
    }


def _against(value: float, chance: tuple[float, ...]) -> str:
    return f"{value:.3f} (random {float(np.mean(chance)):.3f})" if chance else f"{value:.3f}"


def _sanity(found: Explanation, number: int) -> list[tuple[str, str]]:
    facts = []
    if number < len(found.randomised):
        one = found.randomised[number]
        steps = ", ".join(_rank(float(value)) for value in one.spearman_absolute)
        facts.append(("random weights", f"ρ {steps}"))
    if number < len(found.sensitive):
        facts.append(("other class", f"ρ {_rank(found.sensitive[number].spearman)}"))
    return facts


def _rank(value: float) -> str:
    return "flat map" if np.isnan(value) else f"{value:.2f}"


def _gap(told: Any) -> str:
    gap = told.get("relative gap") if isinstance(told, Mapping) else None
    known = isinstance(gap, float) and math.isfinite(gap)
    return f"{gap:.1%} missing" if known else "unknown part missing"


def _curves(test: Faithfulness) -> dict[str, str]:
    """Points of polylines in a box of 100 by 40, 0 at the bottom."""
    if not test.is_known:
        return {}
    top = max(1e-9, float(max(test.deletion.max(), test.insertion.max(), test.score)))

    def points(curve: Float32[np.ndarray, "steps"]) -> str:
        return " ".join(
            f"{100 * x:.1f},{40 - 38 * min(1.0, y / top):.1f}"
            for x, y in zip(test.share.tolist(), curve.tolist(), strict=True)
        )

    curves = {"deletion": points(test.deletion), "insertion": points(test.insertion)}
    if len(test.random_deletion):
        curves["random_deletion"] = points(test.random_deletion.mean(0))
        curves["random_insertion"] = points(test.random_insertion.mean(0))
    return curves


def _agreement(found: Explanation) -> dict[str, Any] | None:
    if found.agreement is None:
        return None
    rows = [[_rank(float(value)) for value in row] for row in found.agreement.spearman]
    return {"methods": found.agreement.methods, "rows": rows}
