"""How good is the network on pictures it was not trained on?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from convscope.network.preprocess import Preprocess
from convscope.training.stock import Stock

BATCH = 64


@dataclass(frozen=True)
class Tally:
    """Sums over pictures, which add up over processes."""

    loss: float
    correct: float
    pictures: float

    def means(self) -> tuple[float, float]:
        """Mean loss, and part of the pictures that were right."""
        return self.loss / max(1.0, self.pictures), self.correct / max(1.0, self.pictures)


@torch.inference_mode()
def judge(
    model: nn.Module, stock: Stock, preprocess: Preprocess, *, rank: int = 0, world: int = 1
) -> Tally:
    """Cross-entropy and top-1 of one process's share; in float32, as users will run the network.

    Batch number i goes to process i modulo `world`, so that the same pictures are always
    computed together.
    """
    model.eval()
    device = next(model.parameters()).device
    loss = correct = pictures = 0.0
    for start in range(rank * BATCH, len(stock), world * BATCH):
        places = range(start, min(start + BATCH, len(stock)))
        labels = torch.tensor([stock.labels[place] for place in places], device=device)
        images = preprocess.batch(stock.take(places, stock.workers)).to(device)
        scores = model(images.contiguous(memory_format=torch.channels_last)).float()
        loss += F.cross_entropy(scores, labels, reduction="sum").item()
        correct += (scores.argmax(1) == labels).sum().item()
        pictures += len(places)
    return Tally(loss, correct, pictures)
