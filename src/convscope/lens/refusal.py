"""What is said when a network does not take a picture?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from convscope.errors import ModelError, is_out_of_memory


@contextmanager
def refusing(images: Tensor, network: str = "the network") -> Iterator[None]:
    """Raise ModelError M522 where the network, run inside the block, raises on these pictures."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as fault:
        if is_out_of_memory(fault):
            raise
        shape = " × ".join(map(str, images.shape[1:]))
        said = str(fault).strip().splitlines() or [type(fault).__name__]
        raise ModelError(
            "M522", network, f"does not take a picture of {shape} ({said[0]})"
        ) from fault
