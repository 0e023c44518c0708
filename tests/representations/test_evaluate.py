"""Are ensembles, ten views, shards and ImageNet's own folders judged as by hand?"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as peer

from convscope.core.errors import DataError, UsageError
from convscope.core.run import Run
from convscope.network.load import load
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures, one_picture
from convscope.pictures.shards import Shards
from convscope.records.predictions import TABLE2, Evaluation, table2
from convscope.representations.predict import Judge, evaluate, plan
from convscope.representations.topk import topk

CROP = (20, 22)


class Scores(nn.Module):
    """Scores are a picture's mean red, green and blue, turned by a matrix."""

    def __init__(self, turn: list[list[float]]) -> None:
        super().__init__()
        self.register_buffer("turn", torch.tensor(turn))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) @ self.turn.T


def network(turn: list[list[float]], classes: tuple[str, ...] = (), side: int = 24) -> Network:
    plain = Preprocess(Framing(side, CROP), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(Scores(turn).train(), plain, classes, f"tests:{turn[0][0]:g}", "none", "")


SHARP = [[9.0, 0, 0], [0, 9, 0], [0, 0, 9]]
BLUNT = [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]
WRONG = [[0.0, 8, 0], [8, 0, 0], [0, 0, 8]]


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Twelve pictures of three classes, with noise; by class folder."""
    draw = np.random.default_rng(3)
    for number in range(12):
        pixels = draw.integers(0, 200, (31, 47, 3))
        pixels[..., number % 3] += 40
        place = tmp_path / "colours" / f"{number % 3}" / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place)
    return tmp_path / "colours"


def softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max())
    return raised / raised.sum()


def by_hand(turns: list[list[list[float]]], place: Path, views: int) -> np.ndarray:
    """Mean softmax over the networks and views, in double precision, cut by torchvision."""
    framing = Framing(24, CROP if views == 1 else (24, 24))
    square = torch.from_numpy(one_picture(place, framing).pixels.copy()).permute(2, 0, 1)
    cuts = [square] if views == 1 else peer.ten_crop(square, list(CROP))
    means = [cut.double().mean((1, 2)).numpy() / 255 for cut in cuts]
    return np.mean([softmax(np.array(turn) @ mean) for turn in turns for mean in means], axis=0)


@pytest.mark.parametrize("views", [1, 10])
def test_an_ensemble_answers_with_the_mean_softmax_of_its_networks(
    colours: Path, views: int
) -> None:
    members = [network(turn) for turn in (SHARP, WRONG, BLUNT)]
    before = [member.model.training for member in members]
    ticks: list[tuple[int, int]] = []
    with Pictures(colours) as folder:
        found = evaluate(
            members, folder, views=views, run=Run(progress=lambda *tick: ticks.append(tick))
        )
        alone = [evaluate(member, folder, views=views) for member in members]
        for row, name in enumerate(found.pictures):
            share = by_hand([SHARP, WRONG, BLUNT], colours / name, views)
            order = np.argsort(-share, kind="stable")
            assert found.likeliest[row].tolist() == order.tolist()
            np.testing.assert_allclose(found.probability[row], share[order], rtol=2e-5)
    assert [member.model.training for member in members] == before
    assert found.members == tuple((one.origin["model"], one.top1, one.top5) for one in alone)
    assert [one.top1 for one in alone] != [found.top1] * 3
    assert len(found.origin["ensemble"]) == 3
    assert ticks[-1] == (36, 36)
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)


def test_a_network_together_with_itself_is_itself_to_the_last_bit(colours: Path) -> None:
    one = evaluate(network(SHARP), colours)
    for many in (2, 3):
        found = evaluate([network(SHARP)] * many, colours)
        assert np.array_equal(found.probability, one.probability)
        assert found.members == (("tests:9", one.top1, one.top5),) * many
    again = Evaluation.load(found.save(colours.parent / "record"))
    assert again.members == found.members


def test_members_may_see_pictures_in_their_own_way(colours: Path) -> None:
    wide = network(SHARP, side=30)
    found = evaluate([network(SHARP), wide], colours)
    one, other = (evaluate(each, colours) for each in (network(SHARP), wide))
    assert not np.array_equal(one.probability, other.probability)
    full = [np.take_along_axis(e.probability, e.likeliest.argsort(1), 1) for e in (one, other)]
    mean = np.mean(full, axis=0)
    np.testing.assert_allclose(
        np.take_along_axis(found.probability, found.likeliest.argsort(1), 1), mean, rtol=1e-6
    )


def test_networks_that_are_no_ensemble_are_refused(colours: Path) -> None:
    named = network(SHARP, ("r", "g", "b"))
    for members in (
        [],
        [named, network(SHARP, ("b", "g", "r"))],
        [network(SHARP), network([*SHARP, [1.0, 1, 1]])],
    ):
        with pytest.raises(UsageError) as fault:
            evaluate(members, colours)
        assert fault.value.code == "U406"


@pytest.mark.parametrize("size", [(24, 24), (24, 31), (40, 24)])
def test_ten_views_are_torchvisions_ten_crops(size: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (*size, 3)).astype(np.uint8))
    framing, cut = plan(network(SHARP).preprocess, 10)
    ours = cut(framing(picture))
    middle = peer.center_crop(picture, [24, 24])
    theirs = [np.asarray(one) for one in peer.ten_crop(middle, list(CROP))]
    # Torchvision takes the corners of the mirrored square: the same five in another order.
    mirrored = [theirs[5 + place] for place in (1, 0, 3, 2, 4)]
    assert [one.tobytes() for one in [*theirs[:5], *mirrored]] == [
        np.ascontiguousarray(one).tobytes() for one in ours
    ]


def as_shards(folder: Path, out: Path) -> str:
    """Two shards of a class folder's pictures, in the same order, classes as numbers."""
    files = sorted(folder.rglob("*.png"))
    for half in range(2):
        with tarfile.open(out / f"s-{half:03}.tar", "w") as shard:
            for path in files[half * 5 : half * 5 + 5 + 2 * half]:
                for end, data in (("png", path.read_bytes()), ("cls", path.parent.name.encode())):
                    entry = tarfile.TarInfo(f"{path.stem}.{end}")
                    entry.size = len(data)
                    shard.addfile(entry, io.BytesIO(data))
    return str(out / "s-{000..001}.tar")


@pytest.mark.parametrize("names", [(), ("red", "green", "blue")])
def test_shards_give_the_numbers_of_the_folder_they_were_made_of(
    colours: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    spec = as_shards(colours, tmp_path)
    one = evaluate(network(SHARP), colours, views=10)
    found = evaluate(network(SHARP, names), spec, views=10)
    assert np.array_equal(found.probability, one.probability)
    assert np.array_equal(found.likeliest, one.likeliest)
    assert (found.top1, found.top5) == (one.top1, one.top5)
    assert one.top1 > 0.5
    assert np.array_equal(found.labels, one.labels)
    flat = {Path(name).name: int(Path(name).parent.name) for name in one.pictures}
    assert evaluate(network(SHARP), spec, labels=flat, views=10).top1 == one.top1
    with Shards(spec) as shards, pytest.raises(UsageError) as fault:
        evaluate(network(SHARP[:2]), shards)
    assert fault.value.code == "U311"


def test_shards_without_labels_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        out = io.BytesIO()
        Image.new("RGB", (30, 30)).save(out, "PNG")
        entry = tarfile.TarInfo("a.png")
        entry.size = len(out.getvalue())
        shard.addfile(entry, io.BytesIO(out.getvalue()))
    with pytest.raises(DataError) as fault:
        evaluate(network(SHARP), tmp_path / "x.tar")
    assert fault.value.code == "D160"
    assert "--labels" in str(fault.value)


def test_imagenets_own_folders_are_matched_by_place_if_they_are_all_there(colours: Path) -> None:
    one = evaluate(network(SHARP), colours).top1
    named = network(SHARP, ("tench", "goldfish", "shark"))
    for old, new in (("0", "n01440764"), ("1", "n01443537"), ("2", "n01484850")):
        (colours / old).rename(colours / new)
    assert evaluate(named, colours).top1 == one
    assert evaluate(network(SHARP, tuple(sorted(p.name for p in colours.iterdir()))), colours)
    for path in (colours / "n01484850").iterdir():
        path.unlink()
    (colours / "n01484850").rmdir()
    with pytest.raises(DataError, match="n01440764: is no class of the network"):
        evaluate(named, colours)


def made(right1: int, right5: int, many: int, members: tuple = ()) -> Evaluation:
    return Evaluation(
        top1=right1 / many,
        top5=right5 / many,
        names=("a",),
        pictures=("x",) * many,
        numbers=np.arange(many),
        labels=np.zeros(many, np.int64),
        likeliest=np.zeros((many, 5), np.int64),
        probability=np.zeros((many, 5), np.float32),
        confusion=np.zeros((1, 1), np.int64),
        views=10,
        members=members,
        origin={"model": "net"},
    )


def test_errors_have_the_interval_of_a_binomial_share() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I: Wilson's
    # score interval of 81/263 is 0.2553 to 0.3662, of 15/148 0.0624 to 0.1605, of 0/20 0 to 0.1611.
    for wrong, many, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        error = made(many - wrong, many, many).error1
        assert error.part == pytest.approx(wrong / many)
        assert (error.low, error.high) == pytest.approx((low, high), abs=5e-5)
    none = made(20, 20, 20).error5
    assert (none.part, none.low) == (0, 0)
    assert none.high == pytest.approx(0.1611, abs=5e-5)


def test_our_errors_stand_below_the_papers() -> None:
    lines = table2(made(60, 80, 100, (("a", 0.58, 0.79), ("b", 0.55, 0.7))))
    assert len(lines) == 2 + len(TABLE2) + 3
    assert "| paper, 1 net (figure 3) | 38.4 | 16.5 |  |" in lines
    assert lines[-3] == "| ours, a | 42.0 | 21.0 |  |"
    assert lines[-1].startswith("| **ours, mean of 2 nets, 100 pictures, 10 views** | **40.0** (3")
    assert len({line.count("|") for line in lines}) == 1
    assert table2(made(60, 80, 100))[-1].startswith("| **ours, net, 100")


def test_a_judge_of_pictures_that_another_pass_reads_says_what_evaluate_says(
    tmp_path: Path,
) -> None:
    draw = np.random.default_rng(5)
    for number in range(9):
        path = tmp_path / ("a", "b", "loose")[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(path)
    (tmp_path / "loose").rename(tmp_path / "c")
    network = load("zfnet:width=0.05,head=compact", classes=["a", "b", "c"], seed=3)
    with Pictures(tmp_path) as folder:
        judge = Judge(network, folder)
        topk(network, folder, ["conv1"], k=1, batch=4, also=judge)
        assert folder.readings == 1
        found, known = judge.evaluation(), evaluate(network, folder)
    assert found.numbers.tolist() == known.numbers.tolist() == list(range(9))
    assert (found.top1, found.labels.tolist()) == (known.top1, known.labels.tolist())
    np.testing.assert_allclose(found.probability, known.probability, rtol=1e-4)
    assert found.origin["weights_sha256"] == known.origin["weights_sha256"]


def test_an_order_of_classes_that_nobody_told_is_called_assumed(colours: Path) -> None:
    with Pictures(colours) as folder:
        nameless = evaluate(network(SHARP), folder)
        named = evaluate(network(SHARP, ("0", "1", "2")), folder)
        told = evaluate(network(SHARP), folder, labels={"0": 0, "1": 1, "2": 2})
    assert nameless.origin["class order"].startswith("assumed: the class folders")
    assert "class order" not in named.origin
    assert "class order" not in told.origin
