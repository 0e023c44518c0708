"""Do studies that go over pictures give the same when stopped, gone on with, and in processes?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from convscope.attribution.registry import chosen
from convscope.core.errors import OutputError, Stopped
from convscope.core.record import Record
from convscope.core.run import Run
from convscope.core.units import Box
from convscope.network.load import load
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.scale import engine
from convscope.scale.processes import Processes
from convscope.scale.rows import packed, unpacked
from convscope.studies.explain.record import Explanation
from convscope.studies.explain.study import Checks, explain_folder
from convscope.studies.filters.study import filters
from convscope.studies.invariance.study import invariance
from convscope.studies.occlusion.study import occlusion_study
from convscope.studies.pointing.study import pointing_game
from convscope.studies.unit_ablation.study import silence
from tests.nets import Residual

COUNT = 6
BOXES = {f"{n}.png": [Box(8, 8, 20, 24)] for n in (0, 2, 3, 4)}
Study = Callable[[Network, Pictures, Run], list[Record]]


def occlusion(network: Network, folder: Pictures, run: Run) -> list[Record]:
    return [occlusion_study(network, folder, boxes=BOXES, patch=20, stride=10, run=run)]


def bright(_: object, images: Tensor) -> Tensor:
    """A user's own method."""
    return images.mean(1)


def explain(network: Network, folder: Pictures, run: Run) -> list[Record]:
    seen: list[Record] = []

    def each(number: int, one: Explanation) -> None:
        assert one.notes == ()
        seen.extend([one.prediction, *one.maps, *one.tests, *one.randomised, *one.sensitive])
        seen.extend([one.agreement] if one.agreement else [])

    methods = chosen(["layercam", "gradient-x-input", bright])
    checks = Checks(steps=3, random=1)
    record = explain_folder(
        network, folder, methods, boxes=BOXES, checks=checks, each=each, run=run
    )
    return [record, *seen]


def points(network: Network, folder: Pictures, run: Run) -> list[Record]:
    methods = chosen(["gradcam", "deconvnet"])
    record = pointing_game(network, folder, BOXES, methods, margin=2, run=run)
    return [replace(record, seconds=0 * record.seconds)]


def moved(network: Network, folder: Pictures, run: Run) -> list[Record]:
    changes = {"vertical": [-3, 4], "rotation": [20]}
    return [invariance(network, folder, changes=changes, border="mirror", run=run)]


def silenced(network: Network, folder: Pictures, run: Run) -> list[Record]:
    labels = {name: 1 for name in folder.names if name != "3.png"}
    return [silence(network, folder, ["conv2", "bn3"], fill="mean", labels=labels, run=run)]


def filtered(network: Network, folder: Pictures, run: Run) -> list[Record]:
    return [filters(network, folder, run=run)]


STUDIES: dict[str, Study] = {
    "filters": filtered,
    "occlusion": occlusion,
    "explain": explain,
    "pointing": points,
    "invariance": moved,
    "unit ablation": silenced,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Pictures, of which one is damaged."""
    where, numbers = tmp_path / "pictures", np.random.default_rng(0)
    where.mkdir()
    for number in range(COUNT):
        pixels = numbers.integers(0, 255, (40, 44, 3), np.uint8)
        Image.fromarray(pixels).save(where / f"{number}.png")
    (where / "2.png").write_bytes((where / "2.png").read_bytes()[:300])
    return where


@pytest.fixture
def network() -> Network:
    ready = Preprocess(Framing(None, (40, 40)), (0.5,) * 3, (0.25,) * 3)
    return load(Residual(), preprocess=ready, classes=tuple("abcdefg"))


@pytest.mark.parametrize("name", STUDIES)
def test_stops_and_processes_change_nothing(
    name: str, place: Path, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SECONDS", -1.0)  # a part for each picture

    def made(run: Run) -> list[dict[str, bytes]]:
        with Pictures(place, max_bad=0.2) as folder:
            records = STUDIES[name](network, folder, run)
            assert [one.name for one in folder.skipped] == ["2.png"]
        return [files(record, tmp_path) for record in records]

    plain = made(Run())
    run, stops = Run(folder=tmp_path / "run"), 0
    while True:  # each time it is asked once more before it says stop
        try:
            assert made(Run(folder=run.folder, stop=stopping(stops))) == plain
            break
        except Stopped:
            stops += 1
    assert stops >= 3
    assert made(run) == plain
    assert made(Run(engine=Processes(2, part=2))) == plain
    network.model.fc.bias.data += 1
    with pytest.raises(OutputError, match="weights_sha256 was") as refused:
        made(run)
    assert refused.value.code == "O514"


def files(record: Record, place: Path) -> dict[str, bytes]:
    """As they are written."""
    where = place / "record"
    record.save(where)
    result = {file.name: file.read_bytes() for file in where.iterdir()}
    for file in where.iterdir():
        file.unlink()
    return result


def stopping(after: int) -> Callable[[], bool]:
    asked = iter(range(1000))
    return lambda: next(asked) >= after


def test_a_row_comes_back_as_it_was() -> None:
    row = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 4), bool),
        "number": np.float32(0.1),
        "nan": float("nan"),
        "text": "ä",
        1: [None, True],
    }
    again = unpacked(packed(row))
    assert again.keys() == row.keys()
    for name in ("array", "empty"):
        assert again[name].dtype == row[name].dtype
        assert np.array_equal(again[name], row[name])
    assert np.float32(again["number"]) == row["number"]
    assert np.isnan(again["nan"])
    assert (again["text"], again[1]) == ("ä", [None, True])
    with pytest.raises(TypeError, match="object is not kept"):
        packed({"strange": object()})
    with pytest.raises(TypeError, match="not kept"):
        packed(np.array([object()]))
