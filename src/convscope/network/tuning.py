"""Tuning: the fastest way of running a network on this machine: batch, memory format, threads.

Measured once for a network, a device and a size, and kept: memory format, whether normalisations
are folded, pictures computed together, threads, decoding processes. The ways are run in turn, so
that what else the machine does hits all of them alike; medians are compared; and the usual way
(`usual_batch`, channels last) stays unless another one is clearly faster, so that a neighbour's
noise does not decide.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from convscope import __version__
from convscope.core.errors import EnvironmentFault, UsageError, a_kind
from convscope.core.foreign import TheirCode
from convscope.core.publish import cache_folder, publish_file
from convscope.core.run import PLAIN, Run
from convscope.core.text import checked, read_json
from convscope.lens.machine import (
    Sizes,
    cores,
    fitting,
    free_memory,
    has_bfloat16,
    machine,
    sizes,
    usual_batch,
)
from convscope.lens.twin import ShadowModel, bare
from convscope.network.arguments import taking
from convscope.network.network import Network, whole
from convscope.pictures.decode.decode import decode
from convscope.pictures.decode.formats import Limits
from convscope.pictures.framing import Framing
from convscope.trace.folding import folded

Count = Annotated[int, Meta(ge=1)]
Precision = Literal["float32", "bfloat16", "float16"]
KINDS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Trial:
    """One way of running the network, and what it took."""

    batch: Count
    channels_last: bool = True
    fold: bool = False
    threads: Count = 1
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
    workers: Count
    """Processes that decode pictures."""
    bytes: Count
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


class Execution:
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

    @property
    def device(self) -> torch.device:
        return self._picture.device

    @property
    def dtype(self) -> torch.dtype:
        return self._picture.dtype

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
        what = f"{a_kind(given)} is no tuning"
        raise UsageError("U401", "tuning", what, next_step="give what tune(network) returns")


def blank(model: nn.Module, shape: tuple[int, int, int]) -> Float[Tensor, "1 c h w"]:
    """A black picture where the network's weights are, and in their precision."""
    weights = (weight for weight in bare(model).parameters() if weight.is_floating_point())
    black = next(weights, torch.empty(0)).new_zeros(1, *shape)
    return black.contiguous(memory_format=torch.channels_last)


SECONDS = 4.0
"""For all that is tried."""
CLEARLY = 0.95
"""Another way must take less than this share of the usual way's time to be chosen."""
HOPELESS = 1.5
"""So many times slower than the best one in the first round, a way is tried no more."""
ROUNDS, FEWEST = 7, 3
"""Runs of each way. With fewer than the second nothing is settled, and the usual way stays."""
PATIENCE = 4
"""So many times `seconds` may it take if that is what so few runs need."""
LADDER = (1, 1 / 2, 2)
"""Batches tried, as shares of the best one so far."""
CLIMBS = 4
OVERHEAD = 1.5
"""What memory is really taken up in, relative to what is alive: an allocator keeps some more."""
PHOTO = (375, 500)
"""Rows and columns of a common photograph; decoding one takes a few milliseconds."""


@taking()
def tune(
    network: Network,
    *,
    half: bool = False,
    fresh: bool = False,
    cache: Path | str | None = None,
    seconds: float = SECONDS,
    run: Run = PLAIN,
) -> Tuning:
    """The fastest way found of running the network here, measured or remembered.

    run: its memory is for the network's inputs, outputs and weights, by default half of what is
    free. half: half precision may be chosen too, which changes results by far more than
    rounding. fresh: measure even if there is something remembered. cache: folder to remember in.
    seconds: for measuring, about; the first run of a large network may take longer.

    Raises UsageError U400 (one picture needs more memory than allowed), U376 (a bare module),
    ModelError M522 (it takes no such picture).
    """
    network = whole(network)
    model, shape = bare(network.model), network.preprocess.shape
    device = blank(model, shape).device
    home = cache_folder(cache) / "tuned" / f"{_key(model, shape, device, run.memory, half)}.json"
    known = None if fresh else _remembered(home)
    if known is None:
        tuner = _Tuner(model, shape, device, half, seconds, run)
        known = tuner.tuning(network.preprocess.framing)
        # What could not be settled is measured again the next time, and a cache that cannot be
        # written is no reason to stop.
        with contextlib.suppress(EnvironmentFault):
            if tuner.is_settled:
                publish_file(home, json.dumps(asdict(known), indent=1).encode())
    return known


class _Tuner:
    """One network's trials."""

    def __init__(
        self,
        model: nn.Module,
        shape: tuple[int, int, int],
        device: torch.device,
        half: bool,
        seconds: float,
        run: Run,
    ) -> None:
        self.model, self.device, self.half = model, device, half
        self.blank = blank(model, shape)
        self.sizes = sizes(model, self.blank)
        self.memory = run.room(free_memory(device) // 2)
        self.ready: dict[tuple[bool, bool], Execution] = {}
        self.stages, self.done, self.is_settled = 3, 0, True
        self.seconds, self.run = seconds / self.stages, run
        if _needed(self.sizes, 1) > self.memory:
            need, most = _needed(self.sizes, 1) / 1e6, self.memory / 1e6
            what = f"one picture needs about {need:,.0f} MB, and {most:,.0f} MB are allowed"
            raise UsageError("U400", "memory", what, next_step="allow more, or take a smaller size")

    def tuning(self, framing: Framing) -> Tuning:
        usual = fitting(self.sizes.largest, self.device)
        while _needed(self.sizes, usual) > self.memory:
            usual //= 2
        best, tried = Trial(usual, threads=torch.get_num_threads()), dict[str, Trial]()
        for ways, times in ((self._memories, 1), (self._batches, CLIMBS), (self._threads, 1)):
            for _ in range(times):
                before, raced = best, self._race(list(ways(best)))
                best = _winner(raced)
                tried |= {trial.named(): trial for trial in raced}
                if best.named() == before.named():
                    break
            self.done += 1
            self.run.tick(self.done, self.stages)
        ranked = sorted(tried.values(), key=lambda trial: trial.seconds)
        workers = _workers(framing, best.seconds)
        needed = _needed(self.sizes, best.batch)
        return Tuning(best, workers, needed, machine(self.device), tuple(ranked))

    def _memories(self, best: Trial) -> Iterator[Trial]:
        """The first of each stage is the one to beat."""
        yield best
        if any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules()):
            yield replace(best, fold=True)
        yield replace(best, channels_last=False)
        for precision in KINDS if self.half else ():
            if has_bfloat16(self.device) if precision == "bfloat16" else self.device.type != "cpu":
                yield replace(best, precision=precision)  # type: ignore[arg-type]

    def _batches(self, best: Trial) -> Iterator[Trial]:
        for share in LADDER:
            batch = int(best.batch * share)
            if batch >= 1 and _needed(self.sizes, batch) <= self.memory:
                yield replace(best, batch=batch)

    def _threads(self, best: Trial) -> Iterator[Trial]:
        yield best
        if self.device.type == "cpu":
            for threads in (best.threads // 2, best.threads // 4):
                if threads:
                    yield replace(best, threads=threads)

    def _race(self, trials: Sequence[Trial]) -> list[Trial]:
        """All in turn, until time is up; those that are hopeless stop early."""
        if len(trials) == 1:
            return [trials[0]]
        begin = time.perf_counter()
        runs = {trial: self._run(trial) for trial in trials}
        samples: dict[Trial, list[float]] = {trial: [] for trial in trials}
        for turn in range(-1, ROUNDS):
            for trial, run in runs.items():
                taken = run()
                samples[trial] += [taken] * (turn >= 0)  # the first run of anything is slow
                late = time.perf_counter() - begin > PATIENCE * self.seconds
                if late and samples[trials[0]]:
                    self.is_settled &= len(samples[trials[0]]) >= FEWEST
                    return [_measured(t, s) for t, s in samples.items() if s]
            if turn >= 0:
                best = min(min(taken) for taken in samples.values())
                hopeful = {t for t in runs if min(samples[t]) < HOPELESS * best} | {trials[0]}
                runs = {trial: run for trial, run in runs.items() if trial in hopeful}
            if turn + 1 >= FEWEST and time.perf_counter() - begin > self.seconds:
                break
        return [_measured(trial, taken) for trial, taken in samples.items()]

    def _run(self, trial: Trial) -> Callable[[], float]:
        tuning = Tuning(trial, 1, 1, "")
        memory = (trial.channels_last, trial.fold)  # one copy of the weights for each
        if memory not in self.ready:
            self.ready[memory] = Execution(self.model, self.blank, tuning=tuning)
        way = self.ready[memory]
        generator = torch.Generator().manual_seed(0)
        pixels = way.laid(torch.randn(trial.batch, *self.blank.shape[1:], generator=generator))

        def run() -> float:
            with torch.inference_mode(), tuning.running(self.device):
                begin = self._now()
                with TheirCode("M574", "the network", [pixels]):
                    way.model(pixels)
                return (self._now() - begin) / trial.batch

        return run

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()


def _measured(trial: Trial, taken: list[float]) -> Trial:
    median = statistics.median(taken)
    spread = (max(taken) - min(taken)) / 2 / median
    return replace(trial, seconds=median, fastest=min(taken), spread=spread, runs=len(taken))


def _winner(raced: Sequence[Trial]) -> Trial:
    """The fastest if it is clearly faster than the first, by its median and by its best run."""
    first, fastest = raced[0], min(raced, key=lambda trial: trial.seconds)
    clear = fastest.seconds < CLEARLY * first.seconds and fastest.fastest < CLEARLY * first.fastest
    return fastest if clear and min(first.runs, fastest.runs) >= FEWEST else first


def _needed(of: Sizes, batch: int) -> int:
    """Weights twice: their own copy in another memory format."""
    return int(OVERHEAD * of.live * batch) + 2 * of.weights


def _workers(framing: Framing, seconds: float) -> int:
    """So many decoding processes that the network need not wait, as far as there are cores."""
    taken = []
    photo = _photo()
    for _ in range(5):
        begin = time.perf_counter()
        framing.image(decode(photo, Limits()))
        taken.append(time.perf_counter() - begin)
    return max(1, min(cores(), -int(-statistics.median(taken) // seconds)))


def _photo() -> bytes:
    """Smooth noise as a JPEG: about as many bytes as a photograph of that size has."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (48, 64, 3), generator=generator, dtype=torch.uint8)
    picture = Image.fromarray(coarse.numpy()).resize(PHOTO[::-1], Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _key(
    model: nn.Module,
    shape: tuple[int, int, int],
    device: torch.device,
    memory: float | None,
    half: bool,
) -> str:
    """Of all that the answer may depend on: the network's structure, not its weights."""
    weights = [(name, list(w.shape), str(w.dtype)) for name, w in model.named_parameters()]
    told = [str(model), weights, shape, machine(device), memory, half, __version__]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _remembered(home: Path) -> Tuning | None:
    try:
        return checked(read_json(home), Tuning)
    except ValueError:
        return None
