"""Which way of running this network is the fastest on this machine, in words?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.options import Model, Opening, expanded
from convscope.cli.progress import progress, say, tell
from convscope.errors import UsageError

if TYPE_CHECKING:
    from convscope.methods.tuning import Tuning
    from convscope.network.network import Network

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
Tune = Annotated[
    bool, typer.Option("--tune", help="Run the network in the way that is fastest here.")
]


@expanded
def tune(
    model: Model,
    opening: Opening,
    memory: Annotated[
        str | None, typer.Option(help="Most that the network may take up, as 2GB or 500MB.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Half precision may be chosen: other numbers.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again, whatever is remembered.")
    ] = False,
) -> None:
    """Measure how the network runs fastest here: batch, memory format, threads, decoders.

    It takes some seconds, once; `atlas --tune` and `evaluate --tune` then use it.

    Example: convscope tune torchvision:squeezenet1_0 --memory 2GB
    """
    allowed = None if memory is None else as_bytes(memory)
    for line in tuned(opening.network(model), memory=allowed, half=half, fresh=fresh).lines():
        tell(line)


def tuned(
    network: Network, *, memory: int | None = None, half: bool = False, fresh: bool = False
) -> Tuning:
    """What is remembered, or else measured under a progress bar."""
    from convscope.methods.tuner import tune as measure

    with progress("measuring") as tick:
        return measure(network, memory=memory, half=half, fresh=fresh, progress=tick)


def chosen(network: Network, wanted: bool) -> Tuning | None:
    """For a command's `--tune`: the tuning, told in a line, or None."""
    if not wanted:
        return None
    tuning = tuned(network)
    decoders = f"{tuning.workers} decoding process{'es' if tuning.workers > 1 else ''}"
    say(f"tuned: {tuning.best.named()}, {decoders}")
    return tuning


def as_bytes(text: str) -> int:
    """Raises UsageError U402 for what is no amount of memory."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError("U402", text, "is no amount of memory", next_step="write 2GB or 500MB")
    return int(float(found[1]) * UNITS[found[2].upper()])
