"""The flower photographs of TensorFlow's and PyTorch's tutorials: download them.

3,670 photographs of daisies, dandelions, roses, sunflowers and tulips, CC BY 2.0, each
photographer named in the LICENSE.txt that comes along.

Source: The TensorFlow Team, Flowers, 2019. Size and SHA-256 as TensorFlow Datasets publishes
them (tf_flowers).
"""

from __future__ import annotations

from pathlib import Path

from convscope.errors import DataError
from convscope.pictures.archive.download import Progress, Source, fetch, unpack
from convscope.publish import cache_folder, require_free

ARCHIVE = Source(
    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
    228_813_984,
    "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
)


def download(
    out: Path | str | None = None, *, source: Source = ARCHIVE, progress: Progress | None = None
) -> Path:
    """Put the photographs into the new folder `out`, and return it.

    out: by default where `flowers`, as a name for pictures, looks. The archive arrives beside it
    as OUT.tgz, in as many attempts as it takes, and is deleted once unpacked; one that lies there
    already, however it came, is used. progress: bytes. Raises OutputError O501 if `out` holds
    anything, and what `fetch` and `unpack` raise.
    """
    place = default_folder() if out is None else Path(out)
    require_free(place)
    archive = place.with_name(place.name + ".tgz")
    if not archive.exists():
        fetch(source, archive, progress=progress)
    else:
        source.check(archive)
    unpack(archive, place)
    archive.unlink()
    return place


def default_folder(cache: Path | str | None = None) -> Path:
    return cache_folder(cache) / "flower_photos"


def flowers_folder(cache: Path | str | None = None) -> Path:
    """Where the photographs are. Raises DataError D100 if they have not been downloaded."""
    place = default_folder(cache)
    if not place.exists():
        raise DataError(
            "D100",
            "flowers",
            "have not been downloaded yet (229 MB)",
            next_step=f"convscope flowers --out {place}",
        )
    return place
