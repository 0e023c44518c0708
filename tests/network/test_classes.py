"""Are names of classes read as their maker meant them?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from convscope import load
from convscope.core.errors import UsageError
from convscope.network.load import classes_asked

NAMES = ("daisy", "tench", "zebra")
FORMS = {
    "lines": "daisy\ntench\n\nzebra\n",
    "lines of Windows, with a mark": "\ufeffdaisy\r\ntench\r\nzebra\r\n",
    "a list": '["daisy", "tench", "zebra"]',
    "by number": '{"0": "daisy", "2": "zebra", "1": "tench"}',
    "by name": '{"daisy": 0, "zebra": 2, "tench": 1}',
    "ImageNet's": '{"0": ["n1", "daisy"], "1": ["n2", "tench"], "2": ["n3", "zebra"]}',
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_names_in_the_order_of_the_outputs(form: str, tmp_path: Path) -> None:
    path = tmp_path / "class_indices.json"
    path.write_bytes(FORMS[form].encode())
    assert classes_asked(path) == classes_asked(str(path)) == (3, NAMES)


def test_more_than_ten_classes_are_ordered_by_number_and_not_by_text(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps({str(n): f"class {n}" for n in range(12)}))
    assert classes_asked(path)[1][-2:] == ("class 10", "class 11")


def test_numbers_and_names_with_commas_need_no_file() -> None:
    assert classes_asked("5") == (5, ())
    assert classes_asked("cat, dog") == (2, ("cat", "dog"))
    assert classes_asked({"cat": 0, "dog": 1}) == (2, ("cat", "dog"))  # class_to_idx
    assert classes_asked(None) == (None, ())


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1, 2]",
        "{}",
        '{"0": "a", "2": "b"}',
        '{"a": 0, "b": 0}',
        '{"a": 1, "b": 2}',
        '{"0": ["a"], "1": []}',
        '{"a": true}',
        "[" * 100_000,
        '{"0": NaN}',
    ],
)
def test_a_file_that_names_no_classes_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        classes_asked(path)
    assert caught.value.code == "U235"
    assert len(str(caught.value)) < 500


def test_a_file_that_is_not_there_is_no_name_of_a_class() -> None:
    with pytest.raises(UsageError, match="no file") as caught:
        classes_asked("nowhere/names.txt")
    assert caught.value.code == "U231"


def net(outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs)
    )


@pytest.mark.parametrize("told", [["a", "b"], ["a", "b", "c", "d"], 4, "a,b", {"a": 0}])
def test_another_number_of_classes_than_outputs_is_told_at_once(told: object) -> None:
    with pytest.raises(UsageError, match="has 3 outputs, where") as caught:
        load(net(3), classes=told)  # type: ignore[arg-type]
    assert caught.value.code == "U236"


@pytest.mark.parametrize("told", [["rose"], ["no rose", "rose"]])
def test_a_single_score_may_have_one_name_or_two(told: list[str]) -> None:
    assert load(net(1), classes=told).classes == tuple(told)


def test_names_of_a_network_that_takes_no_such_picture_are_kept() -> None:
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 3))
    assert load(flat, classes=["a", "b"]).classes == ("a", "b")
