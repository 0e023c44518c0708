"""What do a network's first filters, strides and maps amount to, and what is to be done?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from convscope.core.errors import printable
from convscope.core.text import Part, Table
from convscope.studies.filters.record import Filters

FOLDED, WASTED, FEW, DROWNS = 0.05, 0.1, 0.1, 5.0
"""Our limits, above (or below) which a line of advice is given: energy folded on pictures, share
of maps, share of middle filters, RMS over the median."""
ENOUGH = 1000
"""Pictures; of as many classes as ImageNet has, that is one each."""


def advice(record: Filters) -> list[str]:
    """One line for each number that is bad, and what to do."""
    return [*_of_filters(record), *_of_strides(record), *_of_maps(record)]


def filters_table(records: Sequence[Filters]) -> list[Part]:
    """A column a network; advice below, and on how many pictures it rests."""
    names = [printable(record.network) for record in records]
    columns = [list(_numbers(record)) for record in records]
    rows = [
        [label, *(column[place][1] for column in columns)]
        for place, (label, _) in enumerate(columns[0])
    ]
    parts: list[Part] = [Table.of(["", *names], rows)]
    for record in records:
        parts += [*_strides(record), *_maps(record)]
        told = advice(record)
        said = "" if told else "no number is bad."
        parts += ["", f"{printable(record.network)}: {said}".rstrip()]
        parts += [f"- {line}" for line in told]
        parts += _few(record)
    return parts


def _few(record: Filters) -> list[str]:
    """A map that none of a few pictures excites may be alive all the same."""
    if not record.layers or record.pictures >= ENOUGH:
        return []
    count = f"{record.pictures:,} picture{'' if record.pictures == 1 else 's'}"
    return [
        f"What is said of maps and of folding on pictures rests on {count} only: a map that is "
        f"still in these may answer to others. Give {ENOUGH:,} or more."
    ]


def _numbers(record: Filters) -> Iterator[tuple[str, str]]:
    """Rows of the table about the first layer."""
    maps = len(record.rms)
    low, middle, high = record.coverage
    size = "×".join(map(str, record.weights.shape[2:]))
    yield "first layer", f"{printable(record.layer)}, {size}, stride {record.stride[0]}"
    yield "filters", str(maps)
    yield "weak (RMS under a tenth of the median)", str(int(record.weak.sum()))
    yield "same pattern as an earlier one", str(int((record.twin >= 0).sum()))
    yield "largest RMS over the median", f"{record.dominance:.2f}"
    yield "low, middle, high filters", f"{low:.0%}, {middle:.0%}, {high:.0%}"
    yield "folded, of gratings of all frequencies", f"{record.folded:.1%}"
    own = [place for place, name in enumerate(record.fold_layers) if name == record.layer]
    told = f"{record.folds[own[0]].mean():.1%} ± {record.folds[own[0]].std():.1%}" if own else ""
    yield "folded, on pictures", told


def _strides(record: Filters) -> list[Part]:
    if not record.fold_layers:
        return []
    rows = [
        (
            printable(name),
            record.fold_kinds[place],
            str(record.fold_strides[place][0]),
            f"{record.folds[place].mean():.1%} ± {record.folds[place].std():.1%}",
        )
        for place, name in enumerate(record.fold_layers)
    ]
    title = f"Folded on pictures, {printable(record.network)}:"
    return [Table.of(("layer", "kind", "stride", "share of energy"), rows, title)]


def _maps(record: Filters) -> list[Part]:
    if not record.layers:
        return []
    title = f"Maps over {record.pictures:,} pictures, {printable(record.network)}:"
    head = ("layer", "maps", "never positive", "always positive", "constant", "copies")
    kinds = (record.silent, record.saturated, record.still, record.copies)
    rows = []
    for place, name in enumerate(record.layers):
        own = record.of == place
        counts = [int(own.sum()), *(int(kind[own].sum()) for kind in kinds)]
        rows.append((printable(name), *map(str, counts)))
    return [Table.of(head, rows, title)]


def _of_filters(record: Filters) -> Iterator[str]:
    maps = len(record.rms)
    if record.weak.mean() > WASTED:
        yield (
            f"{int(record.weak.sum())} of {maps} first filters are next to zero: a lower learning "
            "rate, or fewer maps"
        )
    if (record.twin >= 0).mean() > WASTED:
        yield (
            f"{int((record.twin >= 0).sum())} of {maps} first filters repeat others: fewer maps, "
            "or longer training"
        )
    if record.dominance > DROWNS:
        yield (
            f"one filter's RMS is {record.dominance:.1f} times the median: feature scale clipping "
            "while training (filter_rms in a recipe)"
        )
    if record.coverage[1] < FEW:
        large = max(record.weights.shape[2:]) > 7 or max(record.stride) > 2
        yield f"{record.coverage[1]:.0%} of the first filters are of middle frequency: " + (
            "a smaller first kernel and stride (the paper went from 11×11/4 to 7×7/2)"
            if large
            else "longer training, or pictures with finer detail"
        )


def _of_strides(record: Filters) -> Iterator[str]:
    for name, stride, shares in zip(
        record.fold_layers, record.fold_strides, record.folds, strict=True
    ):
        if shares.mean() > FOLDED:
            yield (
                f"{name}: {shares.mean():.0%} of the energy is folded by stride {max(stride)}: a "
                "smaller stride, or a blur before it"
            )


def _of_maps(record: Filters) -> Iterator[str]:
    said = (
        (record.silent, "are never positive", "a lower learning rate, or fewer maps"),
        (record.saturated, "are always positive", "they are linear: check their biases"),
        (record.still, "put out a constant", "fewer maps"),
        (record.copies, "repeat another", "fewer maps"),
    )
    for place, name in enumerate(record.layers):
        for wasted, what, step in said:
            share = record.share(wasted, place)
            if share > WASTED:
                yield f"{name}: {share:.0%} of the maps {what}: {step}"
