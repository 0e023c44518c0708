"""Is what is read back from an atlas what was written into it?"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from convscope.core.errors import DataError, UsageError
from convscope.pages.atlas import write_atlas
from convscope.studies.features.record import atlas_features, atlas_layers
from tests.pages.fake_records import Atlas


@pytest.fixture(scope="module")
def written(records: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("read") / "atlas"
    write_atlas(folder, records.card, records.table, records.pictures, records.layers)
    return folder


def test_maps_come_back_as_they_were_shown(records: Atlas, written: Path) -> None:
    layers = atlas_layers(written)
    assert list(layers) == [record.layer for record in records.layers]
    for record in records.layers:
        assert np.array_equal(layers[record.layer], record.active)
        chosen = [n for n in (4, 0, 3) if n < len(record.value)]
        found = atlas_features(written, record.layer, chosen)
        assert found.maps == tuple(chosen)
        for name in ("image", "row", "column", "box", "active"):
            assert np.array_equal(getattr(found, name), getattr(record, name)[chosen]), name
        for name in ("value", "patches", "projections", "low", "high"):
            assert np.array_equal(getattr(found, name), getattr(record, name)[chosen]), name
        assert (found.shape, found.field, found.seen) == (record.shape, record.field, record.seen)
        assert found.origin == record.origin


def test_what_is_no_atlas_or_has_no_such_map_is_said(records: Atlas, written: Path) -> None:
    layer = records.layers[0]
    with pytest.raises(UsageError, match="no such feature map; the layer has") as fault:
        atlas_features(written, layer.layer, [len(layer.value)])
    assert fault.value.code == "U204"
    with pytest.raises(DataError, match="holds no records") as broken:
        atlas_layers(written.parent)
    assert broken.value.code == "D195"
    path = written / "records" / "0" / "patches.npy.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-3], b"", whole[:40] + b"x" + whole[41:], gzip.compress(b"no array")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"patches\.npy\.gz") as lost:
            atlas_features(written, layer.layer, [1])
        assert lost.value.code == "D140"
    path.write_bytes(whole)
    atlas_features(written, layer.layer, [1])
    shutil.rmtree(written / "records" / "0")
    with pytest.raises(DataError, match="has lost some of its records"):
        atlas_layers(written)
