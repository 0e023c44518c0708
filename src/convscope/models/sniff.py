"""What is this file, if it is no checkpoint?"""

from __future__ import annotations

from convscope.errors import CheckpointError
from convscope.models.pickles import is_pickle

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


def refuse_others(data: bytes, name: str) -> None:
    """Raise CheckpointError C406 if the file is known to be something else."""
    head = data[:512]
    for start, what, next_step in OTHERS:
        if head.startswith(start):
            raise CheckpointError("C406", name, f"this is {what}", next_step=next_step)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise CheckpointError("C406", name, "this is an HTML page", next_step=PAGE)
    if head[257:262] == b"ustar":
        raise CheckpointError("C406", name, "this is a tar archive", next_step="unpack it first")
    letters = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in text)
    if text and letters and not is_pickle(data):  # the oldest pickles are text too
        first = text[:40].decode("ascii").split("\n")[0]
        raise CheckpointError("C406", name, f'this is a text (it begins "{first}")', next_step=TEXT)


def size(count: float) -> str:
    """Bytes as a person says them: 23.4 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
