"""Records, run folders and inputs as an earlier version wrote them (`tests/golden`) are read."""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import convscope
from convscope.cli.app import main
from convscope.core.errors import DataError
from convscope.core.record import INDEX, Record, seal
from convscope.network.tuning import _remembered
from convscope.pictures.annotations import read_boxes, read_lists, read_parts
from convscope.training.recipe import recipe
from convscope.training.trainer import train

GOLDEN = Path(__file__).parents[1] / "golden"
FACTS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "facts.json").read_text())
TIMED = ("seconds", "pictures_per_second")
"""Columns of a run's history that no two runs have in common."""


def kinds() -> dict[str, type[Record]]:
    for package in ("convscope.records", "convscope.studies"):
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if package.endswith("records") or module.name.endswith(".record"):
                importlib.import_module(module.name)
    return {kind.__name__: kind for kind in Record.__subclasses__()}


def unpacked(name: str, place: Path) -> Path:
    with zipfile.ZipFile(GOLDEN / f"{name}.zip") as file:
        file.extractall(place)
    return place


def total(values: np.ndarray[Any, Any]) -> float:
    """Sum of what is finite, as the earlier version reckoned it."""
    if values.dtype.kind in "iub":
        return int(values.astype(np.int64).sum())
    return float(values[np.isfinite(values)].astype(np.float64).sum())


def ran(*told: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(told))
    assert end.value.code in (0, None)


@pytest.mark.parametrize("name", FACTS)
def test_a_record_is_read_with_its_numbers(name: str, tmp_path: Path) -> None:
    fact, (packed, _, below) = FACTS[name], name.partition("/")
    record = kinds()[fact["kind"]].load(unpacked(packed, tmp_path) / below, whole=True)
    for field, (shape, summed) in fact["arrays"].items():
        values = getattr(record, field)
        assert list(values.shape) == shape, field
        assert total(values) == pytest.approx(summed, rel=1e-9), field
    for field, value in fact["plain"].items():
        read = getattr(record, field)
        assert (list(read) if isinstance(read, tuple) else read) == value, field


def test_there_is_one_of_every_kind_that_was_there() -> None:
    assert {fact["kind"] for fact in FACTS.values()} <= kinds().keys()
    assert len({fact["kind"] for fact in FACTS.values()}) == 34


def test_a_record_of_a_later_schema_is_refused(tmp_path: Path) -> None:
    place = unpacked("Prediction", tmp_path)
    index = json.loads((place / INDEX).read_text())
    del index["sha256"]
    index["schema"] += 1
    (place / INDEX).write_text(json.dumps(index | {"sha256": seal(index)}))
    with pytest.raises(DataError, match=r"newer convscope\. Next: update convscope") as refused:
        kinds()["Prediction"].load(place)
    assert refused.value.code == "D140"


def test_features_are_drawn_again_from_an_atlas_and_from_features(tmp_path: Path) -> None:
    for name in ("atlas", "features"):
        given = unpacked(name, tmp_path / name)
        ran("features", str(given), "--out", str(tmp_path / f"{name}-again"))
        assert (tmp_path / f"{name}-again" / "figure.svg").is_file()


def test_a_study_is_attached_to_an_atlas(tmp_path: Path) -> None:
    atlas, study = unpacked("atlas", tmp_path / "atlas"), unpacked("filters", tmp_path / "filters")
    ran("attach", str(atlas), str(study))
    assert "Filters" in (atlas / "data" / "studies.js").read_text()


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    inputs, run = unpacked("inputs", tmp_path / "inputs"), unpacked("stopped", tmp_path / "run")
    finished = unpacked("run", tmp_path / "finished")
    told, pictures = recipe(inputs / "small.toml"), inputs / "pictures"
    folders = convscope.open_pictures(pictures), convscope.open_pictures(pictures)
    assert train(told, *folders, run).resumed_from == 1
    ours, theirs = (history(place) for place in (run, finished))
    assert ours == pytest.approx(theirs, abs=1e-5)
    expected = load_file(finished / "last.safetensors")
    for key, weight in load_file(run / "last.safetensors").items():
        torch.testing.assert_close(weight, expected[key], atol=1e-5, rtol=1e-4)


def history(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [float(value) for row in rows for name, value in row.items() if name not in TIMED]


def test_a_finished_run_is_a_network(tmp_path: Path) -> None:
    inputs, run = unpacked("inputs", tmp_path / "inputs"), unpacked("run", tmp_path / "run")
    result = convscope.load(str(run))
    assert result.classes == ("cat", "coffee")
    accuracy = convscope.evaluate(result, inputs / "pictures").top1
    assert accuracy == pytest.approx(0.5)


def test_network_pictures_and_files_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unpacked("inputs", tmp_path))
    network, fact = convscope.load("net.toml"), FACTS["Prediction"]
    result = convscope.predict(network, "pictures/cat/0.png")
    assert result.probability.sum() == pytest.approx(fact["arrays"]["probability"][1], abs=1e-6)
    (heat,) = convscope.attribute(network, "pictures/cat/0.png", "gradcam", layer="0", target=1)
    assert heat.values.sum() == pytest.approx(FACTS["Attribution"]["arrays"]["values"][1], rel=1e-3)
    names = {f"{kind}/{number}.png" for kind in ("cat", "coffee") for number in range(4)}
    assert read_boxes("boxes.json").keys() == names
    assert {len(parts) for parts in read_parts("parts.json").values()} == {3}
    assert read_lists("teach.json").classes == ("cat", "coffee", "cup")


def test_what_tuning_remembered(tmp_path: Path) -> None:
    tuning = _remembered(GOLDEN / "tuned.json")
    assert tuning is not None
    assert (tuning.best.batch, tuning.workers, tuning.bytes) == (128, 2, 3_936_480)
