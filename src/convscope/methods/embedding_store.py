"""Where are features kept, so that none is computed twice, and when are they the same ones?"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from jaxtyping import Float32

from convscope import __version__
from convscope.errors import DataError, OutputError
from convscope.lens.twin import bare
from convscope.network.network import Network
from convscope.network.provenance import weights_sha256
from convscope.pictures.pictures import Pictures
from convscope.publish import publish_folder
from convscope.records.embedding import Embedding

FILE = "values.npy"


class Rows:
    """An array that grows by rows: in a folder's `values.npy`, or in memory.

    Written, never mapped: where the disk is full, a write says so, and a mapped page kills Python.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file: BinaryIO | None = None if folder is None else (folder / FILE).open("xb")
        self._parts: list[Float32[np.ndarray, "_ d"]] = []
        self._count, self._wide = 0, 0

    def add(self, rows: Float32[np.ndarray, "_ d"]) -> None:
        if self._file is None:
            self._parts.append(rows)
            return
        if not self._count:
            self._wide = rows.shape[1]
            self._header()
        self._file.write(np.ascontiguousarray(rows, np.float32).tobytes())
        self._count += len(rows)

    def array(self) -> Float32[np.ndarray, "n d"]:
        """All rows; none can be added after that."""
        if self._file is None:
            return np.concatenate(self._parts)
        self._file.seek(0)
        self._header()  # of the same length: NumPy leaves room for the digits of the first axis
        self._file.close()
        found: Float32[np.ndarray, "n d"] = np.load(self._file.name, mmap_mode="r")
        return found

    def _header(self) -> None:
        assert self._file is not None
        shape = (self._count, self._wide)
        told = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, told)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def key_of(network: Network, folder: Pictures, layer: str, vector: Any, batch: int) -> str:
    """A folder's name that is another one if anything that decides the features is another."""
    told = {
        "weights": weights_sha256(bare(network.model)),
        "model": [network.spec, repr(bare(network.model))],
        "preprocess": network.preprocess.to_json(),
        "layer": layer,
        "vector": vector,
        "pictures": folder.sha256,
        "times": _times(folder),
        "batch": batch,
        "version": __version__,
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9.]', '_', layer)}-{digest[:16]}"


def _times(folder: Pictures) -> str:
    """Hash of the files' times of change, which a folder's own hash leaves out."""
    digest = hashlib.sha256()
    for source in folder.sources:
        path = source if isinstance(source, bytes) else source.archive
        with suppress(OSError):
            digest.update(str(os.stat(path).st_mtime_ns).encode())  # noqa: PTH116
    return digest.hexdigest()


def kept(place: Path, keys: dict[str, str]) -> dict[str, Embedding]:
    """Those of the features that are in the store, and whole; damaged ones are removed."""
    found = {}
    for layer, key in keys.items():
        if (place / key).is_dir():
            try:
                found[layer] = Embedding.load(place / key, whole=True)
            except DataError as fault:
                cause = fault.__cause__
                if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError):
                    shutil.rmtree(place / key, ignore_errors=True)
    return found


def keeping(targets: Sequence[Path], fill: Callable[[list[Path]], None]) -> None:
    """Let `fill` write into new folders, which then get these names, each as a whole.

    Raises EnvironmentFault R602 (disk full) or R603; another process that wrote the same is fine.
    """
    _nested(list(targets), [], fill)


def _nested(targets: list[Path], opened: list[Path], fill: Callable[[list[Path]], None]) -> None:
    if not targets:
        fill(opened)
        return
    first, *rest = targets
    try:
        publish_folder(first, lambda folder: _nested(rest, [*opened, folder], fill))
    except OutputError:
        if not (first / FILE).exists():
            raise
