"""Pointing game: mean and 95 % interval by method, the best first; what needs no method last."""

from __future__ import annotations

import numpy as np

from convscope.core.text import Part, Table
from convscope.records.maps import interval
from convscope.studies.base import Shown
from convscope.studies.pointing import Options
from convscope.studies.pointing.record import PointingGame


def pointing_table(record: PointingGame) -> list[Part]:
    head = ("method", "peak in a box", f"within {record.margin} px", "energy in boxes", "empty")
    order = np.argsort(-np.nan_to_num(np.nanmean(record.near, 0), nan=-1.0), kind="stable")
    each = (record.exact, record.near, record.energy)
    rows = [
        (
            record.methods[place],
            *(_mean(values[:, place]) for values in each),
            str(int(np.isnan(record.exact[:, place]).sum())),
        )
        for place in order
    ]
    blob = (record.middle, record.middle_near, record.middle_energy)
    chance = (record.boxed, record.boxed_near, record.boxed)
    rows.append(("centred blob", *(_mean(values) for values in blob), "0"))
    rows.append(("random map", *(_mean(values) for values in chance), "0"))
    refused = [f"{name}: not defined here: {why}" for name, why in record.refused.items()]
    return [Table.of(head, rows), *refused]


def _mean(values: np.ndarray) -> str:
    mean, low, high = interval(values)
    return f"{mean:.1%} ({low:.0%} to {high:.0%})"


def show(record: PointingGame, _: Options) -> Shown:
    return Shown({}, {"table": pointing_table(record)})
