"""How dear is it here to move numbers, beside multiplying them? A trial, once for a machine.

Whether tiles are quicker than a convolution, and whose matrix products are, depends on the
processor: AVX2 multiplies half as many numbers at once as AVX-512 and moves nearly as many; the
library that torch multiplies matrices by is quick on some makers' processors, and half as fast as
oneDNN on others'. So both are tried, for about a tenth of a second. The answer is coarse and is
kept in the user's cache: all processes on a machine choose alike, and so give the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from convscope import __version__
from convscope.lens.machine import machine
from convscope.lens.trial import fastest_runs
from convscope.publish import cache_folder
from convscope.texts import parsed

LEAST, MOST = 1 / 8, 2.0
"""Of `Pace.moving`."""
CLEARLY = 0.9
"""oneDNN's products are taken where they need less than this share of the others' time."""
MAPS, TILE = 64, 4
"""Of the convolution that is tried: few maps, where moving counts most."""


@dataclass(frozen=True)
class Pace:
    """What was found, of a machine with one number of threads."""

    moving: float = 1.0
    """What moving numbers to tiles and back costs, in the costs that `incremental_winograd` and
    `spreading` name: a power of two from 1/8 to 2."""
    onednn: bool = True
    """Is a matrix product quicker by oneDNN than by the library that torch takes?"""


def pace() -> Pace:
    """Of this machine, remembered or tried now."""
    return _pace(kept_at(torch.get_num_threads()))


@cache
def _pace(home: Path) -> Pace:
    known = remembered(home)
    if known is not None:
        return known
    tried = by_trial()
    # The first to be written stays, and is what others that tried at the same time take as well.
    with suppress(OSError):
        home.parent.mkdir(parents=True, exist_ok=True)
        if remembered(home) is None:
            home.unlink(missing_ok=True)
        with home.open("x", encoding="utf-8") as file:
            file.write(json.dumps(asdict(tried)))
    return remembered(home) or tried


@cache
def kept_at(threads: int) -> Path:
    """The file that the answer for this machine and so many threads is kept in."""
    held = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")]
    told = json.dumps([machine(torch.device("cpu")), threads, held, __version__])
    return cache_folder() / "pace" / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"


def remembered(home: Path) -> Pace | None:
    """What the file says, if it is whole."""
    try:
        plain = parsed(home.read_text(encoding="utf-8"))
        moving, onednn = float(plain["moving"]), bool(plain["onednn"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Pace(moving, onednn) if LEAST <= moving <= MOST else None


def by_trial() -> Pace:
    """A convolution against its tiles, and a matrix product in both ways, all in turn."""
    from convscope.lens.incremental_packed import by_onednn
    from convscope.lens.tile_products import Products, rows_of
    from convscope.lens.tiles import matrices

    with torch.inference_mode():
        rows, q = rows_of(MAPS**2), TILE + 2
        weight, square = torch.ones(MAPS, MAPS, 3, 3), torch.ones(256, 256)
        last = weight.contiguous(memory_format=torch.channels_last)
        maps = torch.ones(rows * TILE**2 // 64, MAPS, 10, 10)
        maps = maps.contiguous(memory_format=torch.channels_last)
        products = Products(*matrices(TILE), weight.permute(2, 3, 0, 1))
        tiles = torch.ones(rows, q, q, MAPS)
        ways: dict[str, Callable[[], Tensor]] = {
            "plain": lambda: F.conv2d(maps, last),
            "tiles": lambda: products(tiles),
            "torch": lambda: F.linear(square, square),
            "onednn": lambda: by_onednn(square, square, None),
        }
        # Of CPU time, which neighbours hardly change: the answer is kept.
        taken = fastest_runs(ways, clock=time.process_time)
    return Pace(
        moving_of(taken["tiles"] / taken["plain"]),
        taken["onednn"] < CLEARLY * taken["torch"],
    )


def moving_of(ratio: float) -> float:
    """`Pace.moving`, from how long tiles take where the convolution takes 1: the costs of
    `incremental_winograd` are solved for it, and it is rounded to a power of two."""
    from convscope.lens.incremental_winograd import BACK, GOING, SLOWER

    share = 9 * TILE**2 / (TILE + 2) ** 2  # of the multiplications that tiles save
    moving = (ratio * share - SLOWER) * MAPS / (GOING + BACK)
    return min(MOST, max(LEAST, 2.0 ** round(math.log2(max(moving, LEAST)))))
