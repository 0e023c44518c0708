"""Are the checkpoints of a training found, and is the epoch of each one right?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convscope.core.errors import ConvscopeError
from convscope.network.checkpoint import save_weights
from convscope.network.network import Card
from convscope.network.preprocess import Preprocess
from convscope.network.weights import chosen, epoch_named, snapshots

WEIGHTS = {"conv.weight": torch.ones(1, 3, 1, 1)}


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("epoch-010.safetensors", 10),
        ("epoch_7.pt", 7),
        ("resnet18_epoch12_loss0.31.pth", 12),
        ("net-ep3.pth", 3),
        ("epoch=0-step=420.ckpt", 1),
        ("epoch=63-val_loss=0.20.ckpt", 64),
        ("checkpoint_20.pt", 20),
        ("05.pth", 5),
        ("model-5.pt", 5),
        ("resnet18_best.pth", None),
        ("last.ckpt", None),
        ("step40.pt", None),
    ],
)
def test_a_name_tells_the_epoch_after_which_it_was_kept(name: str, epoch: int | None) -> None:
    assert epoch_named(name) == epoch


def test_epochs_come_in_order_and_what_has_none_is_left_out(tmp_path: Path) -> None:
    for name in ("epoch-010.pt", "epoch-2.pt", "best.pt", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "epoch-3.pt").mkdir()
    found = snapshots(tmp_path)
    assert list(found.items()) == [(2, tmp_path / "epoch-2.pt"), (10, tmp_path / "epoch-010.pt")]


def test_the_epoch_is_taken_from_inside_where_the_name_has_none(tmp_path: Path) -> None:
    card = Card("zfnet", ("a", "b"), Preprocess.imagenet(), {"epoch": 4})
    save_weights(tmp_path / "first.safetensors", WEIGHTS, card.metadata())
    save_weights(tmp_path / "plain.safetensors", WEIGHTS)
    assert list(snapshots(tmp_path)) == [4]


def test_of_a_run_only_what_was_kept_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    (tmp_path / "epoch-9.pt").touch()
    with pytest.raises(ConvscopeError, match=r"kept no epochs\. Next: train with --keep") as fault:
        snapshots(tmp_path)
    assert fault.value.code == "D190"
    (tmp_path / "epochs").mkdir()
    (tmp_path / "epochs" / "epoch-001.safetensors").touch()
    assert list(snapshots(tmp_path)) == [1]


def test_what_cannot_be_an_evolution_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConvscopeError, match="holds no checkpoints") as fault:
        snapshots(tmp_path)
    assert fault.value.code == "D190"
    (tmp_path / "best.pt").touch()
    with pytest.raises(ConvscopeError, match=r"tells its epoch: best\.pt") as fault:
        snapshots(tmp_path)
    assert fault.value.code == "D191"
    with pytest.raises(ConvscopeError, match="is no folder") as fault:
        snapshots(tmp_path / "best.pt")
    assert fault.value.code == "C440"
    for name in ("epoch=3-v1.ckpt", "epoch=3.ckpt"):
        (tmp_path / name).touch()
    with pytest.raises(ConvscopeError, match=r"both epoch=3-v1\.ckpt and epoch=3\.c") as fault:
        snapshots(tmp_path)
    assert fault.value.code == "D192"


def test_the_papers_epochs_are_chosen_where_there_are_enough_of_them() -> None:
    usual = (1, 2, 5, 10)
    there = {epoch: Path(str(epoch)) for epoch in range(13)}
    assert chosen(there, None, usual, "x") == [1, 2, 5, 10, 12]
    few = {epoch: Path(str(epoch)) for epoch in (0, 3, 5, 7)}
    assert chosen(few, None, usual, "x") == [0, 3, 5, 7]
    assert chosen(there, [7, 3, 7], usual, "x") == [3, 7]


def test_epochs_that_are_not_there_or_too_few_are_refused() -> None:
    there = {epoch: Path(str(epoch)) for epoch in (1, 4)}
    with pytest.raises(ConvscopeError, match="no checkpoint of epoch 2, 3; it has 1, 4") as fault:
        chosen(there, [1, 2, 3], (), "x")
    assert fault.value.code == "D193"
    many = {epoch: Path(str(epoch)) for epoch in range(65)}
    with pytest.raises(ConvscopeError, match="epoch 70; it has 0, 1, 2, …, 64"):
        chosen(many, [1, 70], (), "x")
    for epochs in ([4], []):
        with pytest.raises(ConvscopeError) as fault:
            chosen(there, epochs, (), "x")
        assert fault.value.code == "D194"
