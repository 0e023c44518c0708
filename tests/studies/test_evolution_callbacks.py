"""Does a recorder see the right epochs when somebody else's trainer calls it?"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convscope.network.network import Network
from convscope.pictures.pictures import Pictures
from convscope.studies.evolution.recorder import (
    EvolutionRecorder,
    hugging_face_callback,
    lightning_callback,
)

EVENTS = ("init_end", "train_begin", "epoch_begin", "step_begin", "pre_optimizer_step")
EVENTS_LATER = ("optimizer_step", "step_end", "log", "save", "evaluate", "an_event_of_next_year")


@pytest.fixture
def recorder(pictures: Path, network: Network) -> EvolutionRecorder:
    folder = Pictures(pictures)
    return EvolutionRecorder(folder, network.preprocess, per_layer=1, epochs=(0, 1, 3, 9))


def data() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.rand(2, 3, 20, 26, generator=draw), torch.tensor([0, 1])) for _ in range(3)]


class HandMade:
    """A trainer that tells its callbacks what transformers' Trainer tells them."""

    def __init__(self, model: nn.Module, callback: Any, *, chief: bool = True) -> None:
        self.model, self.callback = model, callback
        self.state = SimpleNamespace(epoch=None, is_world_process_zero=chief)

    def tell(self, event: str) -> None:
        more = {"optimizer": None, "train_dataloader": None, "processing_class": None}
        told = getattr(self.callback, f"on_{event}")
        told(SimpleNamespace(), self.state, SimpleNamespace(), model=self.model, **more)

    def train(self, epochs: int) -> None:
        for event in EVENTS[:2]:
            self.tell(event)
        for epoch in range(epochs):
            for event in (*EVENTS[2:], *EVENTS_LATER):
                self.tell(event)
            with torch.no_grad():
                self.model.conv1.weight.add_(0.1)
            self.state.epoch = epoch + 0.9999999  # steps over steps in an epoch
            self.tell("epoch_end")
        self.tell("train_end")


def test_hugging_faces_events_are_answered_and_epochs_counted(
    recorder: EvolutionRecorder, network: Network
) -> None:
    HandMade(network.model.train(), hugging_face_callback(recorder)).train(5)
    # Of 0, 1, 3, 9 those that there were, and the last one.
    assert recorder.recorded == (0, 1, 3, 5)
    assert network.model.training
    assert recorder.record().value.shape == (2, 4)


def test_only_the_first_process_looks(recorder: EvolutionRecorder, network: Network) -> None:
    HandMade(network.model, hugging_face_callback(recorder), chief=False).train(2)
    assert recorder.recorded == ()


def test_a_callback_has_no_other_attributes(recorder: EvolutionRecorder) -> None:
    with pytest.raises(AttributeError, match="state_of_mind"):
        _ = hugging_face_callback(recorder).state_of_mind


def test_transformers_own_trainer_calls_it(
    recorder: EvolutionRecorder, network: Network, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network.model

        def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.net(pixel_values)
            if labels is None:
                return {"logits": logits}
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = [
        {"pixel_values": x, "labels": y} for xs, ys in data() for x, y in zip(xs, ys, strict=True)
    ]
    how = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=3, per_device_train_batch_size=2, report_to=[], use_cpu=True
    )
    callback = hugging_face_callback(recorder)
    assert isinstance(callback, transformers.TrainerCallback)
    trainer = transformers.Trainer(
        model=Wrapped(), args=how, train_dataset=rows, callbacks=[callback]
    )
    trainer.train()
    assert recorder.recorded == (0, 1, 3)
    assert recorder.layers == ("net.conv1", "net.conv2")


def test_lightnings_trainer_calls_it_and_learns_the_same_with_it(
    recorder: EvolutionRecorder, network: Network
) -> None:
    ends = []
    start = {name: value.clone() for name, value in network.model.state_dict().items()}
    for callbacks in ([], [lightning_callback(recorder, "net")]):
        network.model.load_state_dict(start)
        torch.manual_seed(7)
        ends.append(lightning(network.model, callbacks))
    assert recorder.recorded == (0, 1, 3, 4)
    assert recorder.layers == ("conv1", "conv2")
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    assert not torch.equal(ends[0][0], start["conv1.weight"])


def lightning(model: nn.Module, callbacks: list[Any]) -> list[Tensor]:
    """The weights after four epochs with dropout."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, labels = batch
            return nn.functional.cross_entropy(self.net(nn.functional.dropout(images)), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=4,
            accelerator="cpu",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(data(), batch_size=None))
    return [weight.detach().clone() for weight in model.parameters()]
