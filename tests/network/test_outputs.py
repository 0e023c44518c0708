"""Does every network's output mean what its maker meant, told or found?"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import convscope
from convscope import ConvscopeError
from convscope.core.errors import ModelError
from convscope.network.network import Network
from convscope.network.outputs import KINDS, both_ways, meaning, plain, scored
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Picture

SIDE = 32
SOURCE = Path(__file__).parents[2] / "src" / "convscope"


class Body(nn.Module):
    """Two convolutions, an embedding of 6 by a linear layer, and a head of n."""

    def __init__(self, n: int = 3, end: Callable[[Body, Tensor], Any] | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.conv1 = nn.Conv2d(3, 8, 5, stride=2)
            self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
            self.inner = nn.Linear(8, 6)
            self.head = nn.Linear(6, n)
            self.other = nn.Linear(6, 4)
        with torch.no_grad():
            self.head.weight.mul_(20)
        self.end = end or (lambda net, z: z)

    def forward(self, x: Tensor) -> Any:
        self.conved = self.conv2(self.conv1(x).relu()).relu()
        self.embedding = self.inner(self.conved.mean((2, 3)))
        return self.end(self, self.head(self.embedding))


def load(module: nn.Module, **told: Any) -> Network:
    ready = Preprocess(Framing(SIDE, (SIDE, SIDE)), mean=(0.5,) * 3, std=(0.25,) * 3)
    return convscope.load(module.eval(), preprocess=ready, **told)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def prepared(seed: int = 0) -> Tensor:
    """By hand, as the networks above take it."""
    x = torch.from_numpy(pixels(seed)).permute(2, 0, 1)[None].float() / 255
    return (x - 0.5) / 0.25


def picture(seed: int = 0) -> Picture:
    return Picture(0, "a.png", None, pixels(seed))


def told(network: Network, seed: int = 0, **how: Any) -> dict[int, float]:
    found = convscope.predict(network, picture(seed), top=100, **how)
    return dict(zip(found.classes.tolist(), found.probability.tolist(), strict=True))


@torch.no_grad()
def own(module: nn.Module, seed: int = 0) -> Any:
    return module.eval()(prepared(seed))


ENDS: dict[str, tuple[Callable[[Body, Tensor], Any], Callable[[Any], Tensor], str]] = {
    "logits": (lambda n, z: z, lambda y: y.softmax(1), "logits"),
    "scaled logits": (lambda n, z: z / 3 + 1, lambda y: y.softmax(1), "logits"),
    "rectified": (lambda n, z: (z / 100).relu(), lambda y: y.softmax(1), "logits"),
    "softmax": (lambda n, z: z.softmax(1), lambda y: y, "probabilities"),
    "functional": (lambda n, z: F.softmax(z, dim=-1), lambda y: y, "probabilities"),
    "written out": (
        lambda n, z: z.exp() / z.exp().sum(1, keepdim=True),
        lambda y: y,
        "probabilities",
    ),
    "mean of two": (
        lambda n, z: (z.softmax(1) + (2 * z).softmax(1)) / 2,
        lambda y: y,
        "probabilities",
    ),
    "cut off": (lambda n, z: z.softmax(1).clamp(1e-6, 1), lambda y: y, "probabilities"),
    "log_softmax": (lambda n, z: F.log_softmax(z, 1), lambda y: y.exp(), "log-probabilities"),
    "log of softmax": (lambda n, z: z.softmax(1).log(), lambda y: y.exp(), "log-probabilities"),
    "sigmoids": (lambda n, z: torch.sigmoid(z), lambda y: y, "sigmoid"),
    "sigmoids written out": (lambda n, z: 1 - (-z).sigmoid(), lambda y: y, "sigmoid"),
    "expit": (lambda n, z: torch.special.expit(z), lambda y: y, "sigmoid"),
    "sigmoids by exp": (lambda n, z: 1 / (1 + torch.exp(-z)), lambda y: y, "sigmoid"),
    "sigmoids by a share": (lambda n, z: z.exp() / (1 + z.exp()), lambda y: y, "sigmoid"),
    "half of two sigmoids": (lambda n, z: (z.sigmoid() + (2 * z).sigmoid()) / 2, lambda y: y,
                             "sigmoid"),
    "mean of stacked sigmoids": (
        lambda n, z: torch.stack([(k * z).sigmoid() for k in range(20)]).mean(0),
        lambda y: y,
        "sigmoid",
    ),
    "sum of sigmoids": (lambda n, z: sum((k * z).sigmoid() for k in range(20)) / 20, lambda y: y,
                        "sigmoid"),
    "logsigmoid": (lambda n, z: F.logsigmoid(z), lambda y: y.exp(), "sigmoid-logits"),
    "special softmax": (lambda n, z: torch.special.softmax(z, 1), lambda y: y, "probabilities"),
    "joined sigmoids": (
        lambda n, z: torch.cat([z[:, :1].sigmoid(), z[:, 1:].sigmoid()], 1),
        lambda y: y,
        "sigmoid",
    ),
    "maps of one place": (lambda n, z: z[:, :, None, None], lambda y: y[..., 0, 0].softmax(1),
                          "logits"),
    "softmax of maps": (lambda n, z: z[:, :, None, None].softmax(1), lambda y: y[..., 0, 0],
                        "probabilities"),
    "squeezed": (lambda n, z: z[:, :, None].squeeze(), lambda y: y[None].softmax(1), "logits"),
    "embedding first": (lambda n, z: (n.embedding, z), lambda y: y[1].softmax(1), "logits"),
    "embedding last": (lambda n, z: (z, n.embedding), lambda y: y[0].softmax(1), "logits"),
    "maps beside": (lambda n, z: (n.conved, z), lambda y: y[1].softmax(1), "logits"),
    "pooled beside": (lambda n, z: [n.conved.mean((2, 3)), z], lambda y: y[1].softmax(1), "logits"),
    "with shares": (lambda n, z: (z, z.softmax(1)), lambda y: y[1], "logits"),
    "shares first": (lambda n, z: (z.softmax(1), z), lambda y: y[0], "logits"),
    "dict": (lambda n, z: {"e": n.embedding, "logits": z}, lambda y: y["logits"].softmax(1),
             "logits"),
    "dict of shares": (lambda n, z: {"e": n.embedding, "p": z.softmax(1)}, lambda y: y["p"],
                       "probabilities"),
    "by name": (lambda n, z: {"side": n.other(n.embedding), "out": z},
                lambda y: y["out"].softmax(1), "logits"),
    "object": (lambda n, z: SimpleNamespace(loss=None, logits=z, hidden_states=None),
               lambda y: y.logits.softmax(1), "logits"),
    "named tuple": (lambda n, z: namedtuple("Output", "aux logits")(n.other(n.embedding), z),
                    lambda y: y.logits.softmax(1), "logits"),
    "dataclass": (lambda n, z: make_dataclass("Output", ["loss", "logits"])(None, z),
                  lambda y: y.logits.softmax(1), "logits"),
    "nested": (lambda n, z: {"head": {"logits": z}, "e": n.embedding},
               lambda y: y["head"]["logits"].softmax(1), "logits"),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_predict_tells_what_the_users_own_code_would(end: str) -> None:
    ending, expected, kind = ENDS[end]
    module = Body(3, ending)
    network = load(module)
    for seed in (0, 1):
        want = expected(own(module, seed))[0].tolist()
        assert told(network, seed) == pytest.approx(dict(enumerate(want)), abs=1e-5)
    assert meaning(network).kind == kind


@pytest.mark.parametrize("end", ENDS)
def test_the_score_that_maps_explain_is_that_before_the_last_softmax(end: str) -> None:
    """Of a network whose end can be left out the gradient is that of the bare scores."""
    ending, _, _ = ENDS[end]
    module = Body(3, ending)
    x = prepared()
    (found,) = convscope.saliency(load(module), x, target=2)
    pixels = x.clone().requires_grad_()
    with torch.enable_grad():
        score = Body(3).eval()(pixels)[0, 2]
        (gradient,) = torch.autograd.grad(score, pixels)
    if end in ("scaled logits", "rectified"):
        gradient = gradient * {"scaled logits": 1 / 3, "rectified": 1 / 100}[end]
        gradient = gradient if end == "scaled logits" or float(score.detach()) > 0 else 0 * gradient
    if end in ("written out", "mean of two", "cut off", "log of softmax", "sigmoids written out",
               "joined sigmoids", "sigmoids by exp", "sigmoids by a share", "half of two sigmoids",
               "mean of stacked sigmoids", "sum of sigmoids"):  # fmt: skip
        assert found.space in ("probability", "log-probability")
        return
    assert found.space == "logit"
    assert np.allclose(found.pixels, gradient[0].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda n, z: z, lambda y: y.sigmoid()),
        (lambda n, z: z.sigmoid(), lambda y: y),
        (lambda n, z: z.squeeze(1), lambda y: y.sigmoid()),
        (lambda n, z: z.squeeze(), lambda y: y.sigmoid()),
        (lambda n, z: z.squeeze(1).sigmoid(), lambda y: y),
        (lambda n, z: F.logsigmoid(z), lambda y: y.exp()),
        (lambda n, z: 1 / (1 + (-z).exp()), lambda y: y),
        (lambda n, z: {"e": n.embedding, "logits": z}, lambda y: y["logits"].sigmoid()),
        (lambda n, z: z.expand(-1, 2).softmax(1)[:, 1], lambda y: y),
    ],
)
def test_one_score_is_a_class_and_its_opposite(
    end: Callable[[Body, Tensor], Any], expected: Callable[[Any], Tensor]
) -> None:
    module = Body(1, end)
    for seed in (0, 1):
        p = float(expected(own(module, seed)))
        assert told(load(module), seed) == pytest.approx({0: 1 - p, 1: p}, abs=1e-5)
    network = load(module, classes=["rose"])
    assert set(convscope.predict(network, picture()).names) == {"rose", "not rose"}
    x = prepared()
    (for_it,) = convscope.saliency(network, x, target="rose", classes=["rose"])
    (against,) = convscope.saliency(network, x, target="not rose", classes=["rose"])
    assert np.array_equal(for_it.pixels, -against.pixels)
    if "softmax" not in str(meaning(network)) and meaning(network).space == "logit":
        pixels = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(Body(1).eval()(pixels).sum(), pixels)
        assert np.allclose(for_it.pixels, gradient[0], rtol=1e-4, atol=1e-6)


def test_labels_without_a_sigmoid_have_one_where_the_user_says_so() -> None:
    module = Body(3)
    want = dict(enumerate(own(module)[0].sigmoid().tolist()))
    for scores in ("sigmoid", "sigmoid-logits"):
        assert told(load(module, scores=scores)) == pytest.approx(want, abs=1e-5)
    for done in (lambda n, z: z.sigmoid(), lambda n, z: F.logsigmoid(z)):
        network = load(Body(3, done), scores="sigmoid")
        assert told(network) == pytest.approx(want, abs=1e-5)


def test_what_the_user_says_is_done() -> None:
    module = Body(4, lambda n, z: (z, n.other(n.embedding)))
    for number in (0, 1):
        want = own(module)[number].softmax(1)[0].tolist()
        assert told(load(module, output=number)) == pytest.approx(dict(enumerate(want)), abs=1e-5)
    nested = Body(4, lambda n, z: {"a": {"x": z}, "b": n.other(n.embedding)})
    want = own(nested)["a"]["x"].softmax(1)[0].tolist()
    assert told(load(nested, output="a.x")) == pytest.approx(dict(enumerate(want)), abs=1e-5)
    shares = Body(3, lambda n, z: z.softmax(1))
    want = own(shares).softmax(1)[0].tolist()
    assert told(load(shares, scores="logits")) == pytest.approx(dict(enumerate(want)), abs=1e-5)


def test_names_of_classes_tell_which_head_is_meant() -> None:
    module = Body(3, lambda n, z: (n.other(n.embedding), z))
    want = own(module)[1].softmax(1)[0].tolist()
    found = told(load(module, classes=["a", "b", "c"]))
    assert found == pytest.approx(dict(enumerate(want)), abs=1e-5)


@pytest.mark.parametrize(
    "ask",
    [
        lambda net: convscope.predict(net, picture()),
        lambda net: convscope.gradcam(net, prepared()),
        lambda net: convscope.gradcam(net.model, prepared()),
        lambda net: convscope.occlusion(net, prepared()[0], patch=16, stride=16),
        lambda net: convscope.saliency(net, prepared()),
    ],
)
def test_what_is_ambiguous_is_refused_with_its_choices(ask: Callable[[Network], Any]) -> None:
    network = load(Body(3, lambda n, z: (z, n.other(n.embedding))))
    with pytest.raises(ModelError, match=r"0 \(3 numbers\) or 1 \(4 numbers\)") as caught:
        ask(network)
    assert caught.value.code == "M521"
    assert "--output 0" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "end",
    [
        lambda n, z: 100 * z.softmax(1),
        lambda n, z: z.softmax(1) + (2 * z).softmax(1),
        lambda n, z: (z.tanh() + 1) / 2,
        lambda n, z: (z / 100).clamp(0, 1),
    ],
)
def test_numbers_that_need_not_be_logits_get_no_softmax_in_silence(
    end: Callable[[Body, Tensor], Any],
) -> None:
    module = Body(3, end)
    with pytest.raises(ModelError, match=r"scores=.*--scores logits\|prob") as caught:
        told(load(module))
    assert caught.value.code == "M521"
    assert "\n" not in str(caught.value)
    want = own(module).softmax(1)[0].tolist()
    assert told(load(module, scores="logits")) == pytest.approx(dict(enumerate(want)), abs=1e-5)
    found = convscope.check(load(module), prepared())
    assert "not clear" in str([one for one in found.findings if one.topic == "output"])


LOGITS: dict[str, Callable[[Body, Tensor], Any]] = {
    "linear": lambda n, z: z,
    "by matmul": lambda n, z: z @ torch.eye(3),
    "pooled": lambda n, z: F.adaptive_avg_pool2d(z[:, :, None, None], 1).flatten(1),
    "mean": lambda n, z: z[:, :, None, None].mean((2, 3)),
    "tempered": lambda n, z: z / 2 + 0,
    "two": lambda n, z: (z + z) / 2,
    "stacked": lambda n, z: torch.stack([z, z]).mean(0),
    "gated": lambda n, z: z * n.other(n.embedding)[:, :3].sigmoid() * 0 + z,
    "less its greatest": lambda n, z: z - z.amax(1, keepdim=True),
    "rectified": lambda n, z: z.relu(),
    "normed": lambda n, z: F.batch_norm(z, torch.zeros(3), torch.ones(3)),
}


@pytest.mark.parametrize("end", LOGITS)
@pytest.mark.parametrize("bias", [(0.2, 0.4, 0.9), (-0.2, -3, -1), (20, 21, 22.5)])
def test_what_a_layer_of_weights_gives_are_logits_whatever_their_values(
    end: str, bias: tuple[float, ...]
) -> None:
    module = Body(3, LOGITS[end])
    with torch.no_grad():
        module.head.weight.mul_(1e-6)
        module.head.bias.copy_(torch.tensor(bias))
    want = own(module).softmax(1)[0].tolist()
    network = load(module)
    assert told(network) == pytest.approx(dict(enumerate(want)), abs=1e-5)
    assert meaning(network).kind == "logits"


def test_what_is_said_of_an_output_and_is_not_so_is_refused() -> None:
    def code(**said: Any) -> str:
        with pytest.raises(ConvscopeError) as caught:
            told(load(Body(3, lambda n, z: (z, n.conved)), **said))
        assert "\n" not in str(caught.value)
        return caught.value.code

    assert code(scores="softmax") == "U238"
    assert code(output=[1]) == code(output=True) == "U239"
    assert code(output=2) == code(output="logits") == code(output=1) == "U239"
    assert code(scores="probabilities") == code(scores="log-probabilities") == "M523"


def test_an_output_without_scores_names_the_wrapper_that_helps() -> None:
    maps = load(Body(3, lambda n, z: {"out": n.conved}))
    with pytest.raises(ModelError, match=r"wrap\.segmentation") as caught:
        told(maps)
    assert caught.value.code == "M520"
    boxes = load(Body(3, lambda n, z: [{"boxes": z[0, :3, None], "labels": torch.ones(1).long()}]))
    with pytest.raises(ModelError, match=r"wrap\.detection"):
        told(boxes)
    lone = load(Body(3, lambda n, z: n.conved))
    with pytest.raises(ModelError, match="no scores"):
        told(lone)
    (found,) = convscope.saliency(lone, prepared(), target=lambda maps: maps[:, 1].mean((1, 2)))
    assert found.space == "function"
    assert found.pixels.any()


def test_a_function_is_given_what_the_network_itself_says() -> None:
    module = Body(3, lambda n, z: z.softmax(1))
    pixels = prepared().requires_grad_()
    (gradient,) = torch.autograd.grad(module.eval()(pixels)[0, 1], pixels)
    (found,) = convscope.saliency(load(module), prepared(), target=lambda p: p[:, 1])
    assert np.allclose(found.pixels, gradient[0].numpy(), rtol=1e-4, atol=1e-9)


def test_ten_views_are_averaged_as_probabilities() -> None:
    module = Body(3, lambda n, z: z.softmax(1))
    ready = Preprocess(Framing(40, (SIDE, SIDE)), mean=(0.5,) * 3, std=(0.25,) * 3)
    network = convscope.load(module.eval(), preprocess=ready)
    large = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    x = (torch.from_numpy(large).permute(2, 0, 1).float() / 255 - 0.5) / 0.25
    places = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    cuts = torch.stack([x[:, t : t + SIDE, s : s + SIDE] for t, s in places])
    with torch.no_grad():
        want = torch.cat([module(cuts), module(cuts.flip(-1))]).mean(0).tolist()
    found = convscope.predict(network, Picture(0, "a", None, large), views=10)
    share = dict(zip(found.classes.tolist(), found.probability.tolist(), strict=True))
    assert share == pytest.approx(dict(enumerate(want)), abs=1e-5)


def test_occlusion_and_faithfulness_follow_a_labels_own_probability() -> None:
    module = Body(3, lambda n, z: z.sigmoid())
    network = load(module)
    x = prepared()[0]
    found = convscope.occlusion(network, x, target=1, patch=16, stride=16)
    for row, top in enumerate((0, 16)):
        for column, left in enumerate((0, 16)):
            hidden = x.clone()
            hidden[:, top : top + 16, left : left + 16] = 0
            with torch.no_grad():
                want = float(module(hidden[None])[0, 1])
            assert found.probability[row, column] == pytest.approx(want, abs=1e-5)
    maps = convscope.gradcam(network, x[None], target=1)
    (test,) = convscope.faithfulness(network.model, x, maps, target=1, steps=2, random=1)
    with torch.no_grad():
        assert test.score == pytest.approx(float(module(x[None])[0, 1]), abs=1e-5)
        assert test.deletion[-1] == pytest.approx(float(module(0 * x[None])[0, 1]), abs=1e-5)


def test_accuracy_of_labels_that_stand_each_for_itself_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels()).save(tmp_path / name / "x.png")
    network = load(Body(2, lambda n, z: z.sigmoid()))
    for ask in (convscope.evaluate, convscope.silence):
        with pytest.raises(ModelError, match="probability of its own") as caught:
            ask(network, tmp_path)
        assert caught.value.code == "M525"
    one = Body(1)
    found = convscope.evaluate(load(one), tmp_path)
    right = [bool(own(one) > 0) == (label == 1) for label in (0, 1)]
    assert found.top1 == np.mean(right)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("training", [True, False])
def test_auxiliary_heads_are_never_taken(name: str, training: bool) -> None:
    build = getattr(torchvision.models, name)
    module = build(weights=None, aux_logits=True, init_weights=False, num_classes=5)
    module.train(training)
    side = 96
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    found = meaning(module, x)
    assert (found.kind, found.columns, found.where) == ("logits", 5, ())
    assert module.training == training


def test_the_network_itself_is_not_touched() -> None:
    module = Body(3, lambda n, z: (n.embedding, z.softmax(1)))
    before = dict(vars(module))
    drawn = torch.random.get_rng_state()
    again = scored(module, prepared(), before=True)
    with torch.no_grad():
        first = module.eval()(prepared())
        assert torch.allclose(again.eval()(prepared()).softmax(1), first[1])
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert type(first) is tuple
    assert vars(module).keys() - before.keys() == {"conved", "embedding"}
    assert again.head is module.head
    assert list(dict(again.named_modules())) == list(dict(module.named_modules()))
    assert plain(again).forward.__func__ is Body.forward


def test_it_is_found_again_after_a_change() -> None:
    module = nn.Sequential(Body(3), nn.Softmax(1)).eval()
    x = prepared()
    assert meaning(module, x).kind == "probabilities"
    module[1] = nn.Identity()
    assert meaning(module, x).kind == "logits"


def test_it_is_looked_at_once() -> None:
    module = Body(3)
    count = []
    module.register_forward_hook(lambda *_: count.append(1))
    for _ in range(5):
        meaning(module.eval(), prepared())
    assert len(count) == 1


def test_random_weights_are_read_as_the_learned_ones() -> None:
    """The copies whose weights are drawn anew keep what has been said of the network."""
    network = load(Body(4, lambda n, z: (z, n.other(n.embedding))), output=0)
    found = convscope.explain if hasattr(convscope, "explain") else None
    from convscope.studies.explain.study import explain_picture as explain

    made = (found or explain)(network, picture())
    assert made.randomised
    assert np.isfinite(made.randomised[0].spearman).any()


class Sided(nn.Module):
    """A side branch, whose convolution runs last, beside the way to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.side = nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x)
        logits = self.head(self.body(x).mean((2, 3)))
        return {"logits": logits, "aux": self.side(x)}


def test_the_layer_that_is_chosen_reaches_the_score() -> None:
    for model in (Sided(), load(Sided())):
        (found,) = convscope.gradcam(model, prepared())
        assert found.layer == "body"  # the same tensor as body.1
        assert "reached" in found.origin["layer chosen"]


def test_nobody_else_makes_probabilities_of_scores() -> None:
    """A second place would be a second opinion."""
    allowed = {"network/outputs.py"}
    call = re.compile(r"\.(log_)?softmax\(|\.sigmoid\(|logsigmoid\(|F\.(soft|sig)|nn\.(Soft|Sig)")
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        lines = [line for line in path.read_text().splitlines() if call.search(line)]
        if lines and name not in allowed and not name.startswith("training/"):
            found[name] = lines
    # Of maps' scores, over the maps, as Score-CAM's paper has it: no probabilities of classes.
    assert found == {
        "attribution/cam_passes.py": [
            "    weights[used] = scores.softmax(0) if way.softmax else scores"
        ]
    }


def test_names_of_one_class_are_two() -> None:
    assert both_ways(["rose"]) == ("not rose", "rose")
    assert both_ways(["a", "b"]) == ("a", "b")
    assert len(KINDS) == 5


def test_layers_chosen_by_themselves_are_on_the_way_to_the_score() -> None:
    network = load(Sided())
    found = convscope.occlusion(network, prepared()[0], patch=16, stride=16)
    assert found.layer == "body.0"
    from convscope.trace.layers import ends

    assert ends(scored(network), (3, SIDE, SIDE)).middle == "body.1"


def test_the_networks_own_hooks_see_what_it_gives_itself() -> None:
    module, seen = Body(3, lambda n, z: {"logits": z}), []
    module.register_forward_hook(lambda _, __, out: seen.append(out["logits"].shape))
    module.register_forward_hook(lambda _, __, out: {"logits": 2 * out["logits"]})
    module.register_forward_pre_hook(lambda _, given: (given[0] / 2,))
    module.register_forward_hook(lambda _, __, ___, out: None, with_kwargs=True)
    want = own(module)["logits"].softmax(1)[0].tolist()
    assert told(load(module)) == pytest.approx(dict(enumerate(want)), abs=1e-5)
    assert seen
    hooks = module._forward_hooks
    assert len(hooks) == 3
    assert plain(scored(module, prepared()))._forward_hooks.keys() == hooks.keys()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_does_not_matter(kind: torch.dtype) -> None:
    for end, found in (("softmax", "probabilities"), ("sigmoids", "sigmoid"), ("logits", "logits")):
        module = Body(3, ENDS[end][0]).to(kind).eval()
        assert meaning(module, prepared()).kind == found


def test_wrapped_and_patched_networks_are_read_too() -> None:
    module = Body(3, lambda n, z: (n.embedding, z.softmax(1))).eval()
    (want,) = convscope.saliency(module, prepared(), target=1)
    parallel = nn.DataParallel(module)
    (found,) = convscope.saliency(parallel, prepared(), target=1)
    assert np.array_equal(found.pixels, want.pixels)
    patched = Body(3).eval()
    first = patched.forward
    patched.forward = lambda x: (first(x).softmax(1), x)  # type: ignore[method-assign]
    (found,) = convscope.saliency(patched, prepared(), target=1)
    assert np.allclose(found.pixels, want.pixels, rtol=1e-5, atol=1e-7)


class Both(nn.Module):
    """Gives its scores, and something made of them."""

    def __init__(self, both: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.fc, self.both = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), both

    def forward(self, x: Tensor) -> Any:
        return self.both(self.fc(self.conv(x).relu().mean((2, 3))))


def test_what_is_made_of_the_scores_without_a_layer_does_not_take_their_place() -> None:
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for both in (lambda o: (o, o.flip(1)), lambda o: (o.relu(), o), lambda o: (o.softmax(1), o)):
        model = Both(both).eval()
        with torch.no_grad():
            plain = model.fc(model.conv(picture).relu().mean((2, 3)))
            assert torch.equal(scored(model, picture)(picture), plain)
