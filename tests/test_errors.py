"""Is every fault one line that cannot be forged, with what, where and what to do?"""

from __future__ import annotations

from convscope.core.errors import DataError, Stopped, nearest, printable


def test_a_fault_is_one_line_with_code_subject_and_next_step() -> None:
    fault = DataError("D104", "a/b.jpg", "truncated JPEG", kept="40 pictures", next_step="go on")
    assert fault.line() == (
        "convscope: error[D104]: a/b.jpg: truncated JPEG. Kept: 40 pictures. Next: go on."
    )
    assert fault.exit_status == 3
    assert Stopped("R675", "", "stopped").exit_status == 75


def test_a_suggestion_ends_with_its_question_mark() -> None:
    fault = DataError("D104", "a", "no such; did you mean b?", next_step="look.")
    assert str(fault) == "a: no such; did you mean b? Next: look."


def test_a_file_name_cannot_forge_a_line_or_break_the_terminal() -> None:
    name = "a\nconvscope: ok\x1b[31m\udcff"
    assert printable(name) == r"a\nconvscope: ok\x1b[31m\udcff"
    assert DataError("D101", name, "not a picture").line().count("\n") == 0
    quoted = DataError("D101", "a", f"holds {name}", kept=name, next_step=name).line()
    assert not {"\n", "\x1b", "\udcff"} & set(quoted)


def test_near_names_are_suggested_and_otherwise_what_there_is() -> None:
    layers = ["conv1", "conv2", "fc8"]
    assert nearest("conv_1", layers) == "did you mean conv1 or conv2?"
    assert nearest("zzz", layers) == "it has conv1, conv2, fc8"
    many = nearest("zzz", [f"l{i}" for i in range(99)])
    assert many.endswith("…, l98")
    assert many.count(",") == 12
