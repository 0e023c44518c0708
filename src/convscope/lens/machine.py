"""The machine: its memory, and how many pictures to compute together (batch size).

In a trial of a second all ways are run in turn: what else the machine does hits all alike, and the
best run of each is the one that it hit least.
"""

from __future__ import annotations

import os
import platform
import time
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.lens.lens import HOOK, tensors_in
from convscope.lens.twin import ShadowModel

Name = TypeVar("Name", bound=Hashable)

SECONDS = 1.0
"""After which no further round is begun."""
ROUNDS = 4


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(device: torch.device) -> int:
    """Bytes; where the system does not say, 4 GB."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvail")) * 1024
    except (OSError, StopIteration):
        return 4 << 30


def machine(device: torch.device) -> str:
    """One line: all that decides how fast a network runs there."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    able = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{_processor()} ({able}), {threads} threads, torch {torch.__version__}"


def has_bfloat16(device: torch.device) -> bool:
    """Does it multiply bfloat16 by instructions of its own? Else it is emulated, which is slow.

    Where torch cannot say so, as on Apple's GPUs, no. What torch and oneDNN are held to by
    `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` counts, as it does for what they run.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    most = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    held = most.upper() not in ("", "ALL", "DEFAULT") and not any(
        name in most.upper() for name in ("BF16", "FP16", "AMX", "AVX10")
    )
    # ARM's bfloat16 comes with any width; on x86 it comes with AVX-512 or not at all.
    wide = _is_arm() or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return _has_instructions() and wide and not held


def multiplies_faster_in_bfloat16(device: torch.device) -> bool:
    """Is a product in bfloat16 faster than in float32? On x86 only with tiles (AMX).

    Without them AVX-512's bfloat16 instructions took 1.2 to 1.9 times as long as float32 in four
    networks, and 1.7 times in one convolution by oneDNN's own clock.
    """
    if device.type == "cpu" and not _is_arm():
        return has_bfloat16(device) and _has_tiles()
    return has_bfloat16(device)


def _has_tiles() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def _is_arm() -> bool:
    return platform.machine().lower() in ("arm64", "aarch64")


def _has_instructions() -> bool:
    """Whether the processor itself says so; older torch can be asked on x86 only."""
    if hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in asked)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def fastest_runs(
    ways: Mapping[Name, Callable[[], object]],
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, float]:
    """Seconds of each way's best run; each is run once before, as the first run of anything is
    slow, and then at least once and at most `ROUNDS` times."""
    for run in ways.values():
        run()
    best = dict.fromkeys(ways, float("inf"))
    begin = clock()
    for _ in range(ROUNDS):
        for name, run in ways.items():
            before = clock()
            run()
            best[name] = min(best[name], clock() - before)
        if clock() - begin > seconds:
            break
    return best


LARGEST, LARGEST_ELSEWHERE = 24_000_000, 1 << 30
"""Bytes of the largest output of a batch, on a CPU and on an accelerator. Above some 30 MB the
allocator maps, faults and clears new pages at every call: SqueezeNet then takes 2.6 times as long.
An accelerator keeps its memory, and wants much work at a time."""
MOST, MOST_ELSEWHERE = 64, 256


@dataclass(frozen=True)
class Sizes:
    """Bytes, for one picture where they grow with the number of pictures."""

    largest: int
    """Of the largest output of any module, or of the input if that is larger."""
    live: int
    """Most that inputs and outputs take up at one time."""
    weights: int


def sizes(model: nn.Module, picture: Float[Tensor, "1 c h w"]) -> Sizes:
    """By one forward pass. Raises as `ShadowModel`, and ModelError M522 for such a picture."""
    shadow = ShadowModel(model)
    seen = _Seen(picture)
    for module in shadow.model.modules():
        if not any(True for _ in module.children()):
            module._forward_hooks[HOOK] = seen
    with torch.inference_mode():
        shadow.run(picture)
    weights = [*model.parameters(), *model.buffers()]
    return Sizes(seen.largest, seen.live, sum(w.nbytes for w in weights))


class _Seen:
    """A hook that counts what is alive whenever a module has run."""

    def __init__(self, picture: Tensor) -> None:
        self.largest = self.live = picture.nbytes
        self._alive = [(weakref.ref(picture), picture.data_ptr(), picture.nbytes)]

    def __call__(self, _: nn.Module, inputs: Any, output: Any) -> None:
        for value in (*tensors_in(inputs), *tensors_in(output)):
            self._alive.append((weakref.ref(value), value.data_ptr(), value.nbytes))
            self.largest = max(self.largest, value.nbytes)
        self._alive = [entry for entry in self._alive if entry[0]() is not None]
        places = {place: size for _, place, size in self._alive}
        self.live = max(self.live, sum(places.values()))


def usual_batch(model: nn.Module, picture: Float[Tensor, "1 c h w"]) -> int:
    """How many pictures to compute together where nothing was measured: the same on every machine.

    The largest power of two, at most 64, with which no output of a module exceeds 24 MB; on an
    accelerator 256 and 1 GB.
    """
    return fitting(sizes(model, picture).largest, picture.device)


def fitting(largest: int, device: torch.device) -> int:
    """`usual_batch` for a largest output of so many bytes a picture."""
    here = device.type == "cpu"
    most, room = (MOST, LARGEST) if here else (MOST_ELSEWHERE, LARGEST_ELSEWHERE)
    return 1 << max(0, min(most, room // max(largest, 1)).bit_length() - 1)
