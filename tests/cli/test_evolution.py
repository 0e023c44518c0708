"""Do `convscope train --keep`, `evolution` and `features` leave what their help promises?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.cli.app import run
from convscope.core.text import lines
from convscope.records.features import LayerFeatures
from convscope.records.predictions import Convergence, Evolution
from convscope.studies.evolution.figure import (
    convergence_figure,
    convergence_table,
    evolution_figure,
)
from convscope.training.recipe import to_toml
from tests.training.conftest import TINY, paint

KINDS = ("pdf", "svg", "png")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures`, and a `run` of three epochs of which all but the second were kept."""
    root = tmp_path_factory.mktemp("evolution")
    paint(root / "pictures" / "train", 13, 0)
    paint(root / "pictures" / "val", 5, 1)
    (root / "plan.toml").write_text(to_toml(TINY))
    command = ["train", str(root / "pictures"), "--recipe", str(root / "plan.toml")]
    more = ["--set", "epochs=3", "--out", str(root / "run"), "--keep", "0,1,3"]
    assert run([*command, *more]) == 0
    return root


@pytest.fixture(scope="module")
def made(root: Path) -> Path:
    out = root / "evolution"
    pictures = str(root / "pictures" / "val")
    more = ["--per-layer", "2", "--layers", "bn1,bn5", "--every", "2", "--out", str(out)]
    assert run(["evolution", str(root / "run"), pictures, *more]) == 0
    return out


def test_a_run_shows_how_its_features_formed(made: Path) -> None:
    features, layers = Evolution.load(made / "features"), Convergence.load(made / "convergence")
    # Of the paper's epochs only the first is there, so that all are taken.
    assert features.epochs.tolist() == layers.epochs.tolist() == [0, 1, 3]
    assert features.units == layers.units
    assert [unit.split(":")[0] for unit in features.units] == ["bn1", "bn1", "bn5", "bn5"]
    assert features.image.max() < 8, "every second of 15 pictures"
    for name in ("figure", "patches", "layers"):
        assert all((made / f"{name}.{kind}").stat().st_size > 1000 for kind in KINDS)
    rows = (made / "table.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:4]] == ["bn1", "bn5"]


def test_words_of_the_figures_are_large_enough_and_apart(made: Path) -> None:
    features, layers = Evolution.load(made / "features"), Convergence.load(made / "convergence")
    for figure in (
        evolution_figure(features),
        evolution_figure(features, patches=True),
        convergence_figure(layers),
    ):
        figure.draw_without_rendering()
        for axes in figure.axes:
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                boxes = [label.get_window_extent() for label in labels if label.get_visible()]
                apart = [
                    a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
                    for place, a in enumerate(boxes)
                    for b in boxes[place + 1 :]
                ]
                assert all(apart)
                assert all(label.get_fontsize() >= 7 for label in labels)


def test_jumps_are_marked_where_another_picture_took_over(made: Path) -> None:
    features = Evolution.load(made / "features")
    marks = [axes.lines[0].get_xydata() for axes in evolution_figure(features).axes if axes.lines]
    jumps = (features.image[:, 1:] != features.image[:, :-1]).sum()
    assert sum(map(len, marks)) == jumps > 0


def test_the_table_has_a_line_a_layer_and_the_papers_words(made: Path) -> None:
    record = Convergence.load(made / "convergence")
    assert "paper" not in "".join(lines(convergence_table(record)))
    table = lines(convergence_table(record, beside=True))
    assert len({len(line) for line in table}) == 1
    assert "a few epochs" in table[-2]
    assert "40 to 50" in table[-1]


def test_other_checkpoints_need_the_networks_name(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from convscope.network.load import load

    place, pictures = root / "plain", str(root / "pictures" / "val")
    place.mkdir()
    for epoch in (1, 2):
        state = load(root / "run").model.state_dict()
        torch.save(state, place / f"epoch_{epoch}.pt")
    asked = ["evolution", str(place), pictures, "--per-layer", "1", "--layers", "bn2"]
    assert run([*asked, "--out", str(root / "x")]) == 4
    assert "name the network with --model" in capsys.readouterr().err
    assert run([*asked, "--epochs", "1,5", "--out", str(root / "x")]) == 3
    assert "no checkpoint of epoch 5; it has 1, 2" in capsys.readouterr().err
    assert run([*asked, "--epochs", "1-5", "--out", str(root / "x")]) == 2
    assert not (root / "x").exists()
    assert run([*asked, "--model", str(root / "run"), "--out", str(root / "named")]) == 0
    found = Convergence.load(root / "named" / "convergence")
    assert found.responses == pytest.approx(1, abs=1e-6), "both epochs are the same network"
    assert not found.jumps.any()


def test_maps_are_drawn_for_print_and_drawn_again(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, atlas = (str(root / name) for name in ("print", "again", "atlas"))
    spec, pictures = str(root / "run"), str(root / "pictures" / "val")
    more = ["--maps", "bn2:3,bn2:0,bn5:1", "--top", "4", "--out", first]
    assert run(["features", spec, pictures, *more]) == 0
    kept = [LayerFeatures.load(root / "print" / f"layer-{n}") for n in range(2)]
    assert [(record.layer, record.maps) for record in kept] == [("bn2", (3, 0)), ("bn5", (1,))]
    assert run(["features", first, "--scale", "layer", "--layers", "bn5", "--out", again]) == 0
    assert not (root / "again" / "layer-1").exists()
    assert all((root / "again" / f"figure.{kind}").stat().st_size > 1000 for kind in KINDS)
    capsys.readouterr()
    mine = ["--layers", "bn2,bn5", "--top", "4", "--fast", "--out", atlas]
    assert run(["atlas", spec, pictures, *mine]) == 0
    assert "searched in float32, which is the faster way here: " in capsys.readouterr().err
    assert run(["features", atlas, "--maps", "bn2:3", "--out", str(root / "of-atlas")]) == 0
    drawn = LayerFeatures.load(root / "of-atlas" / "layer-0")
    search = ["features", spec, pictures, "--maps", "bn2:3", "--top", "4", "--out"]
    assert run([*search, str(root / "searched"), "--fast"]) == 0
    assert "searched in float32, which is the faster way here: " in capsys.readouterr().err
    searched = LayerFeatures.load(root / "searched" / "layer-0")
    for field in dataclasses.fields(LayerFeatures):
        mine, theirs = getattr(drawn, field.name), getattr(searched, field.name)
        if field.name == "grids":  # those that show in all maps that were drawn
            continue
        if field.name == "origin":
            assert mine["weights_sha256"] == theirs["weights_sha256"]
            assert mine["contents_sha256"] == theirs["contents_sha256"]
        else:
            assert np.array_equal(mine, theirs), field.name
    assert np.array_equal(drawn.image[0], kept[0].image[0])
    assert run(["features", atlas, "--maps", "random:2", "--out", str(root / "two")]) == 0
    assert len(LayerFeatures.load(root / "two" / "layer-1").maps) == 2
    with Image.open(root / "two" / "figure.png") as picture:
        assert picture.width > 300
    capsys.readouterr()
    for arguments, status, said in (
        ([first, "--maps", "random:3"], 2, "the maps were chosen when"),
        ([str(root / "pictures")], 2, "is neither an atlas nor"),
        ([first, "--layers", "bn3"], 4, "bn3: no such layer here"),
        ([atlas, "--layers", "bn9"], 4, "no such layer here"),
        ([spec, pictures, "--scale", "own"], 2, "is no scale"),
        ([spec, pictures, "--maps", "random:0"], 2, "is no number of maps"),
    ):
        assert run(["features", *arguments, "--out", str(root / "none")]) == status
        assert said in capsys.readouterr().err
    assert not (root / "none").exists()
