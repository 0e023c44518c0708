"""Does a search over fourteen million pictures fit in constant memory, and how long do its merges
take? Synthetic activations stand for the network; segments, merges and checksums are the real ones.

    python bench/scale.py [--pictures 14000000] [--maps 26000]

The nine strongest of each map in a chunk of n pictures are drawn as what they are, order statistics
of n uniform numbers, so that nothing else has to be made. In the end the result is compared with
the strongest of all that was drawn, kept beside in the plainest way.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from functools import reduce
from pathlib import Path

import numpy as np

from convscope.records.topk import strongest
from convscope.scale.engine import Compaction
from convscope.scale.folder import Local, RunFolder
from convscope.scale.segments import Arrays, Segment

K, CHUNK = 9, 8192


def drawn(start: int, count: int, maps: int) -> dict[str, np.ndarray]:
    """The tables of a chunk's top-k."""
    draw = np.random.default_rng(start)
    # Of n uniform numbers the largest is u^(1/n), the next that times v^(1/(n-1)), and so on.
    shares = draw.random((maps, K)) ** (1.0 / (count - np.arange(K)))
    value = np.cumprod(shares, axis=1).astype(np.float32)
    image = start + np.argsort(draw.random((maps, 4 * K)), axis=1)[:, :K] * (count // (4 * K))
    order = np.lexsort((image, -value), axis=1)
    value, image = (np.take_along_axis(table, order, 1) for table in (value, image))
    place = np.zeros((maps, K), np.int32)
    active = np.full(maps, count, np.int64)
    return {
        **{"value": value, "image": image, "content": image + 1, "row": place, "column": place},
        **{"active": active, "invalid": np.zeros(maps, np.int64), "seen": np.array(count)},
    }


def merge(one: Arrays, other: Arrays) -> dict[str, np.ndarray]:
    counts = {name: one[name] + other[name] for name in ("active", "invalid", "seen")}
    return {**strongest(one, other, K), **counts}


def memory() -> float:
    """Megabytes that this process takes up now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--pictures", type=int, default=14_000_000)
    asked.add_argument("--maps", type=int, default=26_000)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as spare:
        run = RunFolder(Local(Path(spare)), "0" * 64, 1)
        few, result, plain, seen = Compaction(run, merge), None, None, []
        spent = {"drawing": 0.0, "merging": 0.0, "keeping": 0.0}
        starts = range(0, options.pictures, CHUNK)
        begun = time.monotonic()
        for number, start in enumerate(starts):
            stop = min(start + CHUNK, options.pictures)
            clock = time.monotonic()
            arrays = drawn(start, stop - start, options.maps)
            both = arrays["value"] if plain is None else np.hstack([plain, arrays["value"]])
            plain = -np.sort(-both, axis=1)[:, :K]
            spent["drawing"] += time.monotonic() - clock
            clock = time.monotonic()
            few.add(run.keep(Segment(start, stop, arrays, stop - start)))
            spent["keeping"] += time.monotonic() - clock
            clock = time.monotonic()
            result = arrays if result is None else merge(result, arrays)
            spent["merging"] += time.monotonic() - clock
            if number % 100 == 99:
                seen.append(round(memory()))
                print(f"{stop:>12,} pictures  {seen[-1]:>6} MB", flush=True)
        taken = time.monotonic() - begun
        clock = time.monotonic()
        there = run.segments()
        again = reduce(merge, (run.load(one.name).arrays for one in there))  # type: ignore[union-attr]
        resumed = time.monotonic() - clock
        size = sum(path.stat().st_size for path in Path(spare).rglob("*.seg"))
    assert result is not None
    assert int(result["seen"]) == options.pictures
    assert np.array_equal(result["value"], plain)
    assert all(np.array_equal(result[name], again[name]) for name in result)
    told = {
        **{"pictures": options.pictures, "maps": options.maps, "chunks": len(starts)},
        **{"seconds": round(taken, 1), **{name: round(one, 1) for name, one in spent.items()}},
        **{"memory MB, first and last": [seen[0], seen[-1]] if seen else []},
        **{"segments left": len(there), "MB on disk": round(size / 1e6, 1)},
        "seconds to read all again": round(resumed, 2),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
