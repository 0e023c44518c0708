"""Does a name become the right network, and does a wrong one get a clear answer?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from convscope.core.errors import CheckpointError, ModelError, UsageError
from convscope.network.checkpoint import save_weights
from convscope.network.load import Card, load
from convscope.network.preprocess import Preprocess
from convscope.network.zfnet import zfnet
from convscope.pictures.framing import Framing

SMALL = "zfnet:width=0.1,head=compact,norm=batch"
FLOWERS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
TUTORIAL = Preprocess(Framing(160, (144, 144)), (0.5,) * 3, (0.5,) * 3)
IMAGENETS = Preprocess.imagenet().guessed().assumption()


def run_folder(
    folder: Path, spec: str = SMALL, file: str = "best.safetensors", **options: object
) -> Path:
    """What training leaves; the weights are those of seed 7."""
    model = zfnet(5, width=0.1, head="compact", norm="batch", seed=7)
    model.bn1.running_mean += 1  # as if trained
    card = Card(spec, FLOWERS, TUTORIAL, {"epoch": 3})
    save_weights(folder / file, model.state_dict(), card.metadata())
    return folder


def code_of(spec: str | Path, checkpoint: Path | None = None, **options: int) -> str:
    with pytest.raises((ModelError, UsageError)) as caught:
        load(spec, checkpoint, **options)
    assert "\n" not in caught.value.line()
    return caught.value.code


def test_options_in_the_name_shape_the_network() -> None:
    network = load(SMALL, classes=5)
    names = [name for name, _ in network.model.named_children()]
    assert names[:4] == ["conv1", "bn1", "relu1", "pool1"]
    assert names[-1] == "fc8"
    assert network.model.conv1.weight.shape == (10, 3, 7, 7)
    assert network.model.fc8.out_features == 5
    assert network.spec == SMALL


def test_a_list_in_an_option_may_have_commas() -> None:
    for spec in ("alexnet:without=3,4,width=0.1", "alexnet:width=0.1,without=3-4"):
        names = [name for name, _ in load(spec, classes=2).model.named_children()]
        assert "conv3" not in names
        assert "conv4" not in names
        assert "conv5" in names


@pytest.mark.parametrize(("spec", "side"), [("zfnet", 224), ("alexnet", 227)])
def test_our_networks_take_the_papers_input_size(spec: str, side: int) -> None:
    network = load(f"{spec}:width=0.05")
    assert network.preprocess.size == (side, side)
    assert network.model(torch.zeros(1, 3, side, side)).shape == (1, 1000)


def test_a_network_without_weights_says_that_it_has_learned_nothing() -> None:
    network = load(SMALL, classes=5, seed=3)
    assert network.weights == "random, seed 3"
    assert network.sha256 == ""
    assert network.notes == ("the weights are random (seed 3): nothing was learned",)
    assert network.classes == ()
    assert not network.model.training
    again = load(SMALL, classes=5, seed=3).model.state_dict()
    assert all(torch.equal(again[key], v) for key, v in network.model.state_dict().items())


@pytest.mark.parametrize("what", [".", "best.safetensors"])
def test_a_training_run_loads_by_itself_with_all_that_belongs_to_it(
    tmp_path: Path, what: str
) -> None:
    run_folder(tmp_path)
    network = load(tmp_path / what)
    expected = zfnet(5, width=0.1, head="compact", norm="batch", seed=7)
    assert torch.equal(network.model.conv1.weight, expected.conv1.weight)
    assert network.model.bn1.running_mean[0] == 1
    assert network.classes == FLOWERS
    assert network.preprocess == TUTORIAL
    assert network.spec == SMALL
    assert network.weights == str(tmp_path / "best.safetensors")
    assert len(network.sha256) == 64
    assert network.notes == ()


def test_a_run_without_a_best_checkpoint_gives_its_last(tmp_path: Path) -> None:
    run_folder(tmp_path, file="last.safetensors")
    assert load(tmp_path).weights == str(tmp_path / "last.safetensors")


def test_a_checkpoint_of_ours_fits_its_own_name_only(tmp_path: Path) -> None:
    path = run_folder(tmp_path) / "best.safetensors"
    assert load("zfnet:norm=batch,width=0.1,head=compact", path).classes == FLOWERS
    with pytest.raises(CheckpointError) as caught:
        load("zfnet", path)
    assert caught.value.code == "C410"
    assert f"belongs to {SMALL}, not to zfnet" in str(caught.value)


def test_weights_from_elsewhere_fill_our_network(tmp_path: Path) -> None:
    model = zfnet(5, width=0.1, seed=9)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "a.pt"
    )
    network = load("zfnet:width=0.1", tmp_path / "a.pt", classes=5)
    assert torch.equal(network.model.fc6.weight, model.fc6.weight)
    assert network.notes == (
        "took the weights under 'state_dict' in the file",
        "stripped 'module.' from the names",
        IMAGENETS,
    )
    assert code_of("zfnet:width=0.1", tmp_path / "a.pt") == "C412"


def test_a_file_may_not_choose_what_code_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_code.py").write_text("open('ran', 'w')\nmake = None\n")
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path, spec="evil_code:make")
    assert code_of(tmp_path) == "M573"
    assert not (tmp_path / "ran").exists()


def test_a_run_of_user_code_loads_when_the_user_names_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run_net.py").write_text(
        "from convscope.network.zfnet import zfnet\n"
        "def make(classes=9):\n"
        "    return zfnet(classes, width=0.1, head='compact', norm='batch')\n"
    )
    monkeypatch.chdir(tmp_path)
    path = run_folder(tmp_path, spec="run_net:make") / "best.safetensors"
    network = load("run_net:make", path)
    assert network.classes == FLOWERS
    assert network.preprocess == TUTORIAL


@pytest.mark.parametrize("metadata", ["no json", "[]", '{"spec": "zfnet"}', '{"classes": 3}'])
def test_damaged_metadata_are_one_clear_fault(tmp_path: Path, metadata: str) -> None:
    path = save_weights(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {"convscope": metadata})
    assert code_of(path) == "C414"


def test_metadata_that_ask_for_the_impossible_are_refused(tmp_path: Path) -> None:
    run_folder(tmp_path, spec="zfnet:width=999")
    assert code_of(tmp_path) == "U231"


def test_a_plain_file_of_weights_must_be_told_its_network(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    assert code_of(tmp_path / "a.pt") == "C415"
    assert code_of(tmp_path / "absent.safetensors") == "C400"


def test_a_folder_that_is_no_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither best\.safetensors nor last"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        ("zfnt", "did you mean zfnet"),
        ("resnet18", "did you mean torchvision:resnet18"),
        ("qqqqqqqqq", "write efficientnet-lite0, zfnet, alexnet, torchvision:NAME"),
        ("", "write efficientnet-lite0, zfnet, alexnet, torchvision:NAME"),
        ("torchvision", "no such network in torchvision"),
        ("torchvision:resnet17", "did you mean resnet18"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(spec: str, answer: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(spec)
    assert caught.value.code == "M570"
    assert answer in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "code", "answer"),
    [
        ("zfnet:widht=0.5", "U230", "did you mean width"),
        ("zfnet:half", "U230", "write NAME=VALUE"),
        ("zfnet:classes=many", "U231", "is not a whole number from 1"),
        ("zfnet:norm=batch:width=0.5", "U230", "write norm=batch,width=0.5"),
        ("zfnet:width=half", "U231", "is not a number"),
        ("zfnet:norm=layer", "U231", "norm is one of none, lrn, batch"),
        ("torchvision:resnet18:weight=none", "U230", "did you mean weights"),
        ("torchvision:resnet18:weights=IMAGENET1K_V7", "U231", "did you mean IMAGENET1K_V1"),
    ],
)
def test_a_wrong_option_says_what_would_be_right(spec: str, code: str, answer: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(spec)
    assert caught.value.code == code
    assert answer in str(caught.value)


def test_a_folder_of_the_same_name_does_not_hide_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "zfnet")
    assert load("zfnet", classes=2).model.fc8.out_features == 2
    assert load("./zfnet").classes == FLOWERS


def test_a_card_goes_through_metadata_unchanged(tmp_path: Path) -> None:
    card = Card("zfnet", ("naïve", "a/b"), TUTORIAL, {"epoch": 4, "recipe": {"lr": 0.1}})
    plain = json.loads(card.metadata()["convscope"])
    assert plain["spec"] == "zfnet"
    assert plain["epoch"] == 4
    assert plain["classes"] == ["naïve", "a/b"]
    assert Preprocess.from_json(plain["preprocess"]) == TUTORIAL


def test_loading_leaves_the_randomness_of_the_process_alone() -> None:
    before = torch.get_rng_state()
    load(SMALL)
    load("torchvision:squeezenet1_1:weights=none", seed=4)
    assert torch.equal(before, torch.get_rng_state())


def test_the_loaded_model_can_be_trained_on() -> None:
    model = load(SMALL, classes=3).model.train()
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert model.conv1.weight.grad is not None


@pytest.mark.parametrize(
    "spec",
    [
        "zfnet:classes=5",
        "zfnet:classes=5,width=0.1",
        "zfnet:width=0.1,classes=5,head=compact",
        "torchvision:squeezenet1_1:weights=none,classes=5",
        "torchvision:squeezenet1_1:classes=5,weights=none",
    ],
)
def test_a_spec_may_tell_the_number_of_classes(spec: str) -> None:
    found = load(spec)
    assert found.model(torch.zeros(1, *found.preprocess.shape)).shape == (1, 5)
    assert found.spec == spec
    with pytest.raises(UsageError, match="has classes=5, where there are 4"):
        load(spec, classes=4)
