"""Is average precision over pictures of several classes that of VOC, on a miniature VOC?"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from convscope.cli.app import run
from convscope.core.errors import DataError
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.annotations import HARD, SHOWN, Lists, numbers_of, read_lists
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.studies.probes.study import STRENGTH
from convscope.studies.transfer.figure import lists_figure
from convscope.studies.transfer.record import PAPER_VOC, ListTransfer
from convscope.studies.transfer.study import transfer_lists

CLASSES = ("cat", "dog", "person")
SIZE = (12, 20)


class Thirds(nn.Module):
    """How red the left, the middle and the right third are."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].mean(1)[:, :18].reshape(-1, 3, 6).mean(2)


@pytest.fixture
def network() -> Network:
    model = nn.Sequential()
    model.add_module("thirds", Thirds())
    model.add_module("scores", nn.Identity())
    plain = Preprocess(Framing(None, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(model.train(), plain, (), "tests:thirds", "by hand", "")


def marks(number: int) -> list[int]:
    """Which classes picture `number` shows (1), hides (0) or has not (-1); never none."""
    draw = np.random.default_rng(number)
    found = draw.choice([-1, -1, 0, 1, 1], 3)
    found[number % 3] = 1
    return [int(value) for value in found]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC's own tree: a class is red in its third, most so where it is marked as hard to see, so
    that it would show if these were judged; 24 + 12 pictures."""
    root = tmp_path / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    parts: dict[str, list[tuple[str, list[int]]]] = {"train": [], "val": []}
    for number in range(36):
        draw = np.random.default_rng(100 + number)
        pixels = draw.integers(0, 120, (*SIZE, 3)).astype(np.uint8)
        for third, mark in enumerate(marks(number)):
            pixels[:, 6 * third : 6 * third + 6, 0] += np.uint8({-1: 0, 0: 90, 1: 60}[mark])
        name = f"2008_{number:06}"
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
        parts["val" if number % 3 == 2 - number // 12 else "train"].append((name, marks(number)))
    for part, listed in parts.items():
        for place, key in enumerate(CLASSES):
            text = "\n".join(f"{name} {mark[place]:2}" for name, mark in listed)
            (root / "ImageSets" / "Main" / f"{key}_{part}.txt").write_text(text + "\n")
        both = "\n".join(f"{name}" for name, _ in listed)
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(both)
    (root / "ImageSets" / "Main" / "dog_trainval.txt").write_text("2008_000000 1\n")
    return root


def test_vocs_own_lists_are_read_with_all_their_marks(voc: Path) -> None:
    found = read_lists(f"{voc}/ImageSets/Main:train")
    assert found.classes == CLASSES
    assert len(found.shown) == 24
    for name, shown in found.shown.items():
        told = marks(int(name[5:]))
        assert [shown.get(key, -1) for key in CLASSES] == told
    assert {HARD, SHOWN} == {mark for shown in found.shown.values() for mark in shown.values()}


def test_precision_is_that_of_copies_of_pictures_with_several_classes(
    network: Network, voc: Path, tmp_path: Path
) -> None:
    lists = [read_lists(f"{voc}/ImageSets/Main:{part}") for part in ("train", "val")]
    before = network.model.training
    found = transfer_lists(network, voc / "JPEGImages", *lists, "thirds")
    assert network.model.training is before
    expected, several = by_hand(voc, lists)
    np.testing.assert_allclose(found.precision, expected, atol=0.01)
    assert found.mean > np.mean(found.judged / found.pictures[1]) + 0.05
    assert found.pictures == (24, 12)
    assert found.several == several > 3
    assert found.hard == sum(v == HARD for s in lists[1].shown.values() for v in s.values()) > 0
    assert found.taught.sum() == sum(
        v == SHOWN for s in lists[0].shown.values() for v in s.values()
    )
    again = ListTransfer.load(found.save(tmp_path / "record"))
    assert again.mean == found.mean
    assert len(lists_figure(again).axes[0].patches) == 3


def by_hand(voc: Path, lists: list[Lists]) -> tuple[list[float], int]:
    """scikit-learn's precision of scikit-learn's softmax, precision made to fall as VOC has it."""
    from sklearn.linear_model import LogisticRegression

    def feature(name: str) -> np.ndarray:
        pixels = np.asarray(Image.open(voc / "JPEGImages" / f"{name}.png")) / 255
        values = np.array([pixels[:, 6 * third : 6 * third + 6, 0].mean() for third in range(3)])
        return values / np.linalg.norm(values)

    rows, label, several = [], [], 0
    for name, shown in lists[0].shown.items():
        mine = [key for key in CLASSES if shown.get(key) == SHOWN]
        rows += [feature(name)] * len(mine)
        label += [CLASSES.index(key) for key in mine]
        several += len(mine) > 1
    mean = np.mean(rows, axis=0)
    spread = np.sqrt(((rows - mean) ** 2).sum(1).mean())
    fit = LogisticRegression(C=STRENGTH["softmax"], max_iter=1000, tol=1e-8)
    fit.fit((rows - mean) / spread, label)
    found = []
    for place, key in enumerate(CLASSES):
        use = [name for name, shown in lists[1].shown.items() if shown.get(key) != HARD]
        score = fit.predict_proba([(feature(name) - mean) / spread for name in use])[:, place]
        positive = np.array([lists[1].shown[name].get(key) == SHOWN for name in use])
        found.append(envelope(score, positive))
        assert found[-1] >= average_precision_score(positive, score) - 1e-9
    return found, several


def envelope(score: np.ndarray, positive: np.ndarray) -> float:
    """Mean over the shown pictures of the best precision at their place or later."""
    order = positive[np.argsort(-score)]
    precision = np.cumsum(order) / np.arange(1, len(order) + 1)
    return float(np.mean([precision[place:].max() for place in np.flatnonzero(order)]))


def test_json_and_csv_say_the_same_as_vocs_lists(voc: Path, tmp_path: Path) -> None:
    theirs = read_lists(f"{voc}/ImageSets/Main:val")
    sure = {n: {k: v for k, v in s.items() if v == SHOWN} for n, s in theirs.shown.items()}
    (tmp_path / "a.json").write_text(json.dumps({n: list(s) for n, s in sure.items()}))
    (tmp_path / "b.json").write_text(json.dumps(theirs.shown))
    with (tmp_path / "c.csv").open("w", newline="") as file:
        rows = [["Picture", "classes"], *([f"{n}.png", ";".join(s)] for n, s in sure.items()), []]
        csv.writer(file).writerows(rows)
    assert read_lists(str(tmp_path / "a.json")).shown == sure
    assert read_lists(str(tmp_path / "b.json")).shown == theirs.shown
    assert read_lists(str(tmp_path / "c.csv")).shown == {f"{n}.png": s for n, s in sure.items()}
    with Pictures(voc / "JPEGImages") as folder:
        places = numbers_of(folder, read_lists(str(tmp_path / "c.csv")))
        assert places == {f"{n}.png": p for n, p in numbers_of(folder, theirs).items()}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[1]", "no table of names"),
        ("a.json", '{"a.png": 3}', "a.png: 3: Expected"),
        ("a.json", '{"a.png": {"dog": 2}}', "a.png is marked 2"),
        ("a.json", "{", "is no list of pictures"),
        ("a.json", "{}", "names no picture of any class"),
        ("a.csv", "picture,classes\na.png,dog,cat", "line 2 is not PICTURE"),
        ("a.csv", "a.png", "line 1 is not PICTURE"),
        ("main/dog_train.txt", "2008_000001 maybe", "is marked 'maybe', not -1, 0 or 1"),
        ("main/dog_train.txt", "2008_000001", "line 1 is not NAME -1"),
        ("main/dog_test.txt", "2008_000001 1", "holds no CLASS_train.txt"),
    ],
)
def test_what_is_no_list_is_told(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / name).write_text(content)
    spec = f"{tmp_path}/main:train" if name.startswith("main") else str(tmp_path / name)
    with pytest.raises(DataError, match=said) as fault:
        read_lists(spec)
    assert fault.value.code == "D208"


def test_pictures_and_classes_that_are_missing_are_told(network: Network, voc: Path) -> None:
    train, val = (read_lists(f"{voc}/ImageSets/Main:{part}") for part in ("train", "val"))
    more = Lists(train.classes, {**train.shown, "2009_000001": {"dog": 1}})
    with pytest.raises(DataError, match="2009_000001: 1 of 25 listed pictures are not") as fault:
        transfer_lists(network, voc / "JPEGImages", more, val, "thirds")
    assert fault.value.code == "D209"
    other = Lists((*val.classes, "sofa"), {**val.shown, "2008_000001": {"sofa": 1}})
    with pytest.raises(DataError, match="sofa: no usable picture of the list to teach") as fault:
        transfer_lists(network, voc / "JPEGImages", train, other, "thirds")
    assert fault.value.code == "D209"
    twice = voc / "JPEGImages" / "again"
    twice.mkdir()
    (voc / "JPEGImages" / "2008_000000.png").rename(twice / "2008_000000.png")
    (voc / "JPEGImages" / "2008_000000.jpg").write_bytes(b"")
    with Pictures(voc / "JPEGImages") as folder, pytest.raises(DataError, match="or twice"):
        numbers_of(folder, Lists(("dog",), {"2008_000000": {"dog": 1}}))


def test_the_command_leaves_record_table_and_figure(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main = f"{voc}/ImageSets/Main"
    command = ["transfer-lists", "zfnet:width=0.05,head=compact,classes=3"]
    command += [str(voc / "JPEGImages"), f"{main}:train", f"{main}:val", "--out", str(out)]
    assert run([*command, "--layer", "relu5"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == str(out / "figure.pdf")
    found = ListTransfer.load(out)
    table = (out / "table.md").read_text().splitlines()
    assert table[-1].split() == f"| mean | | | {100 * found.mean:.1f} |".split()
    assert "24 pictures to teach" in told.err
    assert run([*command[:3], "nothing.csv", f"{main}:val", "--out", str(tmp_path / "x")]) == 3
    assert "error[D208]: nothing.csv" in capsys.readouterr().err


def test_vocs_classes_stand_beside_the_papers() -> None:
    assert len(PAPER_VOC) == 20
    assert np.mean(list(PAPER_VOC.values())) == pytest.approx(79.0, abs=0.01)  # as table 6 prints
    ones = np.ones(20, np.int64)
    found = ListTransfer(
        layer="x",
        vector="flat",
        classes=tuple(PAPER_VOC),
        precision=np.full(20, 0.5),
        taught=ones,
        judged=ones,
        pictures=(20, 20),
        several=0,
        hard=0,
    )
    assert not lists_figure(found).axes[0].lines[0].get_label().startswith("paper")
    axes = lists_figure(found, beside=True).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), list(PAPER_VOC.values()))
