"""Does the study find the place that a network looks at, and tell objects from background?"""

from __future__ import annotations

import csv
import io
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.cli.app import run as command
from convscope.core.errors import ConvscopeError, OutputError, StopAsked
from convscope.core.run import Run
from convscope.core.text import lines
from convscope.core.units import Box
from convscope.network.load import load
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pages.atlas import read_study
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.scale import engine
from convscope.studies.base import boxes_of
from convscope.studies.occlusion.areas import deal_test, hidden_objects, rooms, shared, sign_test
from convscope.studies.occlusion.figure import (
    _three_figures,
    _ticks,
    hidden,
    hidden_objects_figure,
    occlusion_pages,
)
from convscope.studies.occlusion.record import Occlusions
from convscope.studies.occlusion.study import occlusion_study
from convscope.studies.occlusion.table import (
    PAPER,
    hidden_objects_words,
    occlusion_csv,
    occlusion_summary,
    occlusion_table,
    occlusion_words,
)
from tests import nets

HEIGHT, WIDTH = 40, 56
CORNER, PATCH, STRIDE = 8, 8, 4
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


class Corner(nn.Module):
    """Class 1 if the first 8 × 8 pixels are bright: its score is three times their mean over 255;
    that of class 0 is 1.2. NaN where the last pixel is white."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[1] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        last = x[:, :, -1, -1].mean(1, keepdim=True)
        broken = torch.where(last > 0.99, math.nan, 0.0)
        maps = self.relu(self.conv(x))
        bright = maps[:, :, :CORNER, :CORNER].mean((2, 3))
        return bright + torch.tensor([1.2, 0.0]) + broken


class Red(nn.Module):
    """Class 1 by how much pure red there is anywhere, 36 pixels of it giving a score of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[1, :, 0, 0] = torch.tensor([1.0, -1.0, -1.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)).sum((2, 3)) / 12


class Smooth(Red):
    """The same with a nonlinearity that has no deconvnet."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()


def network_of(model: nn.Module, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Network:
    preprocess = Preprocess(Framing(None, size), (0.0,) * 3, (1.0,) * 3)
    return load(model.train(), preprocess=preprocess, classes=("dull", "bright"))


@pytest.fixture
def bright(tmp_path: Path) -> Path:
    """Three pictures with a white corner, one broken file, one that breaks the network."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        pixels = np.full((HEIGHT, WIDTH, 3), 40 + 20 * number, np.uint8)
        pixels[:CORNER, :CORNER] = 255
        pixels[-1, -1] = 255 if number == 2 else 0
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "9.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


@pytest.fixture
def squares(tmp_path: Path) -> tuple[Path, Path]:
    """Grey pictures with a red square of 6 pixels, each time somewhere else, and its box; a last
    picture without one."""
    folder, told = tmp_path / "squares", {}
    folder.mkdir()
    places = [(4, 6), (4, 40), (26, 8), (28, 44), (14, 24), (20, 34)]
    for number, (y, x) in enumerate(places):
        pixels = np.full((HEIGHT, WIDTH, 3), 90 + number, np.uint8)
        pixels[y : y + 6, x : x + 6] = (255, 0, 0)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        told[f"{number}.png"] = [[x, y, x + 6, y + 6]]
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 60, np.uint8)).save(folder / "z.png")
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(told))
    return folder, path


def told_boxes(path: Path) -> dict[str, list[Box]]:
    told = json.loads(path.read_text())
    return {name: [Box(y, x, y2, x2) for x, y, x2, y2 in boxes] for name, boxes in told.items()}


def ask(model: nn.Module, folder: Path, **how: object) -> Occlusions:
    options: dict[str, object] = {"patch": PATCH, "stride": STRIDE, "target": 1, **how}
    with Pictures(folder, max_bad=1) as pictures:
        return occlusion_study(network_of(model), pictures, **options)  # type: ignore[arg-type]


def overlap(tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
    """Share of the corner that the square at each place hides."""
    down, across = (np.maximum(0, CORNER - starts) for starts in (tops, lefts))
    return np.outer(down, across) / CORNER**2


def test_a_net_that_looks_at_one_corner_loses_its_class_only_there(bright: Path) -> None:
    found = ask(Corner(), bright)
    assert found.pictures == ("0.png", "1.png", "3.png")
    hidden_share = overlap(found.tops, found.lefts)
    assert sorted(set(hidden_share.ravel())) == [0, 0.25, 0.5, 1]
    expected = 1 / (1 + np.exp(1.2 - 3 * (1 - hidden_share)))
    for picture in range(3):
        np.testing.assert_allclose(found.probability[picture], expected, atol=1e-6)
        assert found.worst(picture) == (0, 0)
        assert (found.likeliest[picture] == 0).sum() == 1
    assert found.turned.tolist() == [1, 1, 1]
    assert found.base_likeliest.tolist() == [1, 1, 1]
    assert found.base_probability == pytest.approx(1 / (1 + np.exp(-1.8)), abs=1e-6)


def test_one_bad_picture_never_loses_the_rest(bright: Path) -> None:
    with Pictures(bright, max_bad=1) as pictures:
        found = occlusion_study(network_of(Corner()), pictures, patch=PATCH, stride=12)
        assert [entry.name for entry in pictures.skipped] == ["9.png"]
    assert list(found.origin["left out"]) == ["2.png"]
    assert any("2.png" in line for line in occlusion_words(found))
    with Pictures(bright) as pictures, pytest.raises(ConvscopeError) as fault:
        occlusion_study(network_of(Corner()), pictures)
    assert fault.value.code == "D118"


def test_the_network_is_left_alone(bright: Path) -> None:
    model = Corner().train()
    before = nets.state_of(model)
    ask(model, bright, stride=12)
    assert nets.state_of(model) == before


@pytest.mark.parametrize(("side", "patch", "places"), [(224, 50, 30), (112, 25, 30)])
def test_the_paper_s_square_goes_to_thirty_by_thirty_places(
    side: int, patch: int, places: int, bright: Path
) -> None:
    with Pictures(bright).subset([0]) as pictures:
        found = occlusion_study(network_of(Corner(), (side, side)), pictures)
    assert found.probability.shape == (1, places, places)
    assert found.sides == (patch, patch)
    assert (found.tops[-1], found.lefts[-1]) == (side - patch, side - patch)


def test_the_class_followed_is_the_one_asked_the_true_or_the_likeliest(bright: Path) -> None:
    labels = {"0.png": 0, "1.png": 1}
    told = ask(Corner(), bright, target=None, labels=labels, stride=12)
    assert (told.why, told.target.tolist()) == (("true", "true", "likeliest"), [0, 1, 1])
    assert told.base_probability[0] == pytest.approx(1 / (1 + np.exp(1.8)), abs=1e-6)
    assert ask(Corner(), bright, target="dull", stride=12).why == ("asked",) * 3
    assert ask(Corner(), bright, target=None, stride=12).why == ("likeliest",) * 3


def test_the_map_that_is_followed_is_projected_beside_other_pictures(
    squares: tuple[Path, Path],
) -> None:
    found = ask(Red(), squares[0], target=1)
    assert (found.layer, set(found.channel.tolist())) == ("act", {0, 1})
    assert (found.activity[0].max(), found.base_activity[0]) == (36, 36)
    assert len(set(found.others[0]) - {"0.png", "z.png"}) == 3
    side = found.projections.shape[2]
    assert found.projections.shape == (7, 4, side, side, 3)
    own = np.abs(found.projections[0, 0].astype(int) - 128).max(2) > 20
    rows, columns = np.nonzero(own)
    middle = (side - HEIGHT) // 2  # the picture lies in the middle of a square
    assert (rows.min() - middle, rows.max() - middle) == (4, 9)
    assert (columns.min(), columns.max()) == (6, 11)
    assert found.others[6] == ()  # nothing excites that map
    alone = Pictures(squares[0]).subset([1])
    assert occlusion_study(network_of(Red()), alone, patch=8, stride=24).others == ((),)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_network_keeps_its_own_precision(kind: torch.dtype, squares: tuple[Path, Path]) -> None:
    found = ask(Red().to(kind), squares[0], boxes=told_boxes(squares[1]), stride=12)
    assert found.base_probability[:6] == pytest.approx(1 / (1 + math.exp(-3)), abs=0.01)
    assert found.activity.max() == 36
    assert np.ptp(found.projections[0, 0]) > 50


def test_a_network_without_projections_is_still_drawn(squares: tuple[Path, Path]) -> None:
    found = ask(Smooth(), squares[0], stride=24)
    assert "GELU" in found.origin["projections"] or "rule" in found.origin["projections"]
    assert np.isnan(found.scale).all()
    assert len(occlusion_pages(found, range(7))) == 2


def test_only_squares_on_the_object_count_where_nothing_else_matters(
    squares: tuple[Path, Path],
) -> None:
    record = ask(Red(), squares[0], boxes=told_boxes(squares[1]), stride=2)
    found = hidden_objects(record, permutations=999)
    assert found.pictures == tuple(f"{n}.png" for n in range(6))
    assert found.unmarked == ("z.png",)
    whole, nothing = 1 / (1 + math.exp(-3)), 0.5
    assert found.box == pytest.approx(math.log(whole / nothing), abs=1e-5)
    assert found.beside == pytest.approx(0, abs=1e-6)
    assert found.off == pytest.approx(0, abs=1e-3)  # at most a tenth of the object is hidden
    # Squares that hide half of 36 pixels, by counting; the score falls by a 36th of 3 for each.
    falls = []
    for top in range(0, HEIGHT - PATCH + 1, 2):
        for left in range(0, WIDTH - PATCH + 1, 2):
            down = min(top + 8, 20) - max(top, 14)
            across = min(left + 8, 30) - max(left, 24)
            common = max(0, down) * max(0, across)
            if common >= 18:
                score = 3 * (1 - common / 36)
                falls.append(math.log(whole) + math.log1p(math.exp(-score)))
    assert found.on_squares[4] == len(falls) > 4
    assert found.on[4] == pytest.approx(np.mean(falls), abs=1e-5)
    assert (found.elsewhere < found.difference / 2).all()
    falls_of_4 = math.log(whole) - np.log(record.probability[4].astype(np.float64))
    others = []
    for number in (0, 1, 2, 3, 5):
        marks = told_boxes(squares[1])[f"{number}.png"]
        corners = record.tops.tolist(), record.lefts.tolist()
        share = shared(*corners, (8, 8), marks, (HEIGHT, WIDTH))
        others.append(falls_of_4[share >= 0.5].mean() - falls_of_4[share <= 0.1].mean())
    assert found.elsewhere[4] == pytest.approx(np.mean(others), abs=1e-5)
    assert found.p_dealt < 0.02
    assert found.p_sign < 0.05
    assert found.box_turned.all()  # both scores are 0 then: the first class
    assert found.beside_turned.tolist() == [0.0] * 6
    said = hidden_objects_words(found)
    assert said[0].startswith("Hiding the object lowers the probability more than hiding")
    assert "6 of 6 pictures" in said[0]
    assert any("nothing is marked" in line for line in said)
    assert hidden_objects_figure(found).axes


def test_an_object_that_the_network_ignores_makes_no_difference(
    bright: Path, tmp_path: Path
) -> None:
    boxes = {f"{n}.png": [Box(20, 30, 32, 44)] for n in range(4)}
    record = ask(Corner(), bright, boxes=boxes)
    found = hidden_objects(record, permutations=200)
    assert found.on == pytest.approx(0, abs=1e-6)
    assert (found.difference < 0).all()
    assert found.p_sign > 0.5
    assert not found.box_turned.any()
    assert record.other_likeliest.max() == 1


def test_what_squares_share_with_boxes_is_what_counting_pixels_gives() -> None:
    boxes = [Box(3, 5, 9, 12), Box(6, 10, 14, 30), Box(-4, 15, 2, 40)]
    marked = np.zeros((17, 23), bool)
    for top, left, bottom, right in boxes:
        marked[max(0, top) : bottom, left:right] = True
    for sides in ((5, 3), (15, 20)):
        tops, lefts = range(0, 17 - sides[0] + 1, 2), range(0, 23 - sides[1] + 1, 3)
        found = shared(list(tops), list(lefts), sides, boxes, (17, 23))
        least = min(sides[0] * sides[1], marked.sum())
        for row, top in enumerate(tops):
            for column, left in enumerate(lefts):
                part = marked[top : top + sides[0], left : left + sides[1]]
                assert found[row, column] == pytest.approx(part.sum() / least)


def test_the_areas_beside_an_object_are_as_large_inside_and_apart() -> None:
    found = rooms([Box(10, 20, 20, 30)], (40, 56))
    assert found == [
        Box(0, 23, 10, 33),
        Box(25, 23, 35, 33),
        Box(15, 5, 25, 15),
        Box(15, 38, 25, 48),
    ]
    draw = np.random.default_rng(1)
    fitted = 0
    for _ in range(300):
        top, left = draw.integers(0, 30, 2)
        box = Box(
            int(top), int(left), int(top + draw.integers(1, 40)), int(left + draw.integers(1, 40))
        )
        area = (min(40, box.bottom) - box.top) * (min(56, box.right) - box.left)
        for room in filter(None, rooms([box], (40, 56))):
            fitted += 1
            assert room == room.clipped(40, 56)
            assert area <= room.height * room.width < area + max(room.height, room.width)
            assert (
                room.bottom <= box.top
                or room.top >= box.bottom
                or (room.right <= box.left or room.left >= box.right)
            )
    assert fitted > 100
    assert rooms([Box(0, 0, 40, 50)], (40, 56)) == [None] * 4


def test_chance_is_chance_in_both_tests() -> None:
    up = np.array([1.0, 2.0, 0.5, 3.0, math.nan])
    assert sign_test(up, 4000, 0) == pytest.approx(1 / 16, abs=0.02)
    assert sign_test(-up, 4000, 0) == 1
    table = np.eye(4) + np.arange(4)[:, None]
    assert deal_test(table, 4000, 0) == pytest.approx(1 / 24, abs=0.02)
    assert deal_test(np.ones((4, 4)), 100, 0) == 1


def test_a_study_that_was_stopped_goes_on_and_ends_the_same(
    bright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SECONDS", -1.0)
    kept = tmp_path / "parts"

    def stop(done: int, total: int) -> None:
        if done > total // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(Corner(), bright, run=Run(folder=kept, progress=stop))
    assert [path.name[:19] for path in (kept / "occlusion" / "seg").iterdir()] == [
        "000000000-000000001"
    ]
    told: list[float] = []
    again = ask(
        Corner(), bright, run=Run(folder=kept, progress=lambda done, of: told.append(done / of))
    )
    assert told == sorted(told)
    assert told[-1] == 1
    fresh = ask(Corner(), bright)
    for name in ("probability", "likeliest", "activity", "projections", "square", "target"):
        assert np.array_equal(getattr(again, name), getattr(fresh, name)), name
    assert (again.origin, again.others) == (fresh.origin, fresh.others)
    with pytest.raises(OutputError, match="stride was 4, is 6") as fault:
        ask(Corner(), bright, run=Run(folder=kept), stride=6)
    assert fault.value.code == "O514"


def test_the_record_comes_back_from_disk(squares: tuple[Path, Path], tmp_path: Path) -> None:
    found = ask(Red(), squares[0], boxes=told_boxes(squares[1]), stride=12)
    again = Occlusions.load(found.save(tmp_path / "record"))
    assert (again.boxes, again.others, again.why) == (found.boxes, found.others, found.why)
    assert np.array_equal(again.seen, found.seen)
    assert again.sides == (8, 8)


@pytest.mark.parametrize("fill", [0.0, "mean", "noise", "blur"])
def test_the_square_is_drawn_as_the_network_saw_it(fill: object, bright: Path) -> None:
    found = ask(Corner(), bright, fill=fill)
    drawn = hidden(found, 0)
    row, column = found.worst(0)
    top, left = found.tops[row], found.lefts[column]
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[top : top + PATCH, left : left + PATCH] = False
    assert np.array_equal(drawn[outside], found.seen[0][outside])
    if fill == 0.0:
        assert not drawn[~outside].any()
    if fill == "mean":
        assert abs(int(drawn[top, left, 0]) - found.seen[0].mean()) < 2
    if fill == "noise":
        assert drawn[~outside].std() > 3


def test_tables_and_words_say_what_the_record_holds(squares: tuple[Path, Path]) -> None:
    found = ask(Red(), squares[0], boxes=told_boxes(squares[1]))
    rows = list(csv.DictReader(io.StringIO(occlusion_csv(found).decode())))
    assert [row["picture"] for row in rows] == list(found.pictures)
    for number, row in enumerate(rows):
        values = found.probability[number]
        assert float(row["min"]) == pytest.approx(values.min(), rel=1e-5)
        assert float(row["median"]) == pytest.approx(np.median(values), rel=1e-5)
        top, left = int(row["lowest at y"]), int(row["lowest at x"])
        assert values[found.tops.tolist().index(top), found.lefts.tolist().index(left)] == (
            values.min()
        )
        counts = [int(one.rpartition(" ")[2]) for one in row["likeliest classes"].split("; ")]
        assert sum(counts) == found.places == int(row["places"])
        assert int(row["places with another likeliest"]) == found.turned[number]
    assert rows[6]["boxes hidden"] == ""
    table = lines(occlusion_table(found, beside=True))
    assert lines(occlusion_table(found)) != table
    assert len(lines(occlusion_table(found))) == 2 + 7
    assert table[-3].startswith("| paper: Pomeranian")
    assert len(table) == 2 + 7 + 3
    assert "7 pictures" in occlusion_words(found)[0]
    summed = [line.split("|")[1:-1] for line in lines(occlusion_summary(found))]
    assert [cell.strip() for cell in summed[2][:2]] == ["all", "7"]
    assert float(summed[2][3].split("(")[0]) == pytest.approx(
        found.probability.min((1, 2)).mean(), abs=5e-4
    )
    share = (found.turned > 0).mean()
    assert summed[2][6].strip().startswith(f"{share:.1%}")
    assert [len(page.axes) for page in occlusion_pages(found, range(5))] == [20, 5]


def test_the_papers_rows_are_the_papers() -> None:
    assert PAPER[1][1:3] == (".008 / .293 / .134 / .144", "129 of 900")
    assert "435" in PAPER[1][3]


def test_a_bar_s_ends_and_middle_are_written_once_each() -> None:
    assert _ticks(0.25, 0.75) == [0.25, 0.5, 0.75]
    assert _ticks(0.5, 0.5) == [0.5]
    assert len(_ticks(0.4999, 0.5)) == 1
    assert [_three_figures(tick) for tick in _ticks(0.0, 2e-4)] == ["0", "< 0.001"]
    assert [_three_figures(tick) for tick in _ticks(0, 5000)] == ["0", "2,500", "5,000"]


def test_names_lose_the_folder_that_all_share(bright: Path) -> None:
    from dataclasses import replace

    found = ask(Corner(), bright, stride=24)
    for names, shown in (
        (("a/b/c.png", "a/b/d.png", "a/e.png"), ["b/c.png", "b/d.png", "e.png"]),
        (("roses/1.png", "tulips/1.png", "x.png"), ["roses/1.png", "tulips/1.png", "x.png"]),
        (("/x/1.png", "/x/2\n.png", "/x/3.png"), ["1.png", "2\\n.png", "3.png"]),
    ):
        assert replace(found, pictures=names).picture_names() == shown


def test_a_call_that_was_wrong_leaves_nothing_in_the_way(bright: Path, tmp_path: Path) -> None:
    kept = tmp_path / "parts"
    with pytest.raises(ConvscopeError):
        ask(Corner(), bright, run=Run(folder=kept), patch=41)
    assert not kept.exists()
    assert len(ask(Corner(), bright, run=Run(folder=kept), stride=24).pictures) == 3


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"patch": 41}, "U530"),
        ({"stride": 0}, "U530"),
        ({"fill": "stripes"}, "U531"),
        ({"target": 5}, "U353"),
        ({"target": "dog"}, "U352"),
        ({"layer": "conv9"}, "M500"),
        ({"boxes": {"none.png": [Box(0, 0, 4, 4)]}}, "D196"),
        ({"target": None, "labels": {"nobody": 1}}, "D160"),
    ],
)
def test_what_cannot_be_meant_is_one_line(how: dict[str, object], code: str, bright: Path) -> None:
    with pytest.raises(ConvscopeError) as fault:
        ask(Corner(), bright, **how)
    assert fault.value.code == code


def test_the_command_keeps_all_and_can_be_given_again(
    tmp_path: Path,
    squares: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("convscope.studies.occlusion.table.LISTED", 2)
    out, spec = tmp_path / "out", "zfnet:width=0.0625,head=compact"
    arguments = ["occlusion", spec, str(squares[0]), "--boxes", str(squares[1])]
    arguments += [
        "--stride",
        "87",
        "--target",
        "3",
        "--limit",
        "3",
        "--draw",
        "1",
        "--fill",
        "blur",
    ]
    assert command([*arguments, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("| class ")
    assert said.rstrip().endswith("figure.pdf")
    assert (out / "words.txt").read_text() in said
    kept = {path.name for path in out.iterdir()}
    assert kept >= {"record.json", "objects", "summary.md", "table.csv", "figure.svg", "figure.png"}
    assert "table.md" not in kept  # too many for a line each
    assert kept >= {"objects-figure.pdf"}
    assert not (tmp_path / "out-run").exists()
    assert read_study(out).title == "Occlusion"
    record = Occlusions.load(out)
    assert (record.origin["layer"], record.number.tolist()) == ("pool5", [0, 1, 2])
    assert record.pictures == ("0.png", "3.png", "z.png")
    assert command([*arguments, "--out", str(out)]) == 5
    names = json.loads(squares[1].read_text())
    (tmp_path / "more.json").write_text(json.dumps({**names, "none.png": []}))
    said: list[str] = []
    with Pictures(squares[0]) as folder:
        boxes = boxes_of(folder, tmp_path / "more.json", said.append)
    assert set(boxes or {}) == {*names, "none.png"}
    assert "; 1 of its names are not among them" in said[0]
    for wrong in ([str(tmp_path)], ["--fill", "gray"]):
        assert command(["occlusion", spec, str(squares[0]), *wrong, "--out", str(out / "x")]) == 2
    assert "did you mean grey?" in capsys.readouterr().err


def test_a_command_that_is_stopped_says_where_it_goes_on(
    tmp_path: Path,
    bright: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: object, run: Run, **__: object) -> None:
        Path(str(run.folder)).mkdir(parents=True)
        (Path(str(run.folder)) / "1.seg").touch()
        raise StopAsked(signal.SIGINT)

    monkeypatch.setattr("convscope.studies.occlusion.study.occlusion_study", stopped)
    spec, out = "zfnet:width=0.0625,head=compact", tmp_path / "out"
    assert command(["occlusion", spec, str(bright), "--out", str(out)]) == 75
    assert (
        f"Kept: the finished parts, in {out}-run. Next: the same command goes on from there."
        in capsys.readouterr().err
    )
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="real pictures and weights are not here")
def test_squeezenet_rests_on_the_dog_s_face() -> None:
    weights = SHARED / "squeezenet1_0_imagenet.safetensors"
    network = load("torchvision:squeezenet1_0", weights)
    samples = Pictures(SHARED / "imagenet-samples").subset(lambda name: "Shih-Tzu" in name)
    found = occlusion_study(network, samples, target="Shih-Tzu")
    assert found.probability.shape == (1, 30, 30)
    row, column = found.worst(0)
    middle = found.tops[row] + 25, found.lefts[column] + 25
    assert 20 < middle[0] < 110
    assert 40 < middle[1] < 130
    assert found.turned[0] > 10


def test_words_under_a_panel_keep_clear_of_the_bar_beside_it(bright: Path) -> None:
    from dataclasses import replace

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = ask(Corner(), bright, stride=24)
    values = np.linspace(0.0168, 0.273, found.probability.size, dtype=np.float32)
    long = replace(
        found,
        classes=tuple(f"African crocodile {n}" for n in range(64)),
        probability=values.reshape(found.probability.shape),
    )
    (page, *_) = occlusion_pages(long, range(2))
    FigureCanvasAgg(page).draw()
    for row in range(2):
        panels = page.axes[5 * row : 5 * row + 5]
        words = panels[4].xaxis.label.get_window_extent().padded(page.dpi / 72)  # a point
        bar = panels[3].child_axes[0]
        for tick in bar.get_yticklabels():
            assert not words.overlaps(tick.get_window_extent()), tick.get_text()
