"""How large is each variant, and how often is it wrong? Table 3 of the paper, with ours beside."""

from __future__ import annotations

from collections.abc import Iterator

from convscope.errors import printable
from convscope.records.table import Part, Table
from convscope.studies.ablation.record import PAPER, Ablation

PARTS = (("training", 0), ("validation", 0), ("validation", 1))


def ablation_table(record: Ablation, *, beside: bool = False) -> list[Part]:
    """A row a variant; what the errors mean stands below. beside: the paper's errors too."""
    head = ["variant", "parameters", "multiply-adds", "train top-1", "val top-1", "val top-5"]
    head += ["against its base", "paper: train top-1", "val top-1", "val top-5"]
    rows = [list(_row(record, number)) for number in range(len(record.variants))]
    columns = list(zip(head, *rows, strict=True))
    kept = [column for column in columns[: None if beside else -3] if any(column[1:])]
    names, *rest = zip(*kept, strict=True)
    told = [f"{name}: {printable(why)}" for name, why in _named(record) if why]
    return [Table.of(names, rest), *_protocol(record), *told]


def _row(record: Ablation, number: int) -> Iterator[str]:
    name = record.variants[number]
    yield name
    yield f"{record.parameters[number]:,}"
    work = int(record.multiply_adds[number])
    yield f"{work / 1e9:.3f} G" if work >= 1e9 else f"{work / 1e6:.1f} M"
    for part, top in PARTS:
        yield "failed" if record.failed[number] else _error(record, part, top, number)
    yield _against(record, number)
    yield from (f"{error:.1f}" for error in PAPER.get(name, ()))
    yield from ("",) * (0 if name in PAPER else 3)


def _error(record: Ablation, part: str, top: int, number: int) -> str:
    """Mean ± spread in %."""
    error, spread = record.mean(part, top)[number], record.spread(part, top)[number]
    return "" if error != error else f"{error:.1%} ± {spread:.1%}".replace("%", "")


def _against(record: Ablation, number: int) -> str:
    """Of the first seed: on how many pictures it differs from its base."""
    base = int(record.base[number])
    if base == number or record.failed[number] or record.failed[base]:
        return ""
    lost, gained, p = record.lost[number, 0], record.gained[number, 0], record.p[number, 0]
    return f"−{lost} +{gained}, p = {p:.2g}"


def _named(record: Ablation) -> Iterator[tuple[str, str]]:
    yield from zip(record.variants, record.failed, strict=True)


def _protocol(record: Ablation) -> list[str]:
    training, validation = record.pictures
    crops = "the centre" if record.views == 1 else f"{record.views} views"
    noise = (
        f"± is the standard deviation over {len(record.seeds)} seeds"
        if len(record.seeds) > 1
        else "one seed: ± is √(e (1 − e) / n), for other pictures; another seed adds to it"
    )
    return [
        f"Errors in %, after epoch {record.epochs}, on {training:,} training and {validation:,} "
        f"validation pictures of {record.size[0]} × {record.size[1]} pixels, {crops}, no dropout, "
        f"no augmentation; {noise}. Against its base: validation pictures lost and gained, and an "
        "exact sign test on these.",
    ]
