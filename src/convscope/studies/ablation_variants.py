"""Which variants of a network are compared, and how large is each?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from convscope.errors import UsageError, nearest
from convscope.methods.layers import layer_table
from convscope.network.load import load
from convscope.network.sources.ours import OURS
from convscope.network.sources.spec import TOWER_OPTIONS, options, split_classes

MAPS = "maps=96-256-512-1024-512"
VARIANTS: dict[str, str] = {
    "alexnet": "alexnet",
    "alexnet-without-3-4": "alexnet:without=3-4",
    "alexnet-without-7": "alexnet:without=7",
    "alexnet-without-6-7": "alexnet:without=6-7",
    "alexnet-without-3-4-6-7": "alexnet:without=3-4-6-7",
    "alexnet-fc-2048": "alexnet:fc=2048",
    "alexnet-fc-8192": "alexnet:fc=8192",
    "zfnet": "zfnet",
    "zfnet-fc-2048": "zfnet:fc=2048",
    "zfnet-fc-8192": "zfnet:fc=8192",
    "zfnet-maps": f"zfnet:{MAPS}",
    "zfnet-maps-fc-8192": f"zfnet:{MAPS},fc=8192",
}
"""Zeiler and Fergus 2014, table 3, in its order."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TAKEN = re.compile(r"result(-\d+)?|.*-seed\d+")
"""Folders that the study makes itself."""


@dataclass(frozen=True)
class Variant:
    """A network under the name that it has in the table."""

    name: str
    spec: str


def chosen(wanted: Iterable[str], common: str = "") -> tuple[Variant, ...]:
    """The variants of these names (see VARIANTS), or of your own as `name=spec`.

    common: options for all of ours that do not say otherwise, e.g. `width=0.25,norm=batch`.
    Raises UsageError U403 for a variant there is not, or named twice; U230, U231 for options.
    """
    found: dict[str, Variant] = {}
    for asked in wanted:
        name, own, spec = (side.strip() for side in asked.partition("="))
        if not own and name not in VARIANTS:
            hint = nearest(name, VARIANTS).replace("it has", "there are")
            step = "name one of these, or your own network as NAME=NETWORK"
            raise UsageError("U403", name, f"no such variant; {hint}", next_step=step)
        if not NAME.fullmatch(name) or TAKEN.fullmatch(name):
            what = "cannot be a variant's folder"
            step = "take letters, digits, dots and dashes; result and -seedN at the end are taken"
            raise UsageError("U403", name, what, next_step=step)
        if name in found:
            raise UsageError("U403", name, "names two variants", next_step="give one another name")
        found[name] = Variant(name, with_options(spec if own else VARIANTS[name], common))
    if not found:
        raise UsageError("U403", "", "no variant is named", next_step="name some of the table's")
    return tuple(found.values())


def with_options(spec: str, common: str) -> str:
    """The network with options added that it does not have yet; others' networks stay as they
    are."""
    head, _, rest = spec.partition(":")
    added = options(common, TOWER_OPTIONS)
    if head not in OURS:
        return spec
    given = options(split_classes(rest)[0], TOWER_OPTIONS)
    pieces = [rest] if rest else []
    for name, value in added.items():
        text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
        pieces += [] if name in given else [f"{name}={text}"]
    return f"{head}:{','.join(pieces)}" if pieces else head


def counted(spec: str, classes: int, size: tuple[int, int]) -> tuple[int, int]:
    """Parameters, and multiply-adds for one picture of that many rows and columns, counted on
    the network itself. Raises as `load`, and ModelError M522 if it takes no such picture."""
    model = load(spec, classes=classes).model
    table = layer_table(model, (3, *size))
    return sum(weight.numel() for weight in model.parameters()), int(table.multiply_adds.sum())


def base_of(variants: tuple[Variant, ...]) -> list[int]:
    """With which variant each is compared: the whole network of its kind, else the first of its
    kind."""
    kinds = [variant.spec.partition(":")[0] for variant in variants]
    names = [variant.name for variant in variants]
    return [names.index(kind) if kind in names else kinds.index(kind) for kind in kinds]
