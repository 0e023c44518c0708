"""Do sixteen threads with a Lens each on one model get the answers they would get alone?"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from convscope.lens.lens import Lens
from convscope.trace.backward_rule import BackwardRule
from tests.nets import Residual, pictures, state_of

THREADS, ROUNDS = 16, 12


def ask(net: nn.Module, number: int, turn: int) -> list[Tensor]:
    """One of four kinds of question, on this asker's own picture."""
    x = pictures(1, 17, 15, seed=100 * number + turn)
    kind = (number + turn) % 4
    if kind == 0:
        with torch.no_grad(), Lens(net, ["conv2", "relu#3"]) as lens:
            return [lens(x), lens["conv2"], lens["relu#3"]]
    if kind == 1:
        with torch.no_grad(), Lens(net, ["bn3"], {"bn1": lambda a: a * number}) as lens:
            return [lens(x), lens["bn3"]]
    if kind == 2:
        x.requires_grad_()
        with Lens(net, ["conv3"]) as lens, BackwardRule("deconvnet") as rule:
            lens.reach(x)
            found = torch.autograd.grad(lens["conv3"].amax(), x)
        assert (rule.rewritten, rule.rectifiers) == (2, 2)
        return list(found)
    x.requires_grad_()
    return list(torch.autograd.grad(net(x)[0, 3], x))  # no lens at all: the plain gradient


def test_sixteen_threads_on_one_model_get_the_answers_of_one():
    net = Residual().eval()
    before = state_of(net)
    alone = [[ask(net, number, turn) for turn in range(ROUNDS)] for number in range(THREADS)]
    barrier = threading.Barrier(THREADS)

    def work(number: int) -> list[list[Tensor]]:
        barrier.wait()
        return [ask(net, number, turn) for turn in range(ROUNDS)]

    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(work, range(THREADS)))
    wrong = [
        (number, turn)
        for number in range(THREADS)
        for turn in range(ROUNDS)
        for ours, expected in zip(together[number][turn], alone[number][turn], strict=True)
        if not torch.equal(ours, expected)
    ]
    assert wrong == []
    assert state_of(net) == before


def test_a_network_in_training_is_not_disturbed_by_a_lens_in_another_thread():
    """Its mode is its own: batch statistics are used and move as if nobody looked."""
    net, alone = Residual().train(), Residual().train()
    batches = [pictures(4, 17, 15, seed=turn) for turn in range(40)]
    expected = [alone(x).detach() for x in batches]
    stop = threading.Event()

    def look() -> int:
        looks = 0
        while not stop.is_set():
            with torch.no_grad(), Lens(net, ["bn1"]) as lens:
                lens(batches[0])
            looks += 1
        return looks

    with ThreadPoolExecutor(3) as pool:
        watchers = [pool.submit(look) for _ in range(3)]
        ours = [net(x).detach() for x in batches]
        stop.set()
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert torch.equal(net.bn1.running_var, alone.bn1.running_var)
    assert sum(watcher.result() for watcher in watchers) > 3


def test_one_lens_shared_by_threads_shows_each_thread_its_own_run():
    net = Residual().eval()
    inputs = [pictures(1, 17, 15, seed=number) for number in range(8)]
    expected = [net.conv1(x) for x in inputs]
    with Lens(net, ["conv1"]) as lens:

        def look(number: int) -> bool:
            lens(inputs[number])
            return torch.equal(lens["conv1"], expected[number])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(look, list(range(8)) * 10))
