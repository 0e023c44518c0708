"""Do good weights come out of a file as they went in, whatever their wrapping?"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from convscope.core.errors import CheckpointError, EnvironmentFault
from convscope.network.checkpoint import open_checkpoint, read_weights, save_weights

WEIGHTS = {"conv.weight": torch.arange(54.0).reshape(2, 3, 3, 3), "conv.bias": torch.ones(2)}
AVERAGED = {key: value + 1 for key, value in WEIGHTS.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_what_is_saved_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    state = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(4).bfloat16(),
        "count": torch.tensor(7),
        "turned": torch.randn(4, 6).T,
        "view": torch.randn(9)[2:5],
        "laid": torch.randn(1, 8, 3, 2).to(memory_format=torch.channels_last),
    }
    state["tied"] = state["half"]
    path = save_weights(tmp_path / "new" / "a.safetensors", state, {"convscope": '{"é": 1}'})
    weights, metadata = read_weights(path)
    assert same(weights, state)
    assert metadata == {"convscope": '{"é": 1}'}


def test_other_readers_of_safetensors_read_ours(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "a.safetensors", WEIGHTS, {"a": "b"})
    assert same(safetensors.torch.load_file(path), WEIGHTS)
    with safetensors.safe_open(path, "pt") as peer:
        assert peer.metadata() == {"a": "b"}


def test_saving_leaves_no_other_file_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, WEIGHTS)
    save_weights(path, AVERAGED)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    assert same(read_weights(path)[0], AVERAGED)


def test_a_save_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_weights(tmp_path / "a.safetensors", WEIGHTS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EnvironmentFault, match="the disk is full"):
        save_weights(path, AVERAGED)
    assert same(read_weights(path)[0], WEIGHTS)


def test_saving_changes_nothing_in_the_state_it_is_given(tmp_path: Path) -> None:
    weight = torch.randn(2, 2, requires_grad=True)
    save_weights(tmp_path / "a.safetensors", {"w": weight})
    assert weight.requires_grad
    assert weight.grad is None


@pytest.mark.parametrize("modern", [True, False])
def test_both_formats_of_torch_save_are_read(tmp_path: Path, modern: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save(OrderedDict(WEIGHTS), path, _use_new_zipfile_serialization=modern)
    found = open_checkpoint(path)
    assert same(found.weights, WEIGHTS)
    assert found.metadata == {}
    assert found.notes == ()


def test_the_content_decides_the_format_and_not_the_ending(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "a.safetensors")
    (tmp_path / "b.pt").write_bytes(safetensors.torch.save(WEIGHTS))
    assert same(read_weights(tmp_path / "a.safetensors")[0], WEIGHTS)
    assert same(read_weights(tmp_path / "b.pt")[0], WEIGHTS)


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(WEIGHTS, path)
    assert open_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "anything"])
def test_a_training_checkpoint_gives_its_weights_and_says_so(tmp_path: Path, key: str) -> None:
    content: dict[str, Any] = {
        "epoch": 3,
        "best_acc1": torch.tensor(71.5),
        key: WEIGHTS,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        "scaler": {"scale": torch.tensor(65536.0)},
        "pytorch-lightning_version": "2.6.0",
    }
    torch.save(content, tmp_path / "a.ckpt")
    found = open_checkpoint(tmp_path / "a.ckpt")
    assert same(found.weights, WEIGHTS)
    assert len(found.notes) == 1
    assert f"took the weights under '{key}'" in found.notes[0]
    assert "optimizer" in found.notes[0]


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", "ema", "shadow"])
def test_of_model_and_average_none_is_taken_unasked(tmp_path: Path, average: str) -> None:
    path = tmp_path / "a.pt"
    torch.save({"state_dict": WEIGHTS, average: AVERAGED, "epoch": 1}, path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert caught.value.code == "C411"
    assert f"{path}#{average}" in caught.value.next_step
    assert same(read_weights(f"{path}#{average}")[0], AVERAGED)
    assert same(read_weights(f"{path}#state_dict")[0], WEIGHTS)


def test_a_part_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"state_dict": WEIGHTS, "state_dict_ema": AVERAGED}, path)
    with pytest.raises(CheckpointError, match="did you mean state_dict_ema"):
        open_checkpoint(f"{path}#state_dict_em")


def test_a_file_may_have_the_sign_for_a_part_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "run#3.pt"
    torch.save(WEIGHTS, path)
    assert same(read_weights(path)[0], WEIGHTS)


def test_plain_values_beside_the_tensors_are_left_out_and_named(tmp_path: Path) -> None:
    torch.save({**WEIGHTS, "epoch": 4, "name": "x"}, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt")
    assert same(found.weights, WEIGHTS)
    assert found.notes == ("left out what is no tensor: epoch, name",)


def test_parameters_are_read_like_tensors(tmp_path: Path) -> None:
    module = torch.nn.Conv2d(3, 2, 3)
    torch.save(dict(module.named_parameters()), tmp_path / "a.pt")
    assert same(read_weights(tmp_path / "a.pt")[0], module.state_dict())
