"""What does the network lose without its maps, in numbers?"""

from __future__ import annotations

from convscope.errors import printable
from convscope.records.table import Part, Table
from convscope.studies.unit_ablation.record import Silence


def silence_table(record: Silence, first: int = 10) -> list[Part]:
    """A table for each layer: the maps that matter most, and how sure it is."""
    parts: list[Part] = [
        f"{record.pictures:,} pictures, all maps there: {record.base_accuracy:.1%} right, "
        f"−ln p(true) {record.base_loss:.3f}, p(true) {record.base_probability:.3f}; a map is "
        f"silenced to {FILLS[record.fill]}.",
    ]
    for layer in range(len(record.layers)):
        parts += _layer(record, layer, first)
    parts += [
        "",
        "± is the standard error over pictures; p an exact sign test on pictures lost and gained, "
        "for one map alone: of 100 maps without effect 5 have p below 0.05.",
    ]
    return parts


FILLS = {"zero": "zero", "mean": "its mean"}


def _layer(record: Silence, layer: int, first: int) -> list[Part]:
    places, sure = record.own(layer), record.beyond_chance(layer)
    idle = int((record.changed[places] == 0).sum())
    head = (
        f"{printable(record.layers[layer])}: {len(places)} maps, {len(sure)} matter beyond chance, "
        f"{idle} change nothing; without one map between {record.accuracy[places].min():.1%} and "
        f"{record.accuracy[places].max():.1%} right"
    )
    rows = []
    for place in places[:first]:
        own = record.by_class[place]
        name, most = printable(record.classes[int(own.argmax())]), own.max()
        cells = (
            str(record.map[place]),
            f"{record.rise[place]:+.3f} ± {record.noise[place]:.3f}",
            f"{record.accuracy[place]:.1%}",
            f"−{record.lost[place]} +{record.gained[place]}",
            f"{record.p[place]:.2g}",
            f"{name} ({most:+.2f})" if most > 0 else "",
        )
        rows.append(cells)
    columns = ("map", "rise of −ln p", "right", "lost, gained", "p", "most for")
    return [Table.of(columns, rows, head)]
