"""How does an `EvolutionRecorder` get called by Lightning, or by Hugging Face's Trainer?

Neither is imported here unless the training has done so already. Each callback looks at the
untrained network (epoch 0, if it is to be recorded), after each epoch, and always after the last,
on the first process alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from convscope.studies.evolution.recorder import EvolutionRecorder

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
"""The two names that Lightning is installed under; their callbacks are not each other's."""


def lightning_callback(recorder: EvolutionRecorder, part: str = "") -> Any:
    """For `Trainer(callbacks=[…])`. part: name of the network in the LightningModule, e.g. model;
    by default the module itself is looked at, with layers named as in it."""
    home = next((sys.modules[name] for name in LIGHTNING if name in sys.modules), None)
    if home is None:
        import lightning.pytorch as home  # takes seconds

    class LightningEvolution(home.Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
            if trainer.current_epoch == 0:
                self._tell(trainer, pl_module, recorder, 0)

        def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
            self._tell(trainer, pl_module, recorder, trainer.current_epoch + 1)

        def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
            # Lightning has counted the last epoch by now, unless it was broken off.
            self._tell(trainer, pl_module, _last(recorder), trainer.current_epoch)

        def _tell(
            self, trainer: Any, module: nn.Module, to: Callable[[int, nn.Module], None], epoch: int
        ) -> None:
            if trainer.is_global_zero:
                to(epoch, module.get_submodule(part))

    return LightningEvolution()


def hugging_face_callback(recorder: EvolutionRecorder) -> Any:
    """For `Trainer(callbacks=[…])` of transformers. A `TrainerCallback` if transformers has been
    imported, else an object that answers to all of its events."""
    transformers = sys.modules.get("transformers")
    kinds: tuple[type, ...] = (_HuggingFace,)
    if transformers is not None:
        kinds = (_HuggingFace, transformers.TrainerCallback)
    made = type("HuggingFaceEvolution", kinds, {})()
    made.recorder = recorder
    return made


class _HuggingFace:
    """Events of transformers' Trainer; it counts epochs in fractions."""

    recorder: EvolutionRecorder

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **more: Any) -> None:
        if not state.epoch:
            self._tell(state, more, self.recorder)

    def on_epoch_end(self, _args: Any, state: Any, _control: Any, **more: Any) -> None:
        self._tell(state, more, self.recorder)

    def on_train_end(self, _args: Any, state: Any, _control: Any, **more: Any) -> None:
        self._tell(state, more, _last(self.recorder))

    def _tell(self, state: Any, more: dict[str, Any], to: Callable[[int, nn.Module], None]) -> None:
        if state.is_world_process_zero:
            to(round(state.epoch or 0), more["model"])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):  # an event that means nothing to us
            return lambda *_, **__: None
        raise AttributeError(name)


def _last(recorder: EvolutionRecorder) -> Callable[[int, nn.Module], None]:
    """Looks at the last epoch, whether or not it is one of those to record."""

    def look(epoch: int, model: nn.Module) -> None:
        if epoch not in recorder.recorded:
            recorder.look(epoch, model)

    return look
