"""What a run is told, and the keywords that came before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convscope
from convscope.core.errors import UsageError
from convscope.core.run import OLD, PLAIN, Run


@pytest.mark.parametrize(
    "told",
    [
        *({"seed": wrong} for wrong in ("0", 1.5, None)),
        *({"progress": wrong} for wrong in (3, "bar")),
        *({"memory": wrong} for wrong in ("1GB", True)),
        {"stop": True},
    ],
)
def test_what_cannot_be_meant_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as fault:
        Run(**told)
    assert fault.value.code == "U380"
    assert next(iter(told)) in str(fault.value)


def test_parts_of_the_work_tell_of_all_of_it() -> None:
    ticks: list[tuple[int, int]] = []
    run = Run(seed=3, progress=lambda *now: ticks.append(now))
    for number in range(2):
        part = run.part(number, 2)
        assert part.seed == 3
        part.tick(1, 2)
        part.tick(2, 2)
    run.telling(None).tick(1, 1)
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert PLAIN.part(0, 2) is PLAIN
    assert (PLAIN.room(5), Run(memory=7).room(5)) == (5, 7)
    assert not PLAIN.is_stopped
    assert Run(stop=lambda: True).is_stopped


@pytest.fixture
def network() -> convscope.Network:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return convscope.load(net.eval(), preprocess=convscope.Preprocess.imagenet(16, 12))


def test_keywords_of_before_are_taken_for_one_release(
    network: convscope.Network, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    ticks: list[tuple[int, int]] = []
    with pytest.warns(DeprecationWarning, match=r"give run=convscope.Run\(progress=…\)") as told:
        convscope.topk(network, tmp_path, "0", k=1, progress=lambda *now: ticks.append(now))
    assert told[0].filename == __file__
    assert ticks == [(1, 1)]
    image = torch.rand(3, 12, 12)
    how: dict[str, Any] = {"patch": 4, "stride": 4, "fill": "noise"}
    with pytest.warns(DeprecationWarning, match="memory=…, seed=…"):
        before = convscope.occlusion(network, image, **how, seed=5, memory=10**8)
    now = convscope.occlusion(network, image, **how, run=Run(seed=5))
    assert np.array_equal(before.probability, now.probability)
    with pytest.warns(DeprecationWarning, match="seed"), pytest.raises(UsageError, match="seed"):
        convscope.smoothgrad(network, image, target=0, seed="one")


def test_no_public_function_names_a_part_of_a_run() -> None:
    import inspect

    apart = {
        "load",
        "train",
        "open",
        "open_pictures",
        "ablation",
    }  # not yet: of downloads and training
    for name in {*convscope.__all__, *convscope._BEFORE} - apart:
        one = getattr(convscope, name)
        if inspect.isfunction(one):
            assert not OLD & inspect.signature(one).parameters.keys(), name
