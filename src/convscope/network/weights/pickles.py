"""What a pickle would ask Python to do, read without opening it.

Only for the words of a refusal: what is opened is opened by torch under `weights_only=True`,
whatever is found here. Nothing is executed, and nothing found is no proof of harmlessness.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Iterator
from typing import Any

from convscope.core.errors import CheckpointError

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
