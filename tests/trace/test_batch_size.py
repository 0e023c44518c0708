"""Do we know how much memory a network takes up, and how many pictures fit?"""

from __future__ import annotations

import torch
from torch import nn

from convscope.lens.machine import fitting, sizes, usual_batch
from tests.nets import state_of


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1, bias=False)
    )


def test_the_largest_output_and_what_lives_together_are_counted_in_bytes() -> None:
    found = sizes(chain(), torch.zeros(1, 3, 10, 7))
    assert found.largest == 4 * 8 * 70
    # At the second convolution its input and output live, and the picture; the ReLU adds nothing.
    assert found.live == 4 * (3 + 8 + 2) * 70
    assert found.weights == 4 * (3 * 8 + 8 * 2)


def test_a_picture_larger_than_all_outputs_counts() -> None:
    assert sizes(nn.Conv2d(3, 1, 3, 2), torch.zeros(1, 3, 9, 9)).largest == 4 * 3 * 81


def test_the_network_stays_as_it_was() -> None:
    model = chain()
    before = state_of(model)
    usual_batch(model, torch.zeros(1, 3, 8, 8))
    assert state_of(model) == before


def test_the_usual_batch_is_the_largest_power_of_two_within_24_mb() -> None:
    cpu = torch.device("cpu")
    assert [fitting(size, cpu) for size in (1, 374_000, 375_001, 12_000_000, 13_000_000)] == [
        64,
        64,
        32,
        2,
        1,
    ]
    assert fitting(90_000_000, cpu) == 1
    assert fitting(4 << 20, torch.device("cuda")) == 256
