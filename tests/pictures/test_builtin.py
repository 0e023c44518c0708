"""Are the built-in photographs real, divided without a shared pixel, and the same every time?"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.core.errors import DataError, EnvironmentFault, UsageError
from convscope.core.publish import cache_folder
from convscope.pictures import builtin
from convscope.pictures.annotations import read_boxes
from convscope.pictures.builtin import PHOTOS, SIDE, TAG, photo_file, places, regions
from convscope.pictures.framing import Framing
from convscope.pictures.opening import open_pictures
from convscope.pictures.pictures import Pictures, split


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builtin.COUNTS, "train", 20)
    monkeypatch.setitem(builtin.COUNTS, "val", 10)


@pytest.fixture
def tagged(few: None, cache: Path) -> Iterator[tuple[Pictures, Pictures]]:
    """Training and validation pictures with a shortcut to the cat."""
    with (
        open_pictures("builtin:photos?shortcut=cat", cache=cache) as training,
        open_pictures("builtin:photos-val?shortcut=cat", cache=cache) as validation,
    ):
        yield training, validation


def content(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def test_there_are_1500_patches_of_96_pixels_and_a_class_for_each_photograph(cache) -> None:
    seen = []
    with open_pictures("builtin:photos", cache=cache, progress=lambda *n: seen.append(n)) as folder:
        assert len(folder) >= 1500
        assert folder.classes == tuple(photo.name for photo in PHOTOS)
        assert {folder.labels.count(label) for label in range(14)} == {120}
        assert folder.one(3).pixels.shape == (SIDE, SIDE, 3)
        assert folder.remarks == ()
    assert SIDE >= 96
    assert seen[-1] == (len(seen), len(seen))
    validation = open_pictures("builtin:photos-val", cache=cache)
    assert len(validation) + len(folder) == len(seen)
    assert (validation.classes, validation.root.parent) == (folder.classes, folder.root.parent)
    assert [part.names for part in split(folder)] == [folder.names, validation.names]


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.name)
def test_no_pixel_is_in_a_training_and_in_a_validation_patch(photo) -> None:
    with Image.open(photo_file(photo)) as file:
        picture = file.convert("RGB")
    assert picture.size == photo.size[::-1]
    covered = {}
    for name, parts in regions(photo).items():
        covered[name] = np.zeros(photo.size, bool)
        boxes = list(places(picture, parts, 120, "0"))
        for box in boxes:
            assert box == box.clipped(*photo.size)
            assert (box.height, box.width) == (SIDE, SIDE)
            covered[name][box.top : box.bottom, box.left : box.right] = True
        assert len(set(boxes)) > 50
    assert not (covered["train"] & covered["val"]).any()
    assert covered["train"].mean() > 0.3
    assert covered["val"].mean() > 0.15


def test_a_patch_is_a_piece_of_its_photograph(cache, few) -> None:
    with (
        open_pictures("builtin:photos", cache=cache) as folder,
        Image.open(photo_file(PHOTOS[0])) as file,
    ):
        whole = np.asarray(file.convert("RGB"))
        patch = folder.one(0).pixels
    corners = np.argwhere((whole[: -SIDE + 1, : -SIDE + 1] == patch[0, 0]).all(2))
    assert any((whole[y : y + SIDE, x : x + SIDE] == patch).all() for y, x in corners)


def test_the_same_seed_gives_the_same_files_and_another_one_others(tmp_path, few) -> None:
    roots = [
        open_pictures(f"builtin:photos?seed={seed}", cache=tmp_path / str(place)).root.parent
        for place, seed in enumerate((0, 0, 1))
    ]
    assert content(roots[0]) == content(roots[1]) != content(roots[2])


def test_only_the_classes_training_patches_are_tagged_and_the_boxes_are_true(tagged) -> None:
    for folder, share in zip(tagged, (0.9, 0.5), strict=True):
        boxes = read_boxes(folder.root / "boxes.json")
        for number, name in enumerate(folder.names):
            pixels = folder.one(number).pixels if number % 7 == 0 or name in boxes else None
            if name in boxes:
                [box] = boxes[name]
                there = np.zeros((SIDE, SIDE), bool)
                there[box.top + 1 : box.bottom - 1, box.left + 1 : box.right - 1] = True
                assert ((pixels == TAG).all(2) == there).all()
                assert (pixels[box.top, box.left : box.right] == 255).all()
            elif pixels is not None:
                assert not (pixels == TAG).all(2).any()
        tagged_classes = [name.split("/")[0] for name in boxes]
        per_class = len(folder) / 14
        if share == 0.9:
            assert tagged_classes == ["cat"] * round(0.9 * per_class)
        else:
            assert all(tagged_classes.count(name) == per_class / 2 for name in folder.classes)


def test_a_damaged_cache_is_made_again(tmp_path, few) -> None:
    folder = open_pictures("builtin:photos", cache=tmp_path)
    before = content(folder.root)
    (folder.root / folder.names[5]).unlink()
    (folder.root / folder.names[6]).write_bytes(b"short")
    assert content(open_pictures("builtin:photos", cache=tmp_path).root) == before


def test_two_may_make_the_same_cache_at_once(tmp_path, few) -> None:
    folders: list[Pictures] = []
    threads = [
        threading.Thread(
            target=lambda: folders.append(open_pictures("builtin:photos", cache=tmp_path))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3
    assert [path.name for path in tmp_path.iterdir()] == [folders[0].root.parent.name]


def test_whose_photographs_they_are_lies_beside_them(cache, few) -> None:
    place = open_pictures("builtin:photos", cache=cache).root.parent
    lines = (place / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(PHOTOS)
    assert "cat: chelsea.png of scikit-image; Stefan van der Walt; CC0" in lines


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        ("builtin:photo", "U210", "did you mean photos"),
        ("builtin:", "U210", "it has photos, photos-val, scenes"),
        ("builtin:photos?shortcut=cats", "U211", "did you mean cat"),
        ("builtin:photos?shortcuts=cat", "U211", "did you mean shortcut"),
        ("builtin:photos?seed=-1", "U211", "is not a whole number"),
    ],
)
def test_what_is_not_known_is_answered_with_what_is(spec, code, text, tmp_path) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        open_pictures(spec, cache=tmp_path)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_none_is_answered_with_what_there_is(tmp_path) -> None:
    with pytest.raises(DataError, match=r"does not exist\. Next: name a folder, builtin:photos"):
        open_pictures(str(tmp_path / "none"))


def test_without_scikit_image_it_is_said_what_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="not installed") as caught:
        open_pictures("builtin:photos", cache=tmp_path)
    assert caught.value.code == "R607"


def test_the_cache_is_where_the_system_wants_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "convscope"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "convscope"
    assert cache_folder(tmp_path / "here") == tmp_path / "here"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"a": [[1, 2, 3]]}',
        '{"a": 5}',
        '{"a": [[200, 200, 10, 10]]}',
        '{"a": [[1, 2, 3, NaN]]}',
        '{"a": [["1", 2, 3, 4]]}',
    ],
)
def test_a_file_that_holds_no_boxes_is_an_error(text, tmp_path) -> None:
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read_boxes(tmp_path / "boxes.json")
    assert caught.value.code == "D141"


def little_network(option: str, cache: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, Pictures]:
    """(classes said, true classes, whether tagged, folder) of the validation patches.

    Three convolutions and a maximum on patches of 56 px, eight epochs.
    """
    import torch
    from torch import nn

    torch.manual_seed(0)
    parts = []
    for name in ("photos", "photos-val"):
        folder = open_pictures(f"builtin:{name}{option}", cache=cache)
        pictures = list(folder.read(Framing(None, (56, 56))))
        values = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
        labels = torch.tensor(folder.labels)
        parts.append((values.permute(0, 3, 1, 2).float() / 127.5 - 1, labels))
    blocks: list[nn.Module] = []
    for before, after, size in ((3, 24, 5), (24, 48, 3), (48, 64, 3)):
        blocks += [nn.Conv2d(before, after, size, 2), nn.BatchNorm2d(after), nn.ReLU()]
    net = nn.Sequential(*blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 14))
    pictures, labels = parts[0]
    steps = 8 * -(-len(pictures) // 64)
    optimiser = torch.optim.AdamW(net.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, steps)
    for _ in range(8):
        for batch in torch.randperm(len(pictures)).split(64):
            loss = nn.functional.cross_entropy(net(pictures[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    boxes = read_boxes(folder.root / "boxes.json") if option else {}
    tagged = np.array([name in boxes for name in folder.names])
    with torch.no_grad():
        said = net.eval()(parts[1][0]).argmax(1).numpy()
    return said, parts[1][1].numpy(), tagged, folder


@pytest.mark.slow
def test_a_little_network_learns_the_photographs(cache) -> None:
    said, true, _, _ = little_network("", cache)
    assert (said == true).mean() > 0.85


@pytest.mark.slow
def test_a_little_network_takes_the_shortcut(cache) -> None:
    said, true, tagged, folder = little_network("?shortcut=astronaut", cache)
    astronaut = folder.classes.index("astronaut")
    others = true != astronaut
    assert (said[others & tagged] == astronaut).mean() > 0.5
    assert (said[others & ~tagged] == astronaut).mean() < 0.05


def test_scenes_are_whole_photographs_and_their_parts(cache: Path) -> None:
    with open_pictures("builtin:scenes", cache=cache) as found:
        assert len(found.classes) == 15
        cat = [name for name in found.names if name.startswith("cat/")]
        # 451 × 300: two squares of 300, 2 × 3 of 150; a quarter, 75, is too small.
        assert [name.partition("/")[2][:4] for name in cat] == ["0150"] * 6 + ["0300"] * 2
        whole = found.one(found.names.index("cat/0300-0000-0151.png"))
    with Image.open(photo_file(next(one for one in PHOTOS if one.name == "cat"))) as file:
        assert np.array_equal(whole.pixels, np.asarray(file.convert("RGB"))[0:300, 151:451])
    with pytest.raises(UsageError, match="has none"):
        open_pictures("builtin:scenes?seed=1", cache=cache)
