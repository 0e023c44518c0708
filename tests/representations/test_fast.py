"""Does fast mode give float32's strongest pictures, and does it say where it could not tell?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.core.errors import Stopped, UsageError
from convscope.core.run import Run
from convscope.network.preprocess import Preprocess
from convscope.network.tuning import Trial, Tuning
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.records.topk import TopK
from convscope.representations import fast
from convscope.representations.topk import topk
from convscope.scale import engine
from convscope.scale.processes import Processes
from tests.nets import state_of

READY = Preprocess(Framing(None, (12, 12)), (0, 0, 0), (1, 1, 1), scale=1 / 255)
COUNT, BATCH, K, KEPT = 96, 4, 2, 6
TABLES = ("value", "image", "row", "column", "content")
CPU = torch.device("cpu")


class Net(nn.Module):
    """Two layers; the last map of the second is dead."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 4, 1)
        with torch.no_grad():
            assert self.second.bias is not None
            self.second.bias[3] = -2

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).mean((2, 3))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of very different brightness, with copies and a damaged one."""
    where, numbers = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for number in range(COUNT):
        low, high = np.sort(numbers.integers(0, 256, (2, 3)), axis=0)
        pixels = numbers.integers(low, high + 1, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(where / f"{number:03d}.png")
    for copy, number in ((3, 90), (70, 8), (71, 8), (95, 40)):
        (where / f"{copy:03d}.png").write_bytes((where / f"{number:03d}.png").read_bytes())
    (where / "011.png").write_bytes((where / "011.png").read_bytes()[:60])
    return where


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bfloat16 were fast here, and few pictures many."""
    monkeypatch.setattr(fast, "KEPT", KEPT)
    monkeypatch.setattr(fast, "hindrance", lambda *_: "")


class Stepped(nn.Module):
    """Its map lies on a step, from which on bfloat16 counts in fours: all pictures are equal."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 1, 3), nn.Flatten()
        with torch.no_grad():
            assert self.first.bias is not None
            self.first.bias += 1000

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).amax((2, 3)))


def mined(place: Path, model: nn.Module, precision: str, run: Run = Run()) -> TopK:  # noqa: B008
    with Pictures(place, max_bad=0.2) as pictures:
        return topk(
            model,
            pictures,
            ["first", "second"],
            k=K,
            batch=BATCH,
            preprocess=READY,
            precision=precision,  # type: ignore[arg-type]
            run=run,
        )


def same(one: TopK, other: TopK, names: tuple[str, ...] = TABLES) -> bool:
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in names)


def test_what_is_certified_or_mined_again_is_what_float32_finds(place: Path) -> None:
    model = Net()
    found, plain = mined(place, model, "fast"), mined(place, model, "float32")
    assert same(found, plain)
    told = found.origin["search"]
    assert told["mined_in"] == "bfloat16"
    assert told["candidates"] == KEPT
    assert told["certified"] + told["mined_again"] == 6
    assert told["certified"] >= 3, "otherwise this tests nothing"
    assert 0 < told["rescored_pictures"] < found.seen == COUNT - 1
    assert told["compared_pictures"] == told["rescored_pictures"]
    assert all(0 < bound < 1 for bound in told["bound"].values())
    assert "not a proof" in told["bound_is"]
    assert "search" not in plain.origin


def test_a_map_that_bfloat16_cannot_rank_is_mined_again(place: Path) -> None:
    found, plain = mined(place, Stepped(), "fast"), mined(place, Stepped(), "float32")
    told = found.origin["search"]
    assert (told["certified"], told["mined_again"]) == (0, 2)
    assert told["rescored_pictures"] < 16
    assert same(found, plain, (*TABLES, "active", "invalid"))


def test_even_without_a_bound_ties_in_bfloat16_are_no_certificate(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Values above the candidates' are then rounded up, and are as equal as those left out.
    monkeypatch.setattr(fast, "SAFETY", 0.0)
    model = Stepped()
    with torch.no_grad():
        model.first.weight *= 0.01
        model.first.bias -= 1
    found = mined(place, model, "fast")
    assert found.origin["search"]["mined_again"] == 2
    assert same(found, mined(place, model, "float32"))


def test_copies_of_candidates_are_computed_again_too(place: Path) -> None:
    with Pictures(place, max_bad=0.2) as pictures:
        list(pictures.read(READY.framing))
        again = [fast.batches_again(np.array([[n, -1]]), pictures, BATCH) for n in (8, 70, 20)]
    assert again[0] == again[1] == [8, 9, 10, 11, 68, 69, 70, 71]
    assert again[2] == [20, 21, 22, 23]


def test_dead_maps_are_dead_and_others_are_not(place: Path) -> None:
    model = Net()
    found, plain = mined(place, model, "fast"), mined(place, model, "float32")
    assert (plain.active == 0).any()
    assert ((found.active == 0) == (plain.active == 0)).all()
    assert abs(found.active - plain.active).max() <= 3
    seen = {"seen": np.array(9), "active": np.array([5, 0, 5]), "invalid": np.zeros(3, np.int64)}
    value = np.array([[-1, -2], [2, 1], [2, -1]], np.float32)
    exact = seen | {"seen": np.array(4), "value": value}
    assert fast.tables(seen, exact)["active"].tolist() == [0, 2, 5]


class Broken(Net):
    """NaN in bright pictures."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.where(x.mean((1, 2, 3), keepdim=True) > 0.8, torch.nan, x))


def test_maps_with_nan_are_mined_again(place: Path) -> None:
    found, plain = mined(place, Broken(), "fast"), mined(place, Broken(), "float32")
    assert plain.invalid.min() > 0
    assert found.origin["search"]["mined_again"] == 6
    assert same(found, plain, (*TABLES, "active", "invalid"))


def test_kept_parts_processes_and_stops_give_the_same_bytes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SECONDS", -1.0)
    model = Stepped()
    plain = mined(place, model, "fast")
    every = (*TABLES, "active", "invalid")
    kept = tmp_path / "run"
    for after in (3, 30, 12):
        asked = iter(range(1000))
        with pytest.raises(Stopped):
            mined(place, model, "fast", Run(folder=kept, stop=lambda a=asked, n=after: next(a) > n))
    again = mined(place, model, "fast", Run(folder=kept))
    assert same(again, plain, every)
    assert again.origin["search"] == plain.origin["search"]
    assert sorted(one.name for one in kept.iterdir()) == ["bfloat16", "candidates", "uncertified"]
    there = mined(place, model, "fast", Run(engine=Processes(1, part=32)))
    assert same(there, plain, every)
    assert there.origin["search"] == plain.origin["search"]


def test_kept_parts_of_another_precision_are_refused(place: Path, tmp_path: Path) -> None:
    kept = tmp_path / "run"
    mined(place, Net(), "fast", Run(folder=kept))
    written = (kept / "bfloat16" / "topk" / "RUN.json").read_text(encoding="utf-8")
    assert '"precision": "bfloat16"' in written


def test_the_model_is_left_as_it_was(place: Path) -> None:
    model = Net()
    before = state_of(model)
    mined(place, model, "fast")
    assert state_of(model) == before


def test_a_precision_that_is_none_and_what_does_not_go_with_it_are_refused(place: Path) -> None:
    tuning = Tuning(Trial(4), 1, 1, "")
    for options in (
        {"precision": "half"},
        {"precision": "fast", "tuning": tuning},
        {"precision": "fast", "part": (0, 2)},
    ):
        with pytest.raises(UsageError) as told:
            topk(Net(), place, preprocess=READY, **options)
        assert told.value.code == "U225"


def test_float32_where_it_is_the_faster_way(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = Net()
    found, plain = mined(place, model, "fast"), mined(place, model, "float32")
    told = found.origin["search"]
    assert told["mined_in"] == "float32"
    assert told["why"]
    assert same(found, plain, (*TABLES, "active", "invalid"))
    monkeypatch.setattr(fast, "multiplies_faster_in_bfloat16", lambda device: True)
    assert "here are 96" in mined(place, model, "fast").origin["search"]["why"]
    assert fast.hindrance(CPU, torch.float32, 100, 100) == ""
    assert "float16" in fast.hindrance(CPU, torch.float16, 100, 100)
    monkeypatch.setattr(fast, "multiplies_faster_in_bfloat16", lambda device: False)
    assert "bfloat16" in fast.hindrance(CPU, torch.float32, 100, 100)
