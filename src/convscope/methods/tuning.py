"""How is a network run fastest here: in which memory, how many pictures at a time, on what?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import UsageError
from convscope.lens.twin import ShadowModel, bare
from convscope.trace.batch_size import usual_batch
from convscope.trace.folding import folded

Precision = Literal["float32", "bfloat16", "float16"]
KINDS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Trial:
    """One way of running the network, and what it took."""

    batch: int
    channels_last: bool = True
    fold: bool = False
    threads: int = 1
    precision: Precision = "float32"
    seconds: float = float("inf")
    """For one picture; the median of several runs."""
    fastest: float = float("inf")
    spread: float = 0.0
    """Half the way from the fastest to the slowest run, relative to the median."""
    runs: int = 0

    def named(self) -> str:
        """`batch 4, channels last, 2 threads`."""
        memory = "channels last" if self.channels_last else "contiguous"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        more = [", normalisations folded"] * self.fold
        more += [f", {self.precision}"] * (self.precision != "float32")
        return f"batch {self.batch}, {memory}, {threads}{''.join(more)}"


@dataclass(frozen=True)
class Tuning:
    """How to run one network on pictures of one size on one machine.

    What is computed depends on it, in the last bits, as forward passes in other batches or another
    memory format round differently. So it is part of a record's origin, and all parts of one job
    must be given the same one.
    """

    best: Trial
    workers: int
    """Processes that decode pictures."""
    bytes: int
    """Memory that the network's inputs, outputs and weights take up, about."""
    machine: str
    trials: tuple[Trial, ...] = ()

    @property
    def batch(self) -> int:
        return self.best.batch

    def prepare(
        self, model: nn.Module, picture: Float[Tensor, "1 c h w"], layers: Sequence[str] = ()
    ) -> nn.Module:
        """A twin to run in the place of the model, which is not touched. layers: see `folded`."""
        twin = folded(model, picture, layers)[0] if self.best.fold else model
        if twin is model:
            twin = ShadowModel(model).model
        for module in twin.modules() if self.best.channels_last else ():
            for name, weight in module._parameters.items():
                if weight is not None and weight.dim() == 4:
                    own = weight.detach().contiguous(memory_format=torch.channels_last)
                    module._parameters[name] = nn.Parameter(own, requires_grad=False)
        return twin

    @contextlib.contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Threads and precision as chosen, and as before afterwards."""
        before = torch.get_num_threads()
        kind = KINDS.get(self.best.precision)
        half = torch.autocast(device.type, kind) if kind else contextlib.nullcontext()
        torch.set_num_threads(self.best.threads)
        try:
            with half:
                yield
        finally:
            torch.set_num_threads(before)

    def origin(self) -> dict[str, Any]:
        """What of it a record has to tell: all that its values may depend on."""
        best = self.best
        return {
            "channels_last": best.channels_last,
            "folded": best.fold,
            "precision": best.precision,
            "threads": best.threads,
        }

    def lines(self) -> list[str]:
        """For people: what was tried, and what was chosen."""
        best = self.best
        told = [f"on {self.machine}"]
        width = max((len(trial.named()) for trial in self.trials), default=0)
        for trial in self.trials:
            mark = "  <- chosen" if trial.named() == best.named() else ""
            told.append(
                f"  {trial.named():{width}}  {trial.seconds * 1e3:8.2f} ms a picture "
                f"±{trial.spread:3.0%} ({trial.runs} runs){mark}"
            )
        told.append(f"  decoding processes: {self.workers}")
        told.append(f"  memory, about: {self.bytes / 1e6:,.0f} MB")
        return told

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads, of plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError on anything but what `to_json` made."""
        trials = tuple(_trial(trial) for trial in plain["trials"])
        numbers = int(plain["workers"]), int(plain["bytes"])
        if min(numbers) < 1:
            raise ValueError(f"workers and bytes {numbers}")
        return cls(_trial(plain["best"]), *numbers, str(plain["machine"]), trials)


class Way:
    """One job's way of running a network: a tuning, or the usual one."""

    def __init__(
        self,
        model: nn.Module,
        picture: Float[Tensor, "1 c h w"],
        layers: Sequence[str] = (),
        tuning: Tuning | None = None,
    ) -> None:
        """picture: as `blank` makes it. layers: those whose outputs are wanted."""
        self._picture, self._tuning = picture, tuning
        self.model = model if tuning is None else tuning.prepare(model, picture, layers)
        self.origin = {} if tuning is None else {"tuning": tuning.origin()}
        self.workers = None if tuning is None else tuning.workers

    @property
    def batch(self) -> int:
        """Pictures computed together."""
        if self._tuning is None:
            return usual_batch(self.model, self._picture)
        return self._tuning.batch

    def running(self) -> contextlib.AbstractContextManager[None]:
        if self._tuning is None:
            return contextlib.nullcontext()
        return self._tuning.running(self._picture.device)

    def laid(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The pictures where the network is, in its numbers and memory format."""
        last = self._tuning is None or self._tuning.best.channels_last
        memory = torch.channels_last if last else torch.contiguous_format
        return pixels.to(self._picture).contiguous(memory_format=memory)


def require_tuning(given: object) -> None:
    """Raises UsageError U401 for anything but a Tuning or None."""
    if given is not None and not isinstance(given, Tuning):
        what = f"a {type(given).__name__} is no tuning"
        raise UsageError("U401", "tuning", what, next_step="give what tune(network) returns")


def blank(model: nn.Module, shape: tuple[int, int, int]) -> Float[Tensor, "1 c h w"]:
    """A black picture where the network's weights are, and in their precision."""
    weights = (weight for weight in bare(model).parameters() if weight.is_floating_point())
    black = next(weights, torch.empty(0)).new_zeros(1, *shape)
    return black.contiguous(memory_format=torch.channels_last)


def _trial(plain: Mapping[str, Any]) -> Trial:
    if set(plain) != {field.name for field in fields(Trial)}:
        raise ValueError(f"a trial of {sorted(plain)}")
    trial = Trial(**plain)
    if trial.batch < 1 or trial.threads < 1 or trial.precision not in ("float32", *KINDS):
        raise ValueError(f"a trial of {plain}")
    return trial
