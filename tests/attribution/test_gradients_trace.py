"""Is a network left as it was found, whatever happens, and may many threads explain it at once?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from convscope.attribution import formulas as cam
from convscope.attribution.gradients import METHODS
from convscope.core.errors import ModelError
from convscope.records.maps import Attribution
from tests.attribution.cam_nets import net_of, pictures
from tests.attribution.test_gradients_defects import FEW, RULED, maps_of
from tests.nets import Fire, Residual, Stumbling, state_of
from tests.nets import pictures as noise


@pytest.mark.parametrize("name", METHODS)
def test_the_model_and_the_callers_state_come_back_as_they_were_found(name: str) -> None:
    for make in (lambda: net_of("norm first, as DenseNet").float(), Residual, Fire):
        net, images = make().train(), noise(2)
        for number, weight in enumerate(net.parameters()):
            weight.requires_grad_(number % 2 == 0)
        before, chance, input_ = state_of(net), torch.get_rng_state(), images.clone()
        how = {"other": "gradient"} if name in RULED else {}
        maps_of(name, net, images, target=1, **how)
        assert state_of(net) == before
        assert net.training
        assert torch.equal(torch.get_rng_state(), chance)
        assert torch.equal(images, input_)
        assert images.grad is None
        assert not images.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", METHODS)
def test_the_model_comes_back_as_it_was_found_after_an_error(name: str) -> None:
    how = {"layer": "relu"} if name == "guided-gradcam" else {}
    net = Stumbling()
    before = state_of(net)
    with pytest.raises((RuntimeError, ModelError)):
        maps_of(name, net, noise(1), target=1, **how)
    assert state_of(net) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", METHODS)
def test_also_after_an_error_of_a_later_run(name: str) -> None:
    class Tires(Residual):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(len(x))
            scores = super().forward(x)
            if len(runs) == last:
                raise ValueError("tired")
            return scores

    net = Tires().train()
    before = state_of(net)
    runs: list[int] = []
    last = 0
    maps_of(name, net, noise(1), target=1)  # the first time it is also seen what its output means
    runs.clear()
    maps_of(name, net, noise(1), target=1)
    last = len(runs)
    assert (last > 1) == (name in (*FEW, "guided-gradcam"))
    runs.clear()
    with pytest.raises(ModelError, match="ValueError: tired"):
        maps_of(name, net, noise(1), target=1)
    assert state_of(net) == before
    assert torch.is_grad_enabled()
    assert not torch.overrides._get_current_function_mode_stack()


class Backward(TorchDispatchMode):
    """Writes down for which of (input, weight, bias) each convolution computed gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[list[bool]] = []
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(list(args[-1]))
        self.products += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_no_gradient_of_any_weight_is_computed(name: str) -> None:
    net = net_of("linear layers, as VGG").requires_grad_()
    with Backward() as seen:
        maps_of(name, net, pictures(2), target=1)
    assert len(seen.masks) >= 2
    assert all(mask == [True, False, False] for mask in seen.masks)
    # Two linear layers below one score: one product each a way down, none for their weights.
    assert seen.products == len(seen.masks) or name == "guided-gradcam"


@pytest.mark.parametrize("name", METHODS)
def test_a_network_left_in_train_mode_is_seen_in_eval_mode(name: str) -> None:
    net, images = net_of("average and linear, as ResNet"), pictures(2)
    one = maps_of(name, net.train(), images, target=2)
    other = maps_of(name, net.eval(), images, target=2)
    assert one[0].peak > 0
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))


def test_sixteen_threads_on_one_model_get_the_serial_answers() -> None:
    net, images = net_of("maps of classes, as SqueezeNet"), pictures(2)
    jobs: list[Callable[[], list[Attribution]]] = [
        lambda name=name, target=target: maps_of(name, net, images, target=target)
        for name in METHODS
        for target in (1, 2, 3)
    ]
    jobs += [
        lambda: cam.METHODS["layercam"](net, images),
        lambda: cam.METHODS["fullgrad"](net, images),
    ]
    serial = [job() for job in jobs]
    answers: list[list[Attribution]] = [[] for _ in jobs]
    faults: list[Exception] = []

    def work(first: int) -> None:
        try:
            for number in [*range(first, len(jobs)), *range(first)][::2]:
                answers[number] = jobs[number]()
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    for one, other in zip(serial, answers, strict=True):
        assert all(np.array_equal(a.values, b.values) for a, b in zip(one, other, strict=True))
        assert [a.score for a in one] == [b.score for b in other]
