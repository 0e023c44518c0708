"""Checkpoints: read .safetensors and torch.save files (pickles) of strangers safely, write our own.

A pickle is read here without opening it, only for the words of a refusal: what is
opened is opened by torch under `weights_only=True`, whatever is found here. Nothing is executed,
and nothing found is no proof of harmlessness.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import pickletools
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from convscope.core.errors import CheckpointError, nearest, printable, shown
from convscope.core.publish import publish_file
from convscope.core.text import unusable

MAGIC = 0x1950A86A20F9469CFC6C
"""First of the pickles in a file of torch.save before version 1.6."""
LEGACY_PICKLES = 5
"""The magic number, the protocol, the system, the object itself, the storages' keys."""
UNREADABLE = (ValueError, IndexError, AttributeError, TypeError, OverflowError)
"""What pickletools raises on bytes that are no pickle."""
REBUILDS = "torch._utils._rebuild_"
INERT = {
    "_codecs.encode",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch.Tensor",
    "torch._tensor._rebuild_from_type_v2",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    REBUILDS + "parameter",
    REBUILDS + "parameter_with_state",
    REBUILDS + "tensor",
    REBUILDS + "tensor_v2",
    REBUILDS + "meta_tensor_no_storage",
}
DTYPES = ("float", "double", "half", "bfloat", "int", "uint", "long", "short", "bool", "complex")
# Modules through which a pickle runs code, reads files or opens connections when it is opened;
# other foreign classes are refused too, in calmer words.
POWERFUL = re.compile(
    r"""_io|_posixsubprocess|_pickle|asyncio|bdb|builtins|cProfile|cloudpickle|code|codeop|commands
    |ctypes|dill|functools|http|httplib|idlelib|importlib|io|joblib|marshal|multiprocessing|nt
    |operator|os|pathlib|pdb|pickle|pip|pkgutil|platform|posix|posixpath|profile|pty|pydoc|requests
    |runpy|shutil|signal|site|smtplib|socket|sqlite3|ssl|subprocess|sys|tempfile|threading|timeit
    |trace|types|urllib|urllib2|venv|webbrowser|zipimport
    |torch\.(hub|jit|load|package|serialization)""",
    re.VERBOSE,
)
CALM = re.compile(
    r"""pathlib\.(Pure)?(Posix|Windows)?Path|functools\.partial|types\.SimpleNamespace
    |builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice
    |str|tuple)""",
    re.VERBOSE,
)


def inspect(data: bytes, name: str, pickles: int = 1) -> None:
    """Read the pickles at the start of `data`; refuse all but tensors and plain containers.

    Raises CheckpointError: C401 it would run something, C403 a whole network as an object, C408
    tensors of another kind, C402 any other foreign class, C409 not a pickle.
    """
    try:
        asked = set(_asked(data, pickles))
    except UNREADABLE as fault:
        raise CheckpointError("C409", name, f"damaged: its pickle breaks off ({fault})") from fault
    foreign = sorted(word for word in asked if not _inert(word))
    running = [word for word in foreign if _powerful(word)]
    if running:
        raise CheckpointError(
            "C401",
            name,
            f"refused: it asks to run {_list(running)} when opened. "
            "This is how malicious checkpoints work. Nothing was run",
            next_step="get the weights from a source you trust, as .safetensors if there is one",
        )
    if any(word.startswith(("torch.nn.modules.", "torch.nn.parallel.")) for word in foreign):
        raise CheckpointError(
            "C403",
            name,
            "contains a whole Python object (a network, not only its weights)",
            next_step="where it was made, save model.state_dict() instead",
        )
    rebuilt = [word.removeprefix(REBUILDS) for word in foreign if word.startswith(REBUILDS)]
    if rebuilt:
        raise CheckpointError(
            "C408", name, f"holds tensors that are not plain and dense ({_list(rebuilt)})"
        )
    if foreign:
        raise CheckpointError(
            "C402",
            name,
            f"holds objects of foreign classes beside its tensors: {_list(foreign)}",
            next_step="where it was made, save the state dict alone",
        )


def is_pickle(data: bytes) -> bool:
    """Whether `data` begins with a pickle that comes to its end."""
    try:
        for _ in pickletools.genops(data):
            pass
    except UNREADABLE:
        return False
    return True


def is_legacy(data: bytes) -> bool:
    """Whether the first pickle is the number with which torch.save once began its files."""
    try:
        result = [arg for op, arg, _ in pickletools.genops(data[:64]) if op.name.startswith("LONG")]
    except UNREADABLE:
        return False
    return result[:1] == [MAGIC]


def _asked(data: bytes, pickles: int) -> Iterator[str]:
    """`module.name` of all that the pickles look up."""
    stream = io.BytesIO(data)
    for _ in range(pickles):
        texts = _Texts()
        for opcode, argument, _place in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".", 1)
            elif opcode.name == "STACK_GLOBAL":
                yield ".".join(texts.pushed[-2:]) or "(a hidden name)"
            elif opcode.name.startswith("EXT"):
                yield f"copyreg.extension_{argument}"
            texts.follow(opcode.name, argument)


class _Texts:
    """The texts on a pickle's stack, as far as STACK_GLOBAL takes its names from them."""

    def __init__(self) -> None:
        self.pushed: list[str] = []
        self._memo: dict[int, str | None] = {}
        self._last: str | None = None

    def follow(self, opcode: str, argument: Any) -> None:
        if opcode == "MEMOIZE":
            self._memo[len(self._memo)] = self._last
        elif "PUT" in opcode:
            self._memo[argument] = self._last
        else:
            self._last = self._memo.get(argument) if "GET" in opcode else argument
            if isinstance(self._last, str) and opcode not in ("GLOBAL", "INST"):
                self.pushed.append(self._last)


def _inert(word: str) -> bool:
    module, _, last = word.rpartition(".")
    if module == "torch" and last.startswith(DTYPES):
        return True
    return word in INERT or (module in ("torch", "torch.storage") and last.endswith("Storage"))


def _powerful(word: str) -> bool:
    word = word.replace("__builtin__.", "builtins.", 1)
    parts = word.split(".")
    begins = (".".join(parts[:1]), ".".join(parts[:2]))
    return any(map(POWERFUL.fullmatch, begins)) and not CALM.fullmatch(word)


def _list(words: list[str], most: int = 6) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


OWN = "."
"""As a part: names as the network itself has them, without the copy that stands beside them."""
_OPTIMISER = re.compile("optim|sched|scaler|callbacks|loops")
"""What is beside the weights in a checkpoint of a training."""
MAX_BYTES = 8_000_000_000
EXPANSION = 4
"""How many times its own size a file may declare: a weight fills its place on disk."""
FLOOR = 16_000_000
"""Bytes that any file may declare; smaller than what could hurt."""
SCRIPTED = ("constants.pkl", "/code/", "/extra/model_", "serialized_exported_program", "/models/")
MAX_HEADER = 10_000_000
MAX_TENSORS = 200_000
"""torchvision's largest network has about a thousand; 500,000 took 12 s to read."""
LENGTH = 8
"""Bytes of a .safetensors that say how long its header is."""
AGAIN = "download or copy it again"
OTHERS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", "save the weights from torch"),
    (b"\x93NUMPY", "a NumPy array", "save the weights as .safetensors"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"GGUF", "a GGUF file (a language model)", "give the weights of an image network"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the weights as checkpoint"),
    (b"\x89PNG", "a PNG picture", "give the weights as checkpoint"),
    (b"%PDF", "a PDF document", "give the weights as checkpoint"),
)
TEXT = "give the file of weights itself; if this one was downloaded, the server sent words instead"
PAGE = "download it again: the server sent a page instead of the file"


@dataclass(frozen=True)
class Checkpoint:
    """What was read from one file."""

    name: str
    """The path as it was given, for messages."""
    weights: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str
    """Of the whole file, of exactly the bytes that were read."""
    notes: tuple[str, ...] = field(default=())


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read weights from `.safetensors` or a file of torch.save, told apart by their content.

    `FILE#PART` takes one of several state dicts in a file, or of what lies in one only the tensors
    whose names begin so; `FILE#.` those that no other name begins. Nothing in the file is run.

    Raises CheckpointError: C400 not readable, C401 to C404 and C406 what is no checkpoint, C405
    truncated, C407 larger than it looks, C408 tensors without plain values, C409 damaged, C411
    several state dicts, C413 numbers that are not finite, C416 no such part.
    """
    name, part = str(path), ""
    if why := unusable(name):
        raise CheckpointError("C400", shown(name), why)
    if not Path(name).exists() and "#" in name:
        name, _, part = name.rpartition("#")
    file = _File(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what strange bytes remind Python and torch
        content = file.content()
    weights = file.chosen(content, part)
    file.check_tensors(weights)
    sha256 = hashlib.sha256(file.data).hexdigest()
    return Checkpoint(str(path), weights, file.metadata, sha256, tuple(map(printable, file.notes)))


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, and the file's metadata. Raises as `open_checkpoint`."""
    result = open_checkpoint(path)
    return result.weights, result.metadata


def save_weights(
    path: Path, model_state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a state dict to `.safetensors`, whole or not at all; what is there is replaced.

    Raises EnvironmentFault R602 (disk full) or R603 (not writable).
    """
    plain = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for key, value in model_state.items()
    }
    publish_file(path, safetensors.torch.save(plain, dict(metadata or {})))
    return path


class _File:
    """A file of weights while it is read."""

    def __init__(self, name: str) -> None:
        self.name, self.data = name, b""
        self.metadata: dict[str, str] = {}
        self.notes: list[str] = []
        path = Path(name)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise self.fault("C400", f"is {kind}, not a checkpoint")
            if status.st_size > MAX_BYTES:
                most = f"{size(MAX_BYTES)} are the most"
                raise self.fault("C407", f"has {size(status.st_size)}; {most}")
            self.data = path.read_bytes()
        except FileNotFoundError as fault:
            raise self.fault("C400", f"no such file; {_beside(path)}") from fault
        except OSError as fault:
            reason = (fault.strerror or str(fault)).lower()
            raise self.fault("C400", f"cannot be read ({reason})") from fault
        if not self.data:
            raise self.fault("C405", "the file is empty", "copy it again")
        self.refuse_others()

    def fault(self, code: str, what: str, next_step: str = "") -> CheckpointError:
        return CheckpointError(code, self.name, what, next_step=next_step)

    @property
    def limit(self) -> int:
        """Bytes of tensors that a file of this size may hold."""
        return min(MAX_BYTES, max(FLOOR, EXPANSION * len(self.data)))

    def refuse_others(self) -> None:
        """Raise CheckpointError C406 if the file is known to be something else."""
        head = self.data[:512]
        for start, what, next_step in OTHERS:
            if head.startswith(start):
                raise self.fault("C406", f"this is {what}", next_step)
        text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
        if text.lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
            raise self.fault("C406", "this is an HTML page", PAGE)
        if head[257:262] == b"ustar":
            raise self.fault("C406", "this is a tar archive", "unpack it first")
        letters = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in text)
        if text and letters and not is_pickle(self.data):  # the oldest pickles are text too
            first = text[:40].decode("ascii").split("\n")[0]
            raise self.fault("C406", f'this is a text (it begins "{first}")', TEXT)

    def content(self) -> Any:
        """What the file holds, tensors on the CPU; nothing in it is run."""
        data = self.data
        named = self.name.endswith(".safetensors") and not data.startswith(b"PK")
        if named or (len(data) > LENGTH and data[LENGTH : LENGTH + 1] == b"{"):
            return self.read_safetensors()
        if data.startswith(b"PK"):
            self.check_archive()
        else:
            legacy = is_legacy(data)
            inspect(data, self.name, LEGACY_PICKLES if legacy else 1)
            if not legacy:
                raise self.fault("C406", "is a Python pickle, but not one that torch.save wrote")
        return self.read_torch()

    def read_safetensors(self) -> dict[str, Tensor]:
        """Raises CheckpointError C405, C407 an oversized header, C408 a number type torch has not,
        C409."""
        metadata = self.header().get("__metadata__", {})
        if isinstance(metadata, dict):
            self.metadata = {str(key): str(value) for key, value in metadata.items()}
        try:
            return safetensors.torch.load(self.data)
        except (safetensors.SafetensorError, KeyError) as fault:
            code = "C408" if isinstance(fault, KeyError) else "C409"
            raise self.fault(code, f"damaged: {fault}") from fault

    def header(self) -> dict[str, Any]:
        """Of a safetensors file; a large one would drown its reader."""
        length = int.from_bytes(self.data[:LENGTH], "little")
        if length > MAX_HEADER:
            most = f"{size(MAX_HEADER)} are the most"
            raise self.fault("C407", f"declares a header of {size(length)}; {most}")
        self.require(LENGTH + length)
        try:
            header = json.loads(self.data[LENGTH : LENGTH + length])
            entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
            if len(entries) > MAX_TENSORS:
                what = f"declares {len(entries)} tensors; {MAX_TENSORS} are the most"
                raise self.fault("C407", what)
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
            self.require(LENGTH + length + end)
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError) as bad:
            what = "damaged: the header is not that of a safetensors file"
            raise self.fault("C409", what) from bad
        return dict(header)

    def require(self, whole: int) -> None:
        """Raise CheckpointError C405 unless so many bytes are there."""
        if whole > len(self.data):
            what = f"truncated: {size(len(self.data))} of {size(whole)} are there"
            raise self.fault("C405", what, AGAIN)

    def check_archive(self) -> None:
        """Of torch.save. Raises CheckpointError C404 a program, C405, C406, C407, C409, and as
        `inspect`."""
        there = size(len(self.data))
        try:
            archive = zipfile.ZipFile(io.BytesIO(self.data))
        except Exception as fault:  # a damaged archive makes zipfile raise nearly anything
            what = f"truncated: the zip directory at the end is missing ({there} on disk)"
            raise self.fault("C405", what, AGAIN) from fault
        entries = archive.infolist()
        if any(mark in f"/{entry.filename}" for entry in entries for mark in SCRIPTED):
            what = "is a program (TorchScript or an exported .pt2), not a checkpoint"
            raise self.fault("C404", what, "save model.state_dict() of the Python module instead")
        declared = sum(entry.file_size for entry in entries)
        if declared > self.limit:
            raise self.fault("C407", f"a zip bomb: {there} would unpack to {size(declared)}")
        try:
            bad = archive.testzip()  # torch.load checks no sums: a flipped byte passes for a weight
        except Exception as fault:
            what = f"damaged: its zip archive cannot be read ({type(fault).__name__})"
            raise self.fault("C409", what, AGAIN) from fault
        if bad is not None:
            raise self.fault("C409", f"damaged: the checksum of {bad} does not match", AGAIN)
        records = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(records) != 1:
            raise self.fault("C406", "is a zip archive, but not one that torch.save wrote")
        inspect(archive.read(records[0]), self.name)

    def read_torch(self) -> Any:
        """torch's own words are replaced: they advise to open the file without protection."""
        too_much = "asks for more memory than there is"
        try:
            return torch.load(io.BytesIO(self.data), map_location="cpu", weights_only=True)
        except MemoryError as fault:
            raise self.fault("C407", too_much) from fault
        except pickle.UnpicklingError as fault:
            what = "refused: it holds more than tensors and plain containers"
            raise self.fault("C402", what) from fault
        except Exception as fault:
            text = str(fault)
            if "allocate" in text:
                raise self.fault("C407", too_much) from fault
            if isinstance(fault, EOFError) or "EOF" in text or "PytorchStreamReader" in text:
                what = f"truncated ({size(len(self.data))} on disk)"
                raise self.fault("C405", what, AGAIN) from fault
            what = f"damaged: torch cannot read it ({type(fault).__name__})"
            raise self.fault("C409", what) from fault

    def chosen(self, content: Any, part: str) -> dict[str, Tensor]:
        """The one state dict in what the file holds, or the part that is asked for."""
        if not isinstance(content, Mapping):
            raise self.fault("C406", f"holds a {type(content).__name__}, not weights by name")
        own = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        parts = _states(content)
        if not parts and not _is_state(own):
            parts = {
                f"{key}.{inner}": state
                for key, value in content.items()
                if isinstance(value, Mapping) and not _OPTIMISER.search(str(key))
                for inner, state in _states(value).items()
            }
        if part:
            return self.part(part, own, parts)
        if len(parts) > 1 or (parts and _is_state(own)):
            choices = " or ".join(f"{self.name}#{key}" for key in sorted(parts))
            what = f"holds several sets of weights: {', '.join(sorted(parts))}"
            raise self.fault("C411", what, f"choose one, as {choices}")
        for key, state in parts.items():
            others = [str(other) for other in content if other != key]
            beside = f" (beside {', '.join(others[:4])})" if others else ""
            self.notes.append(f"took the weights under {key!r} in the file{beside}")
            return state
        if not own:
            raise self.fault("C406", "holds no weights")
        if len(own) < len(content):
            left = [str(key) for key in content if key not in own]
            self.notes.append(f"left out what is no tensor: {', '.join(left[:4])}")
        return {str(key): value for key, value in own.items()}

    def part(
        self, part: str, own: dict[Any, Tensor], parts: dict[str, dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The state dict under `part`, or the tensors whose names begin with it."""
        begun = parts.get(part, {})
        for path, state in (("", own), *parts.items()):
            begun = begun or _begun(state, part) or _begun(state, part.removeprefix(f"{path}."))
        if not begun:
            states = (own, *parts.values())
            heads = {str(key).partition(".")[0] for state in states for key in state}
            what = f"there is no such part; {nearest(part, [*parts, *heads])}"
            raise CheckpointError("C416", f"{self.name}#{part}", what)
        self.notes.append(f"took the weights under {part!r} in the file, as asked")
        return begun

    def check_tensors(self, weights: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError C407, C408 or C413 unless all are plain, there, and finite."""
        total, broken = 0, []
        for key, value in weights.items():
            if value.device.type == "meta":
                raise self.fault("C408", f"{key} has a shape but no values (meta tensor)")
            if value.layout != torch.strided or value.is_quantized or value.is_nested:
                raise self.fault("C408", f"{key} is not a plain dense tensor")
            own = value.numel() * value.element_size()
            total += own
            if own > value.untyped_storage().nbytes() or total > self.limit:
                raise self.fault("C407", f"{key} claims {size(own)} that the file does not hold")
            if value.is_floating_point() and not torch.isfinite(value).all():
                broken.append(key)
        if broken:
            few = ", ".join(broken[:3])
            few += f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            what = f"{len(broken)} of {len(weights)} tensors hold NaN or infinity: {few}"
            step = "take a checkpoint from before the training broke down"
            raise self.fault("C413", what, step)


def _beside(path: Path) -> str:
    """Checkpoints with a similar name in the same folder."""
    suffixes = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
    if not path.parent.is_dir():
        return "and no such folder"
    return nearest(path.name, sorted(p.name for p in path.parent.iterdir() if p.suffix in suffixes))


def _begun(state: Mapping[Any, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the part; for "." those that are not there once more
    with something before their names."""
    names = {str(key): value for key, value in state.items()}
    if part != OWN:
        return {key: value for key, value in names.items() if key.startswith(f"{part}.")}
    ends = {key: _ends(key) for key in names}
    copies = {key for key, shorter in ends.items() if any(end in names for end in shorter)}
    return {key: value for key, value in names.items() if key not in copies} if copies else {}


def _ends(name: str) -> list[str]:
    """conv.0.weight: 0.weight and weight."""
    pieces = name.split(".")
    return [".".join(pieces[start:]) for start in range(1, len(pieces))]


def _states(content: Mapping[Any, Any]) -> dict[str, dict[str, Tensor]]:
    return {str(key): dict(value) for key, value in content.items() if _is_state(value)}


def _is_state(value: object) -> bool:
    """Tensors by name, and not only single numbers, as a best accuracy or a loss scale."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and all(isinstance(entry, Tensor) for entry in value.values())
        and any(entry.ndim > 0 for entry in value.values())
    )


def size(count: float) -> str:
    """Bytes as a person says them: 23.4 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
