"""What has a run been so far, and where does it stand?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convscope.training.recipe import Recipe

COLUMNS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "seconds",
    "pictures_per_second",
)


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for people."""

    stage: str
    """"reading", "remark" once before the first step, "training", or "judged" once an epoch."""
    done: int
    """Pictures read, or steps done in the whole run."""
    total: int
    epoch: int = 0
    """The epoch being trained, from 1; its loss and accuracy so far are on training pictures."""
    epochs: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    pictures_per_second: float = 0.0
    seconds_left: float = 0.0
    val_accuracy: float | None = None
    """Of the last epoch that was judged."""
    remark: str = ""
    """Of that stage: what was decided for this machine, as a sentence."""


@dataclass
class Story:
    """What the run has been so far."""

    rows: list[list[float]]
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = float("inf")

    def add(self, row: list[float]) -> bool:
        """Note an epoch; is it the best? The lower validation loss decides between equals."""
        self.rows.append(row)
        loss, accuracy = row[COLUMNS.index("val_loss")], row[COLUMNS.index("val_accuracy")]
        if (accuracy, -loss) <= (self.best_accuracy, -self.best_loss):
            return False
        self.best_epoch, self.best_accuracy, self.best_loss = len(self.rows), accuracy, loss
        return True

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Story:
        story = cls([])
        for row in plain["rows"]:
            story.add(list(row))
        return story


def work(recipe: Recipe, epoch: int, part: float) -> float:
    """Work done after `epoch` epochs and a part of the next: proportional to the pixels seen."""
    whole = sum(recipe.size_at(number) ** 2 for number in range(epoch))
    return whole + part * recipe.size_at(epoch) ** 2
