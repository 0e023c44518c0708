"""What does a network say if only a window of the picture changes, for many windows?

    engine = Incremental(model, picture, patches, layers=["features.12"])
    base = engine.begin(picture, patches)            # the picture as it is
    found = engine.follow({"features.12": 17})       # with the patch at each position
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

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ConvscopeError, ModelError, UsageError
from convscope.lens.incremental_narrow import narrow
from convscope.lens.incremental_patches import Patches
from convscope.lens.incremental_run import Answers, Known, Progress, Run
from convscope.lens.incremental_whole import Whole, refuse_flat
from convscope.lens.lens import Lens, only_scores
from convscope.trace.graph import Graph, graph_of, plain_pass
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
        self.memory = memory
        self._model, self._layers, self._patches = model, tuple(layers), patches
        self._picture = picture
        with torch.inference_mode():
            recording, scores = record_calls(model, picture, layers)
            for layer, slot in recording.layers.items():
                refuse_flat(layer, recording.shapes[slot])
            self._classes = None if classes is None else _known(classes, scores.shape[1])
            self._largest = 0.0 if recording.mixes else _largest(recording, picture)
            self._scores: tuple[Tensor, Tensor] | None = (picture[None].clone(), scores)
            graph, self.how = _graph(model, recording, picture)
            narrowed = graph is not None and classes is not None and narrow(graph, classes)
            self._choose = None if narrowed else self._classes
            self._run = self._whole() if graph is None else Run(graph, patches, scores, memory)
            self._known = self._recorded(recording, scores, narrowed)
        if isinstance(self._run, Run) and self._run.needs > memory:
            needs = f"one position needs {self._run.needs / 1e6:.0f} MB, not {memory / 1e6:.0f}"
            raise UsageError("U370", "memory", needs, next_step="allow that much")

    @torch.inference_mode()
    def begin(self, picture: Float[Tensor, "c h w"], patches: Patches) -> Answers:
        """What the network says to the picture as it is: scores (1, classes), activity of all
        maps. patches: of the same size and places as before, perhaps showing something else."""
        image = picture[None].contiguous(memory_format=torch.channels_last)
        try:
            known = self._known if self._was_recorded(image) else None
            self._known = None
            if known is None or isinstance(self._run, Whole):
                answers = self._chosen(self._run.begin(image, patches))
                right = self._is_right(image, answers)
            else:
                answers = self._run.begin(image, patches, known)
                right = self._agrees(self._run.unchanged(picture))
                answers = self._chosen(answers)
            self._scores = None
            fault = "" if right else "its calls depend on the picture"
        except RuntimeError as error:  # calls that only work in the way they were written
            if isinstance(self._run, Whole):
                raise
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

    def _chosen(self, answers: Answers) -> Answers:
        """With the scores of the wanted classes, where the network gave them all."""
        if self._choose is None:
            return answers
        return replace(answers, scores=answers.scores[:, self._choose])

    def _whole(self) -> Run | Whole:
        if self._largest and _mixes(self._model, self._picture):
            self._largest = 0.0
        return Whole(self._model, self._layers, self._patches, self._largest)

    def _recorded(self, recording: Recording, scores: Tensor, narrowed: bool) -> Known | None:
        """What the network made of the picture when it was recorded, for the graph's slots."""
        if isinstance(self._run, Whole) or (
            narrowed and len(self._classes or ()) == len(scores[0])
        ):
            return None
        values = recording.values(self._run.wanted)
        if values is None or self._classes is None or not narrowed:
            return None if values is None else Known(scores, values)
        shapes = {slot: node.shape for slot, node in self._run.graph.nodes.items()}
        for slot, value in values.items():
            if tuple(value.shape) != shapes[slot]:
                values[slot] = value[:, self._classes]
        return Known(scores[:, self._classes], values)

    def _agrees(self, found: Tensor) -> bool:
        """Are these scores, of all classes or of those the graph gives, the recorded ones?"""
        assert self._scores is not None
        return agree(found, self._scores[1], self._classes if self._choose is None else None)

    def _was_recorded(self, image: Tensor) -> bool:
        return self._scores is not None and torch.equal(self._scores[0], image)

    def _is_right(self, image: Tensor, answers: Answers) -> bool:
        """Has the first picture got the answer that the network gives?"""
        if self._scores is None or isinstance(self._run, Whole):
            return True
        expected = self._scores[1]
        if not self._was_recorded(image):
            with Lens(self._model, ()) as lens:
                expected = only_scores(lens(image))
        return agree(answers.scores, expected, self._classes)


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
        found = plain_pass(graph, both.contiguous(memory_format=torch.channels_last))
    except (RuntimeError, UserWarning) as fault:  # torch.vmap knows not every call
        return None, f"whole pictures: {str(fault).splitlines()[0]}"
    with Lens(model, ()) as lens:
        if not agree(found, only_scores(lens(both))):
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


def _known(classes: Sequence[int], count: int) -> list[int]:
    for number in classes:
        if not 0 <= number < count:
            what = f"the network has {count} classes, counted from 0"
            raise ModelError("M507", f"class {number}", what)
    return list(classes)


def agree(found: Tensor, expected: Tensor, classes: list[int] | None = None) -> bool:
    """Are the scores (of these classes) the same but for rounding?"""
    scale = expected.abs().max()
    expected = expected if classes is None else expected[:, classes]
    fine = torch.finfo(expected.dtype).eps ** 0.6  # 7e-5 in float32
    return bool(((found - expected).abs().max() <= fine * scale) | ~torch.isfinite(scale))


def _largest(recording: Recording, picture: Tensor) -> float:
    counts = (torch.Size(shape).numel() for shape in recording.shapes.values())
    return float(max(counts) * picture.element_size())
