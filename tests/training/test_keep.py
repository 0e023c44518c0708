"""Do the weights after chosen epochs stay, and are they the network's as it was then?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convscope.core.errors import Stopped, UsageError
from convscope.network.load import load
from convscope.pictures.pictures import Pictures
from convscope.training.trainer import train
from tests.training.conftest import TINY

SHORT = dataclasses.replace(TINY, epochs=3)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_epochs_asked_for_stay_and_are_the_network_as_it_was_then(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    seen: dict[int, dict[str, Tensor]] = {}
    run = tmp_path / "run"

    def watch(epoch: int, model: nn.Module) -> None:
        seen[epoch] = weights(model)

    stopped = iter([False] * 5 + [True] * 50)
    with pytest.raises(Stopped):
        train(
            SHORT,
            training,
            validation,
            run,
            observers=[watch],
            keep=(0, 1, 3),
            stop=lambda: next(stopped),
        )
    first = sorted(path.name for path in (run / "epochs").iterdir())
    assert "epoch-000.safetensors" in first
    assert "epoch-003.safetensors" not in first
    train(SHORT, training, validation, run, observers=[watch], keep=(0, 1, 3))
    kept = sorted((run / "epochs").iterdir())
    assert [path.name for path in kept] == [f"epoch-00{n}.safetensors" for n in (0, 1, 3)]
    for epoch, path in zip((0, 1, 3), kept, strict=True):
        network = load(path)
        assert same(weights(network.model), seen[epoch])
        assert network.classes == ("blue", "green", "red")
    assert not same(seen[0], seen[1])
    assert (run / "last.safetensors").read_bytes() == kept[-1].read_bytes()


def test_an_epoch_that_is_past_cannot_be_kept(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    run, one = tmp_path / "run", dataclasses.replace(TINY, epochs=1)
    train(one, training, validation, run, keep=(1,))
    train(one, training, validation, run, keep=(1,))
    with pytest.raises(UsageError, match="epochs 0 are past, and were not kept") as fault:
        train(one, training, validation, run, keep=(0, 1))
    assert fault.value.code == "U385"


@pytest.mark.parametrize("epoch", [-1, 4])
def test_an_epoch_that_the_recipe_has_not_is_refused_before_anything_is_written(
    training: Pictures, validation: Pictures, tmp_path: Path, epoch: int
) -> None:
    with pytest.raises(UsageError, match=f"there is no epoch {epoch} to keep"):
        train(SHORT, training, validation, tmp_path / "run", keep=(1, epoch))
    assert not (tmp_path / "run").exists()
