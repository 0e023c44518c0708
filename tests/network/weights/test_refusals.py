"""Is every bad checkpoint refused in one clear line, and is nothing in it ever run?"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from convscope.core.errors import CheckpointError
from convscope.network import checkpoint
from convscope.network.checkpoint import open_checkpoint, read_weights

WEIGHTS = {"conv.weight": torch.arange(54.0).reshape(2, 3, 3, 3), "conv.bias": torch.ones(2)}


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


class Hyper:
    """Some class that this reader cannot know."""


def saved(content: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def legacy(content: object, **options: Any) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False, **options)


def rezipped(data: bytes, method: int = zipfile.ZIP_STORED, **changed: bytes) -> bytes:
    """The same archive with other compression, or with other contents for some entries."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w", method) as new:
        for entry in old.infolist():
            end = entry.filename.rpartition("/")[2]
            new.writestr(entry.filename, changed.get(end.replace(".", "_"), old.read(entry)))
    return stream.getvalue()


def tensors(header: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def refusal(folder: Path, data: bytes, name: str = "weights.pt") -> CheckpointError:
    """The one line with which a file of these bytes is refused."""
    path = folder / name
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    line = caught.value.line()
    assert "\n" not in line
    assert "weights_only" not in line
    assert name in line
    assert caught.value.exit_status == 4
    return caught.value


@pytest.mark.parametrize("write", [saved, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_exploit_is_named_and_not_run(
    tmp_path: Path, write: Callable[[object], bytes], wrapped: bool
) -> None:
    mark = tmp_path / "ran"
    content: object = {**WEIGHTS, "extra": Evil(mark)} if wrapped else Evil(mark)
    fault = refusal(tmp_path, write(content), "evil.pt")
    assert fault.code == "C401"
    assert "it asks to run posix.system when opened. This is how malicious" in str(fault)
    assert "Nothing was run" in str(fault)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))  # it would have worked
    assert mark.exists()


def test_an_exploit_is_named_in_every_spelling_a_pickle_has(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    zipped = saved(WEIGHTS)
    spellings = {
        "protocol 0": pickle.dumps(Evil(mark), protocol=0),
        "protocol 4": pickle.dumps(Evil(mark), protocol=4),
        "INST": f"(S'touch {mark}'\nios\nsystem\n.".encode(),
        "memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93(\x8c\x02id\x94tR.",
        "eval": b"cbuiltins\neval\n(S'1'\ntR.",
        "python 2": b"c__builtin__\nexec\n(S'1'\ntR.",
        "torch.hub": b"ctorch.hub\nload\n(S'a/b'\nS'c'\ntR.",
    }
    for spelling, stream in spellings.items():
        for data in (rezipped(zipped, data_pkl=stream), stream):
            fault = refusal(tmp_path, data, "evil.pt")
            assert fault.code == "C401", spelling
    assert not mark.exists()


def test_an_exploit_in_the_last_pickle_of_an_old_file_is_named(tmp_path: Path) -> None:
    data = legacy({"a": torch.ones(2)})
    keys = data.rindex(b"\x80\x02")
    fault = refusal(tmp_path, data[:keys] + pickle.dumps(Evil(tmp_path / "ran"), 2))
    assert fault.code == "C401"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("write", [saved, legacy], ids=["zip", "legacy"])
def test_nothing_runs_even_if_reading_the_pickle_first_saw_nothing(
    tmp_path: Path, write: Callable[[object], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    monkeypatch.setattr("convscope.network.checkpoint.inspect", lambda *_: None)
    monkeypatch.setattr("convscope.network.checkpoint.is_legacy", lambda _: True)
    fault = refusal(tmp_path, write({**WEIGHTS, "extra": Evil(mark)}))
    assert fault.code == "C402"
    assert not mark.exists()


@pytest.mark.parametrize("write", [saved, legacy], ids=["zip", "legacy"])
def test_foreign_classes_are_listed(tmp_path: Path, write: Callable[[object], bytes]) -> None:
    content = {
        "state_dict": WEIGHTS,
        "args": argparse.Namespace(lr=1),
        "best": np.float64(0.5),
        "hyper": Hyper(),
        "folder": tmp_path,
    }
    fault = refusal(tmp_path, write(content))
    assert fault.code == "C402"
    assert "argparse.Namespace" in str(fault)
    assert "Hyper" in str(fault)
    assert "save the state dict alone" in fault.next_step


@pytest.mark.parametrize("write", [saved, legacy], ids=["zip", "legacy"])
def test_a_whole_network_is_no_checkpoint(tmp_path: Path, write: Callable[[object], bytes]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old torch.save looks for the source of a class
        data = write(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()))
    fault = refusal(tmp_path, data)
    assert fault.code == "C403"
    assert "model.state_dict()" in fault.next_step


def test_programs_are_no_checkpoints(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(str(tmp_path / "scripted"))
    assert refusal(tmp_path, (tmp_path / "scripted").read_bytes()).code == "C404"
    exported = io.BytesIO()
    with zipfile.ZipFile(exported, "w") as archive:  # the entries that torch.export.save makes
        for name in ("data/weights/weight_0", "models/model.json", "archive_format", "byteorder"):
            archive.writestr(f"e/{name}", "")
    assert refusal(tmp_path, exported.getvalue(), "exported.pt2").code == "C404"


@pytest.mark.parametrize("percent", [1, 25, 50, 75, 99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_said_to_be_truncated(tmp_path: Path, kind: str, percent: int) -> None:
    content = {"a": torch.arange(5000.0), "b": torch.ones(7)}
    whole = {"zip": saved, "legacy": legacy, "safetensors": safetensors.torch.save}[kind](content)
    name = "a.safetensors" if kind == "safetensors" else "a.pt"
    fault = refusal(tmp_path, whole[: len(whole) * percent // 100], name)
    if percent == 1 and kind == "legacy":  # cut within its pickles
        assert fault.code in ("C405", "C409")
    else:
        assert fault.code == "C405"
        assert "truncated" in str(fault)


def test_a_truncated_zip_says_what_is_missing_and_what_is_there(tmp_path: Path) -> None:
    whole = saved({"a": torch.zeros(1_000_000)})
    assert "the zip directory at the end is missing (2.0 MB on disk)" in str(
        refusal(tmp_path, whole[:2_000_000])
    )


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        fault = refusal(tmp_path, b"", name)
        assert (fault.code, fault.what) == ("C405", "the file is empty")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><html><body>404", "this is an HTML page"),
        (b"\n\n <HTML>\n", "this is an HTML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
            "a git-lfs pointer",
        ),
        (b'{"message": "Not Found"}', 'this is a text (it begins "{"message": "Not Found"}")'),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0\0\0", "an HDF5 file (Keras)"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "compressed with gzip"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG picture"),
        (b"a/" + b"\0" * 255 + b"ustar\0" + b"\0" * 300, "a tar archive"),
    ],
)
def test_something_else_is_called_by_its_name(
    tmp_path: Path, data: bytes, said: str, name: str
) -> None:
    fault = refusal(tmp_path, data, name)
    assert fault.code == "C406"
    assert said in str(fault)


def test_words_are_not_taken_for_a_servers_page(tmp_path: Path) -> None:
    fault = refusal(tmp_path, b"my notes\n")
    assert "give the file of weights itself" in fault.next_step


def test_a_git_lfs_pointer_comes_with_the_command_that_helps(tmp_path: Path) -> None:
    fault = refusal(tmp_path, b"version https://git-lfs.github.com/spec/v1\n")
    assert fault.next_step == "run: git lfs pull"


def test_other_zips_and_pickles_are_no_checkpoints(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert refusal(tmp_path, stream.getvalue()).code == "C406"
    assert refusal(tmp_path, pickle.dumps({"a": [1, 2]})).code == "C406"
    assert refusal(tmp_path, saved(torch.ones(3))).code == "C406"
    assert refusal(tmp_path, saved({"epoch": 3})).code == "C406"


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path: Path) -> None:
    whole = bytearray(saved({"a": torch.zeros(10_000)}))
    whole[len(whole) // 2] ^= 1
    fault = refusal(tmp_path, bytes(whole))
    assert fault.code == "C409"
    assert "the checksum of" in str(fault)


def test_zip_bombs_are_refused_before_they_unpack(tmp_path: Path) -> None:
    data = rezipped(saved({"a": torch.zeros(10_000_000)}), zipfile.ZIP_DEFLATED)
    assert len(data) < 100_000
    fault = refusal(tmp_path, data)
    assert fault.code == "C407"
    assert "would unpack to 40.0 MB" in str(fault)


def test_a_deflated_archive_of_honest_size_is_read(tmp_path: Path) -> None:
    data = rezipped(saved(WEIGHTS), zipfile.ZIP_DEFLATED)
    (tmp_path / "a.pt").write_bytes(data)
    assert torch.equal(read_weights(tmp_path / "a.pt")[0]["conv.weight"], WEIGHTS["conv.weight"])


@pytest.mark.parametrize("write", [saved, legacy], ids=["zip", "legacy"])
def test_a_tensor_that_claims_more_than_it_holds_is_refused(
    tmp_path: Path, write: Callable[[object], bytes]
) -> None:
    data = write({"a": torch.zeros(1).expand(10**10)})
    assert len(data) < 3000
    fault = refusal(tmp_path, data)
    assert fault.code == "C407"
    assert "a claims 40.0 GB" in str(fault)
    assert refusal(tmp_path, write({"a": torch.zeros(1).expand(1000)})).code == "C407"


def test_many_tensors_on_one_storage_cannot_add_up_to_a_bomb(tmp_path: Path) -> None:
    storage = torch.zeros(1_000_000)
    data = saved({str(number): storage[:] for number in range(20)})
    assert refusal(tmp_path, data).code == "C407"


def test_oversized_headers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = refusal(tmp_path, struct.pack("<Q", 1 << 40) + b"{}" + b"\0" * 99, "a.safetensors")
    assert fault.code == "C407"
    assert "declares a header of 1.1 TB; 10.0 MB are the most" in str(fault)
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = tensors({f"t{number}": entry for number in range(200_001)})
    assert refusal(tmp_path, many, "a.safetensors").code == "C407"
    monkeypatch.setattr(checkpoint, "MAX_TENSORS", 10)
    few = tensors({f"t{number}": entry for number in range(11)})
    assert "declares 11 tensors" in str(refusal(tmp_path, few, "a.safetensors"))


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}},  # the shape lies
        {"a": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"a": {"shape": [2]}},
        {"a": 3},
        {"__metadata__": 3, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},  # a hole
    ],
    ids=range(6),
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    fault = refusal(tmp_path, tensors(header, b"\0" * 8), "a.safetensors")
    assert fault.code == "C409"


def test_a_header_of_endless_depth_is_refused(tmp_path: Path) -> None:
    text = b'{"a":' * 100_000
    data = struct.pack("<Q", len(text)) + text
    assert refusal(tmp_path, data, "a.safetensors").code == "C409"


def test_tensors_without_plain_values_are_refused(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    for content in ({"a": torch.empty(2, device="meta")}, {"a": sparse}):
        assert refusal(tmp_path, saved(content)).code == "C408"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(tmp_path: Path, bad: float) -> None:
    broken = {key: value.clone() for key, value in WEIGHTS.items()}
    broken["conv.bias"][1] = bad
    for name, data in (("a.pt", saved(broken)), ("a.safetensors", safetensors.torch.save(broken))):
        fault = refusal(tmp_path, data, name)
        assert fault.code == "C413"
        assert "1 of 2 tensors hold NaN or infinity: conv.bias" in str(fault)


def test_a_file_that_is_not_there_is_answered_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "resnet.pt").write_bytes(saved(WEIGHTS))
    with pytest.raises(CheckpointError, match=r"no such file; did you mean resnet\.pt"):
        read_weights(tmp_path / "resent.pt")


def test_folders_and_pipes_are_no_checkpoints(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")  # reading it would wait for ever
    for path in (tmp_path, tmp_path / "pipe.pt"):
        with pytest.raises(CheckpointError) as caught:
            read_weights(path)
        assert caught.value.code == "C400"


def test_a_name_cannot_forge_a_second_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nconvscope: all is well\x1b[2K.pt"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert not {"\n", "\x1b"} & set(caught.value.line())


def test_names_inside_a_file_cannot_forge_a_second_line_either(tmp_path: Path) -> None:
    forged = "a\nconvscope: all is well\x1b[2K"
    hidden = f"\x80\x04\x8c{chr(len(forged))}{forged}\x8c\x01b\x93.".encode("latin-1")
    for data in (saved({forged: torch.tensor([float("nan")])}), hidden):
        assert not {"\n", "\x1b"} & set(refusal(tmp_path, data).line())
    path = tmp_path / "good.pt"
    torch.save({**WEIGHTS, forged: 3}, path)
    assert not {"\n", "\x1b"} & set("".join(open_checkpoint(path).notes))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_no_mutation_of_a_file_gets_past_the_refusals(tmp_path: Path, kind: str) -> None:
    """Whatever is flipped: the tensors, or a CheckpointError."""
    whole = {"zip": saved, "legacy": legacy, "safetensors": safetensors.torch.save}[kind](WEIGHTS)
    chance = random.Random(kind)
    path = tmp_path / "a.pt"
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        with suppress(CheckpointError):
            open_checkpoint(path)
            refused -= 1
        refused += 1
    assert refused > 20
