"""Occlusion without computing anything twice: one window of a picture changes, for many windows.

    engine = Incremental(model, picture, patches, layers=["features.12"])
    base = engine.begin(picture, patches)            # the picture as it is
    answers = engine.follow({"features.12": 17})     # with the patch at each position
    engine.how                                       # what was spared

The answers are those of the network run on each changed picture, to the rounding of a sum taken
in another order. What a patch cannot change is not computed again: a convolution, a pool or a
rectifier computes a window only. From the first call that needs whole maps (attention, squeeze
and excitation, normalisation over places, what we do not know) whole maps are computed; and where
the network's calls cannot be written down, it is run as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import ConvscopeError, ModelError, UsageError
from convscope.lens.lens import Lens, only_scores
from convscope.lens.machine import LARGEST, MOST
from convscope.trace.forward.plan import Patches
from convscope.trace.forward.run import Answers, Known, Progress, Windowed
from convscope.trace.graph import Graph, Node, convolution, graph_of, plain_pass
from convscope.trace.operations import OPERATIONS
from convscope.trace.recorder import Recording, record_calls

MEMORY = 500e6
"""Bytes that the windows of a portion of the positions may take together."""


class Incremental:
    """A network that is asked about one picture after the other, with patches on each.

    The network is neither changed nor copied, and is asked with the weights that it has now. It
    computes as the network does: in its precision, on its device, in eval mode. One engine is for
    one thread; any number of engines may look at one network.
    """

    def __init__(
        self,
        model: nn.Module,
        picture: Float[Tensor, "c h w"],
        patches: Patches,
        layers: Sequence[str] = (),
        *,
        classes: Sequence[int] | None = None,
        memory: float = MEMORY,
    ) -> None:
        """picture: one of those to come; all have its size. patches: where they will be changed.
        layers: whose maps' activity is wanted. classes: whose scores are wanted, in this order;
        by default all. memory: bytes for windows, computed in portions.

        Raises ModelError M500, M502, M503, M506 (layers), M507 (classes), M520 (no scores), M530;
        UsageError U370 (not enough memory for one position).
        """
        self._model, self._layers, self._patches = model, tuple(layers), patches
        self._picture = picture
        with torch.inference_mode():
            recording, scores = record_calls(model, picture, layers)
            for layer, slot in recording.layers.items():
                _refuse_flat(layer, recording.shapes[slot])
            self._classes = None if classes is None else _checked(classes, scores.shape[1])
            self._largest = 0.0 if recording.mixes else _largest(recording, picture)
            graph, self.how = _graph(model, recording, picture)
            narrowed = graph is not None and classes is not None and narrow(graph, classes)
            self._choose = None if narrowed else self._classes
            self._run: Windowed | Whole
            known = None
            if graph is None:
                self._run = self._whole()
            else:
                self._run = Windowed(graph, patches, scores, memory)
                known = self._recorded(self._run, recording, scores)
            self._first: tuple[Tensor, Tensor, Known | None] | None
            self._first = picture[None].clone(), scores, known
        if isinstance(self._run, Windowed) and self._run.needs > memory:
            needs = f"one position needs {self._run.needs / 1e6:.0f} MB, not {memory / 1e6:.0f}"
            raise UsageError("U370", "memory", needs, next_step="allow that much")

    @torch.inference_mode()
    def begin(self, picture: Float[Tensor, "c h w"], patches: Patches) -> Answers:
        """What the network says to the picture as it is: scores (1, classes), activity of all
        maps. patches: of the same size and places as before, perhaps showing something else."""
        image = picture[None].contiguous(memory_format=torch.channels_last)
        if isinstance(self._run, Whole):
            return self._chosen(self._run.begin(image, patches))
        try:
            answers, right = self._begun(self._run, image, patches)
            fault = "" if right else "its calls depend on the picture"
        except RuntimeError as error:  # calls that only work in the way they were written
            fault = str(error).splitlines()[0]
        if fault:
            self._run, self.how = self._whole(), f"whole pictures: {fault}"
            self._choose = self._classes
            answers = self._chosen(self._run.begin(picture[None], patches))
        return answers

    @torch.inference_mode()
    def follow(self, maps: Mapping[str, int], progress: Progress = None) -> Answers:
        """What it says with the patch at each position, row after row: scores (n, classes), and
        the activity (n,) of one map of each layer. progress: gets positions done and all."""
        return self._chosen(self._run.follow(maps, progress))

    def _begun(self, run: Windowed, image: Tensor, patches: Patches) -> tuple[Answers, bool]:
        """Also whether windows give the network's own scores, which the first picture tests."""
        first, self._first = self._first, None
        if first is None:
            return self._chosen(run.begin(image, patches)), True
        recorded, expected, known = first
        if not torch.equal(recorded, image):
            known = None
            with Lens(self._model, ()) as lens:
                expected = only_scores(lens(image))
        answers = run.begin(image, patches, known)
        tested = answers if known is None else replace(answers, scores=run.unchanged(image[0]))
        right = agree(self._chosen(tested).scores, expected, self._classes)
        return self._chosen(answers), right

    def _chosen(self, answers: Answers) -> Answers:
        """With the scores of the wanted classes, where the network gave them all."""
        if self._choose is None:
            return answers
        return replace(answers, scores=answers.scores[:, self._choose])

    def _whole(self) -> Whole:
        if self._largest and _mixes(self._model, self._picture):
            self._largest = 0.0
        return Whole(self._model, self._layers, self._patches, self._largest)

    def _recorded(self, run: Windowed, recording: Recording, scores: Tensor) -> Known | None:
        """What the network made of the picture when it was recorded, for the graph's slots."""
        values = recording.values(run.wanted)
        if values is None or self._classes is None or self._choose is not None:
            return None if values is None else Known(scores, values)
        if len(self._classes) == len(scores[0]):  # their order is not to be seen in shapes
            return None
        for slot, value in values.items():
            if tuple(value.shape) != run.graph.nodes[slot].shape:
                values[slot] = value[:, self._classes]
        return Known(scores[:, self._classes], values)


def _graph(model: nn.Module, recording: Recording, picture: Tensor) -> tuple[Graph | None, str]:
    """The graph that answers like the network, and in words how far it works on windows."""
    if recording.obstacle:
        return None, f"whole pictures: {recording.obstacle}"
    graph = graph_of(recording)
    known = (OPERATIONS.get(node.name) for node in graph.nodes.values())
    slow = [one.name for one in known if one is not None and one.vmap == "complains"]
    if slow:
        return None, f"whole pictures: {slow[0]}"
    wholes = graph.wholes()
    if not wholes:
        return graph, "windows"
    both = torch.stack([picture, picture.flip(-1)])
    try:
        scores = plain_pass(graph, both.contiguous(memory_format=torch.channels_last))
    except (RuntimeError, UserWarning) as fault:  # torch.vmap knows not every call
        return None, f"whole pictures: {str(fault).splitlines()[0]}"
    with Lens(model, ()) as lens:
        if not agree(scores, only_scores(lens(both))):
            return None, f"whole pictures: {wholes[0].name} is not understood"
    return graph, f"windows, whole maps from {wholes[0].name} on"


def _mixes(model: nn.Module, picture: Float[Tensor, "c h w"]) -> bool:
    """Do the scores of a picture depend on which others come with it, by more than rounding?"""
    some = torch.stack([picture, -picture, 3 * picture.flip(-1)])
    try:
        with Lens(model, ()) as lens:
            alone = torch.cat([only_scores(lens(one[None].clone())) for one in some])
            return not agree(only_scores(lens(some)), alone)
    except (RuntimeError, ConvscopeError):  # it may not take several at all
        return True


def _checked(classes: Sequence[int], count: int) -> list[int]:
    for number in classes:
        if not 0 <= number < count:
            what = f"the network has {count} classes, counted from 0"
            raise ModelError("M507", f"class {number}", what)
    return list(classes)


def agree(scores: Tensor, expected: Tensor, classes: list[int] | None = None) -> bool:
    """Are the scores (of these classes) the same but for rounding?"""
    scale = expected.abs().max()
    expected = expected if classes is None else expected[:, classes]
    fine = torch.finfo(expected.dtype).eps ** 0.6  # 7e-5 in float32
    return bool(((scores - expected).abs().max() <= fine * scale) | ~torch.isfinite(scale))


def _largest(recording: Recording, picture: Tensor) -> float:
    counts = (torch.Size(shape).numel() for shape in recording.shapes.values())
    return float(max(counts) * picture.element_size())


class Whole:
    """The network as it is, a batch at a time; the same questions and answers as `Windowed`."""

    def __init__(
        self, model: nn.Module, layers: Sequence[str], patches: Patches, largest: float
    ) -> None:
        """largest: bytes of the largest activation of one picture; 0: take one at a time."""
        self._model, self._layers = model, layers
        self._batch = int(min(MOST, max(1, LARGEST // largest))) if largest else 1
        self._patches = patches

    def begin(self, picture: Float[Tensor, "1 c h w"], patches: Patches) -> Answers:
        self._picture, self._patches = picture[0], patches
        return self._ask(picture, None)

    def follow(self, maps: Mapping[str, int], progress: Progress = None) -> Answers:
        total = len(self._patches)
        answers = []
        for start in range(0, total, self._batch):
            numbers = range(start, min(start + self._batch, total))
            answers.append(self._ask(self._patches.paint(self._picture, numbers), maps))
            if progress is not None:
                progress(numbers[-1] + 1, total)
        scores = torch.cat([one.scores for one in answers])
        layers = self._layers
        return Answers(scores, {k: torch.cat([one.activity[k] for one in answers]) for k in layers})

    def _ask(self, pictures: Float[Tensor, "b c h w"], maps: Mapping[str, int] | None) -> Answers:
        with Lens(self._model, self._layers) as lens:
            scores = only_scores(lens(pictures))
            seen = {layer: lens[layer] for layer in self._layers}
        for layer, value in seen.items():
            _refuse_flat(layer, tuple(value.shape))
        if maps is not None:
            seen = {layer: value[:, maps[layer]] for layer, value in seen.items()}
        return Answers(scores, {k: value.relu().sum((-2, -1)) for k, value in seen.items()})


def _refuse_flat(layer: str, shape: tuple[int, ...]) -> None:
    """Raises ModelError M506 where a layer puts out no feature maps."""
    if len(shape) != 4:
        raise ModelError("M506", layer, f"puts out {shape}, which are no feature maps")


def narrow(graph: Graph, classes: Sequence[int]) -> bool:
    """Let the graph put out these classes' scores only; False (and nothing done) if it cannot.

    It can where the scores come from a fully connected layer, or from a convolution of which only
    a rectifier, a mean over places and a change of shape separate them.
    """
    nodes, users = graph.nodes, graph.users
    way, slot = [], graph.output
    while nodes[slot].weight is None and not _is_linear(nodes[slot]):
        node = nodes[slot]
        flat = node.name == "flatten"
        before = nodes[node.takes[0]].shape if node.takes else ()
        if not (flat or node.kind == "mean" or node.run is torch.relu) or users[slot] != 1:
            return False
        if len(before) not in (2, 4) or (flat and prod(before[2:]) > 1):
            return False
        way.append(slot)
        slot = node.takes[0]
    if users[slot] != 1 or nodes[slot].how[3:] not in ((), (1,)):
        return False
    nodes[slot] = _fewer(nodes[slot], list(classes))
    for above in (slot, *way):
        shape = nodes[above].shape
        nodes[above] = replace(nodes[above], shape=(1, len(classes), *shape[2:]))
    return True


def _is_linear(node: Node) -> bool:
    return isinstance(node.run, partial) and node.run.func is F.linear


def _fewer(node: Node, classes: list[int]) -> Node:
    """A fully connected layer or a convolution with these outputs only."""
    if node.weight is None:
        assert isinstance(node.run, partial)
        given: dict[str, Tensor | None] = node.run.keywords
        some = {name: None if value is None else value[classes] for name, value in given.items()}
        return replace(node, run=partial(node.run.func, **some))
    bias = None if node.bias is None else node.bias[classes]
    made = convolution(node.weight[classes], bias, *node.how)
    return replace(node, run=made.run, bare=made.bare, weight=made.weight, bias=bias)
