"""Does a bad picture among good ones stop a command, and is it told which ones were left out?"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope.cli.app import run
from convscope.core.text import one_line
from convscope.network.load import load
from convscope.pictures.decode.decode import NOTES
from convscope.pictures.opening import open_pictures
from convscope.representations.topk import topk
from tests.pictures import corpus

NET = "zfnet:width=0.05,head=compact"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two good pictures of the same name in two folders, and four files that are none."""
    root = tmp_path / "pictures"
    for number, name in enumerate(("b/one.png", "d/one.jpg")):
        (root / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((31, 44, 3), 90 * number + 20, np.uint8)).save(root / name)
    for name in ("a.jpg", "c.jpg", "e.jpg", "f.jpg"):
        (root / name).write_bytes(b"nothing" if name != "c.jpg" else b"")
    return root


def test_prediction_goes_on_past_unusable_pictures_of_a_folder(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["predict", NET, str(pictures), "--out", str(out), "--max-bad", "0.7"]) == 0
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if line.endswith(("png", "jpg"))] == [
        "b/one.png",
        str(out / "b" / "one.png"),
        "d/one.jpg",
        str(out / "d" / "one.png"),
    ]
    assert "2 of 6 pictures used; 4 skipped (4 D101 not an image)" in told.err
    assert f"which, and why: {out / 'skipped.csv'}" in told.err
    with (out / "skipped.csv").open(newline="") as table:
        assert [row["name"] for row in csv.DictReader(table)] == [
            "a.jpg",
            "c.jpg",
            "e.jpg",
            "f.jpg",
        ]


def test_more_unusable_than_allowed_ends_in_3_with_the_figures_kept(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    good = str(pictures / "b" / "one.png")
    bad = [str(pictures / name) for name in ("a.jpg", "c.jpg", "e.jpg", "f.jpg")]
    assert run(["predict", NET, *bad, good, "--out", str(out)]) == 3
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("convscope: error[D118]: 1 of 5 pictures used; 4 skipped")
    for name in bad[:3]:  # the first three by their whole path, and how many more
        assert name in told
    assert bad[3] not in told
    assert "and 1 more" in told
    assert f"Kept: which pictures, and why, in {out / 'skipped.csv'}." in told
    assert "--max-bad" in told
    assert (out / "one.png").is_file()


@pytest.mark.parametrize("command", [("evaluate", "--labels", "labels.json"), ("atlas",)])
def test_the_list_lies_beside_a_place_for_results_that_stays_free(
    command: tuple[str, ...],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.json").write_text('{"d": 0}')
    out = tmp_path / "out"
    (pictures / "b" / "one.png").unlink()
    for number in ("", "", "-2"):  # the same list is not written twice, and nothing overwritten
        listed = tmp_path / f"out-skipped{number}.csv"
        if number:
            (tmp_path / "out-skipped.csv").write_text("mine")
        assert run([command[0], NET, str(pictures), "--out", str(out), *command[1:]]) == 3
        told = capsys.readouterr().err
        assert f"in {listed}." in told
        assert "error[D1" in told
        assert listed.read_text().count("\n") == 5
    assert not out.exists()


def test_a_single_unusable_picture_tells_its_own_fault_with_its_path(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = str(pictures / "c.jpg")
    assert run(["predict", NET, bad, "--out", str(tmp_path / "out")]) == 3
    assert f"error[D101]: {bad}: empty file." in capsys.readouterr().err


def test_what_is_not_there_is_told_before_the_work(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, gone = str(pictures / "b" / "one.png"), str(pictures / "gone.png")
    assert run(["predict", NET, good, gone, "--out", str(tmp_path / "out")]) == 3
    assert f"error[D121]: {gone}: there is no such file." in capsys.readouterr().err
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert run(["predict", NET, good, "--out", str(taken)]) == 5
    assert f"error[O501]: {taken}: is a file" in capsys.readouterr().err
    assert taken.read_text() == "mine"


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """Two classes; of six pictures one is nearly black, one turned, one clear as glass."""
    root = tmp_path / "changed"
    names = [f"{name}/{n}.png" for name in "ab" for n in range(3)]
    for place, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        made = {0: corpus.grey16(GREY12), 1: corpus.turned("PNG"), 5: corpus.wholly_clear()}
        (root / name).write_bytes(made.get(place, corpus.png()))
    return root


GREY12 = np.linspace(0, 4000, 64 * 48).astype(np.uint16).reshape(48, 64)
MANY = {
    "predict": (),
    "evaluate": (),
    "explain": ("--method", "gradcam"),
    "filters": (),
    "similar": (),
    "silence": ("--layers", "conv1"),
    "probes": ("--layers", "pool1", "--per-class", "1", "--folds", "2"),
    "atlas": ("--layers", "conv1"),
}
LABELS = ("evaluate", "silence")


@pytest.mark.parametrize("command", MANY)
def test_what_was_changed_in_pictures_is_counted_in_a_line_and_listed(
    command: str, changed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    labels = tmp_path / "labels.json"
    labels.write_text('{"a": 0, "b": 1}')
    more = ("--labels", str(labels)) if command in LABELS else ()
    model = f"{NET},classes=2" if command in LABELS else NET
    assert run([command, model, str(changed), "--out", str(out), *MANY[command], *more]) == 0
    lines = [ln for ln in capsys.readouterr().err.splitlines() if ln.startswith("notes: ")]
    assert len(lines) == 1
    for words in (
        "1 × wholly transparent, nothing is left but black",
        "1 × 16-bit values reach 4,000 of 65,535, nearly black: --range 0,4095 or auto",
        "1 × EXIF orientation 6 not applied: --exif apply",
    ):
        assert words in lines[0]
    place = out / "notes.csv"
    assert lines[0].endswith(f": {place}")
    rows = list(csv.DictReader(place.read_text().splitlines()))
    assert {(row["name"], row["code"]) for row in rows} >= {
        ("a/0.png", "N117"),
        ("a/1.png", "N111"),
        ("b/2.png", "N114"),
    }


def test_what_the_notes_say_to_ask_is_taken_and_told(
    changed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--range", "0,4095", "--exif", "apply", "--background", "none")
    assert run(["predict", NET, str(changed), "--out", str(tmp_path / "out"), *asked]) == 0
    told = capsys.readouterr().err
    assert "values 0 to 4,095 stretched from black to white (N118)" in told
    assert "1 × turned as its EXIF orientation 6 says (N116)" in told
    assert "1 × transparent, the colours beneath are shown (N112)" in told
    assert "N117" not in told
    assert "N111" not in told


def test_a_single_picture_tells_its_notes_before_the_work(
    changed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(changed / "a" / "0.png")
    out = tmp_path / "out"
    assert run(["explain", NET, picture, "--method", "gradcam", "--out", str(out)]) == 0
    told = capsys.readouterr().err
    assert "note: 0.png: 16-bit values reach 4,000 of 65,535" in told
    assert run(["explain", NET, picture, "--range", "5,x"]) == 2
    assert "error[U480]: --range 5,x: is no way to read pictures" in capsys.readouterr().err


def test_remarks_about_a_folder_come_before_the_work(
    changed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    changed.rename(root / "train")
    (root / "train" / "empty").mkdir()
    (root / "train" / "words.txt").write_text("words")
    assert run(["evaluate", "no_module_of_that_name:net", str(root)]) != 0
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"{root}: ")
    assert "1 file ignored" in told[0]
    assert "is train the folder meant?" in told[0]
    assert run(["evaluate", "no_module_of_that_name:net", str(root / "train")]) != 0
    assert "class empty has no pictures" in capsys.readouterr().err


def test_pictures_without_any_change_cost_no_line_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(corpus.png())
    (tmp_path / "b.jpg").write_bytes(corpus.jpeg())
    assert run(["predict", NET, str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "note" not in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.csv"))


def test_a_page_says_what_was_changed_before_it_says_what_the_network_sees(
    changed: Path, tmp_path: Path
) -> None:
    for name, words in (
        ("a/0.png", "16-bit values reach 4,000 of 65,535, nearly black"),
        ("a/1.png", "EXIF orientation 6 not applied"),
        ("b/2.png", "wholly transparent, nothing is left but black"),
    ):
        out = tmp_path / name.replace("/", "-")
        told = ["explain", NET, str(changed / name), "--method", "gradcam", "--out", str(out)]
        assert run(told) == 0
        page = (out / "index.html").read_text(encoding="utf-8")
        assert page.index("<h1>") < page.index(words) < page.index('class="maps"')
        assert words in json.loads((out / "records" / "made.json").read_text())["notes"][0]


def test_pages_and_records_of_many_pictures_count_what_was_changed(
    changed: Path, tmp_path: Path
) -> None:
    one, many = tmp_path / "explained", tmp_path / "atlas"
    assert run(["explain", NET, str(changed), "--method", "gradcam", "--out", str(one)]) == 0
    page = (one / "index.html").read_text(encoding="utf-8")
    for code in ("N114", "N117", "N111"):
        assert page.index(f"1 × {NOTES[code]}".replace("'", "&#39;")) < page.index("What the maps")
    expected = {"N114": 1, "N117": 1, "N110": 1, "N111": 1}
    record = json.loads((one / "record" / "record.json").read_text())
    assert record["plain"]["origin"]["picture notes"] == expected
    assert run(["atlas", NET, str(changed), "--layers", "conv1", "--out", str(many)]) == 0
    assert f"1 × {NOTES['N117']} (N117)" in atlas_data(many)["pictures"]["notes"]


def atlas_data(atlas: Path) -> dict[str, Any]:
    text = (atlas / "data" / "atlas.js").read_text(encoding="ascii")
    return dict(json.loads(text[text.index("={") + 1 :].rstrip().removesuffix(";")))


def test_parts_of_a_pass_count_together_what_was_changed(changed: Path) -> None:
    network = load(NET)
    with open_pictures(str(changed)) as folder:
        whole = topk(network, folder, layers=["conv1"], k=2, batch=2)
    parts = []
    for part in range(2):
        with open_pictures(str(changed)) as folder:
            parts.append(topk(network, folder, layers=["conv1"], k=2, batch=2, part=(part, 2)))
    assert whole.origin["picture notes"] == {"N114": 1, "N117": 1, "N110": 1, "N111": 1}
    assert parts[0].merge(parts[1]).origin["picture notes"] == whole.origin["picture notes"]


def test_an_unusual_way_of_reading_stands_in_the_record(changed: Path, tmp_path: Path) -> None:
    network = load(NET)
    with open_pictures(str(changed), range="auto") as folder:
        origin = topk(network, folder, layers=["conv1"], k=2).origin
    assert origin["range"] == "auto"
    assert origin["picture notes"]["N118"] == 1


FORGED = "x\x1b[31m\nconvscope: error[X070]: $\\frac{1 \u202e.png"


@pytest.mark.parametrize("command", [*MANY, "mark"])
def test_no_name_of_a_picture_or_a_class_forges_a_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = "a\nb$\x1b[2J"
    for name in (f"{folder}/{FORGED}", f"{folder}/=1+1.png", "plain/+1.png", "plain/@b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(corpus.turned("PNG"))
    (tmp_path / "in" / "plain" / "=bad\n.png").write_bytes(b"nothing")
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({folder: 0, "plain": 1}))
    more = ("--labels", str(labels)) if command in LABELS else ()
    model = [] if command == "mark" else [f"{NET},classes=2"]
    out = tmp_path / "out"
    told = [command, *model, str(tmp_path / "in"), "--out", str(out), "--max-bad", "0.5"]
    extra = ("--parts", "eye") if command == "mark" else MANY[command]
    assert run([*told, *extra, *more]) == 0
    said = capsys.readouterr()
    for line in (said.out + said.err).split("\n"):
        assert not line.startswith("convscope: error[X070]")
        assert one_line(line) == line
    for path in out.rglob("*.csv"):
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines()[1:]):
            assert not any(cell.startswith(("=", "+", "@")) for cell in row)
