"""Is it told whose code failed, where, and with which words, wherever it was run from?"""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import convscope
from convscope.core.errors import ModelError
from convscope.core.foreign import TheirCode
from convscope.lens.lens import Lens, run_with_hooks
from convscope.studies.explain.record import Explanation

PICTURE = torch.zeros(1, 3, 16, 16)


class Own(nn.Module):
    """Somebody's network, whose forward does something of its own at its end."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(self.conv(x).mean((2, 3))))


class Whim(Exception):
    def __str__(self) -> str:
        raise ValueError("no words, either")


def raising(fault: BaseException) -> Callable[[Tensor], Tensor]:
    def last(_: Tensor) -> Tensor:
        raise fault

    return last


def deeper(x: Tensor) -> Tensor:
    return deeper(x + 1)


FAULTS = {
    "ValueError: boom": raising(ValueError("boom\nand more")),
    "TypeError: unsupported operand": lambda _: sum(["a"]),
    "IndexError: list index": lambda x: [x][3],
    "KeyError: 'scores'": lambda x: {"logits": x}["scores"],
    "ZeroDivisionError: division": lambda x: x * (1 / 0),
    "AssertionError: at raise fault": raising(AssertionError()),
    "RecursionError: maximum": deeper,
    "StopIteration: no": raising(StopIteration("no")),
    "NotImplementedError: at raise fault": raising(NotImplementedError()),
    "Whim: at raise fault": raising(Whim()),
    "RuntimeError: size mismatch, I say": raising(RuntimeError("size mismatch, I say")),
    "SystemExit: 3": lambda _: sys.exit(3),
    "SystemExit: None": raising(SystemExit()),
    "KeyboardInterrupt: at raise fault": raising(KeyboardInterrupt()),
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_fault_of_the_networks_own_code_has_its_name_words_and_line(said: str) -> None:
    net = Own(FAULTS[said])
    for run in (
        lambda: Lens(net, []).__enter__()(PICTURE),
        lambda: run_with_hooks(net, PICTURE, lambda *_: None),
        lambda: convscope.gradcam(net, PICTURE),
        lambda: convscope.deconvnet_class(net, PICTURE),
        lambda: convscope.evaluate(
            convscope.load(net), convscope.open_pictures("builtin:photos-val")
        ),
    ):
        with pytest.raises(ModelError) as caught:
            run()
        assert caught.value.code == "M574"
        assert said in str(caught.value)
        assert "test_foreign.py, line " in str(caught.value)
        assert type(caught.value.__cause__).__name__ == said.partition(":")[0]


@pytest.mark.parametrize(
    "last", [lambda x: x @ torch.ones(9, 2), lambda x: x.view(-1, 7), nn.Linear(9, 2)]
)
def test_what_torch_says_of_sizes_is_told_of_the_picture_with_the_line(last) -> None:
    with pytest.raises(ModelError, match=r"does not take a picture of 3 × 16 × 16 \(R") as caught:
        Lens(Own(last), []).__enter__()(PICTURE)
    assert caught.value.code == "M522"
    assert "test_foreign.py, line " in str(caught.value)


def test_a_fault_on_the_way_down_is_the_networks_too() -> None:
    class Down(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, signal):
            raise ValueError("no way down")

    for method in (convscope.gradcam, convscope.saliency, convscope.fullgrad):
        with pytest.raises(ModelError, match=r"ValueError: no way down \(.*test_foreign.py, line"):
            method(Own(Down.apply), PICTURE)


def test_an_interrupt_from_outside_stays_one() -> None:
    for last in (
        lambda _: signal.raise_signal(signal.SIGINT),
        lambda _: os.kill(os.getpid(), signal.SIGINT),
        lambda x: (_thread.interrupt_main(), x)[1],
    ):
        with pytest.raises(KeyboardInterrupt):
            Lens(Own(last), []).__enter__()(PICTURE)


def test_our_own_mistakes_and_memory_are_left_as_they_are() -> None:
    def mistaken(layer: nn.Module, _: object) -> None:
        raise AttributeError(layer)

    mistaken.__code__ = mistaken.__code__.replace(
        co_filename=str(Path(convscope.__file__).parent / "lens" / "lens.py")
    )
    with pytest.raises(AttributeError):
        run_with_hooks(Own(lambda x: x), PICTURE, mistaken)
    for fault in (
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried"),
        OSError("not enough memory"),
    ):
        with pytest.raises(type(fault)), TheirCode("M574", "the network"):
            raise fault
    with pytest.raises(ModelError), TheirCode("M574", "the network"):
        raise ValueError("we ran out of memory slots")


def test_a_target_and_a_method_of_ones_own_are_told_by_name() -> None:
    def my_target(scores: Tensor) -> Tensor:
        return scores[:, 99]

    with pytest.raises(ModelError, match=r"my_target: its code raised IndexError: .*line") as told:
        convscope.gradcam(Own(lambda x: x), PICTURE, target=my_target)
    assert told.value.code == "M575"


class Keeping(nn.Module):
    """Keeps its activations, counts its calls, and remembers the last picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)
        self.kept: list[Tensor] = []
        self.by_name: dict[str, list[Tensor]] = {"conv": []}
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        maps = self.conv(x)
        self.kept.append(maps)
        self.by_name["conv"].append(maps)
        self.by_name[f"call {len(self.by_name)}"] = [maps]
        return self.fc(self.kept[-1].relu().mean((2, 3)))


def test_a_network_that_keeps_things_is_looked_at_and_holds_what_it_held() -> None:
    net = Keeping().eval()
    net(PICTURE)
    held = (net.kept, net.by_name, list(net.kept), dict(net.by_name), net.calls)
    found = convscope.gradcam(net, PICTURE, layer="conv")[0]
    convscope.occlusion(net, PICTURE[0], patch=8, stride=8)
    convscope.randomisation(net, PICTURE, {"gradcam": convscope.gradcam})
    assert found.layer == "conv"
    assert net.kept is held[0]
    assert net.by_name is held[1]
    assert [id(one) for one in net.kept] == [id(one) for one in held[2]]
    assert net.by_name.keys() == held[3].keys()
    assert len(net.by_name["conv"]) == 1
    assert net.calls == held[4]


def test_parts_that_speak_through_a_list_still_do() -> None:
    class Speaking(Own):
        def __init__(self) -> None:
            super().__init__(lambda x: x)
            self.heard: list[Tensor] = []
            heard = self.heard
            self.conv.register_forward_hook(lambda *call: heard.append(call[2]))

        def forward(self, x: Tensor) -> Tensor:
            self.conv(x)
            return self.fc(self.heard.pop().mean((2, 3)))

    net = Speaking().eval()
    with Lens(net, []) as lens:
        assert torch.equal(lens(PICTURE), net(PICTURE))


COMMANDS = {
    "predict": "predict {net} a.png",
    "explain": "explain {net} a.png --method gradcam --out e",
    "layers": "layers {net}",
    "check": "check {net} a.png --seconds 0.01",
    "occlusion": "occlusion {net} a.png --out o",
    "features": "features {net} pics --out f",
}
BODIES = {"raise ValueError('boom here')": "ValueError", "import sys; sys.exit(0)": "SystemExit"}


@pytest.mark.parametrize("body", BODIES)
def test_every_command_ends_with_4_and_one_line(body: str, tmp_path, monkeypatch, capsys) -> None:
    from convscope.cli.app import run

    Image.new("RGB", (40, 40), (200, 30, 60)).save(tmp_path / "a.png")
    (tmp_path / "pics").mkdir()
    Image.new("RGB", (40, 40), (20, 30, 60)).save(tmp_path / "pics" / "b.png")
    name = f"own_{'raises' if 'boom' in body else 'leaves'}"
    code = f"""
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)
            def forward(self, x):
                {body}
        """
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
    monkeypatch.chdir(tmp_path)
    for told in COMMANDS.values():
        assert run(told.format(net=f"{name}:Net").split()) == 4, told
        said = capsys.readouterr().err
        assert f"{BODIES[body]}: " in said
        assert f"{name}.py, line 8" in said
        assert "bug in convscope" not in said


def test_the_last_net_tells_the_users_code_outside_of_every_block(monkeypatch, capsys) -> None:
    from convscope.cli import app

    for fault, status in ((ValueError("mine"), 4), (SystemExit(0), 4), (KeyboardInterrupt(), 4)):

        def broken(_: object, fault: BaseException = fault) -> None:
            raise fault

        monkeypatch.setattr(app, "_status", broken)
        assert app.run(["x"]) == status
        assert (
            f"raised {type(fault).__name__}" in (said := capsys.readouterr().err) or "Exit" in said
        )
        assert "test_foreign.py, line" in said


def test_ctrl_c_in_a_forward_is_130(tmp_path) -> None:
    code = """
        import os, signal, time
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)
            def forward(self, x):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(20)
        """
    (tmp_path / "slow.py").write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "-c", "from convscope.cli.app import main; main()", "layers", "slow:Net"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr


class OneByOne(Own):
    """Takes one picture at a time, as code does that reshapes by 1."""

    def __init__(self) -> None:
        super().__init__(lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)).view(1, 4))


class Locked(Own):
    """Holds what copy.deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__(lambda x: x)
        self.lock = _thread.allocate_lock()


def explained(net: nn.Module, folder: Path) -> Explanation:
    from convscope.attribution.registry import chosen
    from convscope.network.preprocess import Preprocess
    from convscope.pages.explain import write_explanation
    from convscope.pictures.pictures import one_picture
    from convscope.studies.explain.study import Checks
    from convscope.studies.explain.study import explain_picture as explain

    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    network = convscope.load(net, preprocess=Preprocess.imagenet(32, 32))
    checks, methods = Checks(steps=3, random=1), chosen(["gradcam"])
    found = explain(network, one_picture(folder / "a.png"), methods, checks=checks)
    write_explanation(folder / "page", found)
    return found


def test_a_test_that_cannot_be_made_is_left_out_said_and_costs_nothing_else(tmp_path) -> None:
    found = explained(Locked().eval(), tmp_path)
    assert list(found.untested) == ["random weights"]
    assert "cannot be copied" in found.untested["random weights"]
    assert "lock" in found.untested["random weights"]
    assert found.tests[0].is_known
    assert found.randomised == ()
    assert len(found.sensitive) == len(found.maps) == 1
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Tests left out" in page
    assert "cannot be copied" in page


def test_maps_are_there_also_where_nothing_can_be_hidden(tmp_path) -> None:
    found = explained(OneByOne().eval(), tmp_path)
    assert list(found.untested) == ["hiding and showing"]
    assert "test_foreign.py, line" in found.untested["hiding and showing"]
    assert not found.tests[0].is_known
    assert found.maps[0].values.any()
    page = (tmp_path / "page" / "index.html").read_text()
    assert "could not be tested" in page
    assert "nan" not in page.lower().replace("tenan", "")


def test_check_tells_what_could_not_be_tried_and_goes_on() -> None:
    seen = set()
    for late in range(2, 40, 4):
        calls: list[int] = []

        def tired(x: Tensor, calls: list[int] = calls, late: int = late) -> Tensor:
            calls.append(1)
            if late <= len(calls) < late + 4:
                raise ValueError("not again")
            return x

        found = convscope.audit(Own(tired), torch.randn(3, 32, 32), seconds=0.01)
        assert any(one.topic == "methods" for one in found.findings)
        untried = [one for one in found.findings if one.question == "could not be tried"]
        seen |= {one.topic for one in untried}
        assert all("ValueError: not again" in one.finding for one in untried)
    assert {"answers", "rectifiers"} <= seen


def test_check_speaks_of_the_scores_of_an_object() -> None:
    net = Own(lambda x: SimpleNamespace(loss=None, logits=x))  # type: ignore[arg-type, return-value]
    found = convscope.audit(net, torch.randn(3, 32, 32), seconds=0.01)
    (form,) = [one for one in found.findings if one.question == "form"]
    assert form.finding.startswith("a SimpleNamespace with logits; ")
    assert form.finding.endswith("(1, 5)")
    assert found.usable


def test_a_network_that_soon_fails_whatever_is_tried_is_not_called_usable() -> None:
    calls: list[int] = []

    def spent(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise IndexError("no more answers")
        return x

    found = convscope.check(Own(spent), torch.randn(3, 32, 32), seconds=0.01)
    assert not found.usable
    assert found.of("bad")[-1].code == "M574"
    methods = [one for one in found.of("warn") if one.topic == "methods"]
    assert all("mend the network's code" in one.advice for one in methods)
