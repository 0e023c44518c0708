"""Do decoding processes come and go with those who need them, and leave nothing behind?"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

from convscope.pictures.pictures import Pictures

COUNT = 14


def children() -> set[int]:
    """Processes that this one has started and not reaped, zombies too."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(status.parent.name))
    return found


def test_a_consumer_may_stop_early_and_read_again(herd) -> None:
    before = children()
    folder = Pictures(herd, workers=2)
    for stop_after in (1, 3, 0):
        reading = folder.read(numbers=list(range(COUNT)) * 20)
        for _ in range(stop_after):
            next(reading)
        reading.close()
    assert [picture.number for picture in folder.read()] == list(range(COUNT))
    folder.close()
    assert children() <= before  # others may end meanwhile


def test_decoders_are_reused_and_end_with_their_folder(herd) -> None:
    before = children()
    folder = Pictures(herd)
    folder.one(0)
    first = children() - before
    part = folder.subset([3, 4])
    assert part.one(0).pixels[0, 0, 0] == 3
    assert children() - before == first
    assert len(first) == 1
    del folder
    gc.collect()
    assert children() - before == first  # the part still needs it
    del part
    gc.collect()
    assert children() <= before  # others may end meanwhile


def test_a_copy_of_a_folder_reads_on_its_own(herd) -> None:
    with Pictures(herd) as folder:
        folder.one(0)
        copy = pickle.loads(pickle.dumps(folder))
    assert copy.one(2).pixels[0, 0, 0] == 2
    copy.close()


def script(herd: Path, code: str, **options: object) -> subprocess.CompletedProcess[str]:
    text = f"from convscope import Pictures\nfolder = Pictures({str(herd)!r})\n{code}"
    path = herd / "script.py"
    path.write_text(text)
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=60, **options
    )


def test_a_script_without_a_main_guard_and_without_stdin_works(herd) -> None:
    code = "import os\nos.close(0)\nprint(sum(p.number for p in folder.read()))"
    done = script(herd, code)
    assert (done.stdout, done.stderr) == ("91\n", "")


def test_a_script_that_ends_in_the_middle_leaves_nothing_behind(herd) -> None:
    code = (
        "import os, pathlib\n"
        "pictures = folder.read(numbers=[0] * 500)\n"
        "next(pictures)\n"
        "for status in pathlib.Path('/proc').glob('[0-9]*/stat'):\n"
        "    if status.read_text().rsplit(')', 1)[1].split()[1] == str(os.getpid()):\n"
        "        print(status.parent.name, flush=True)\n"
    )
    for ending in ("", "os.kill(os.getpid(), 9)\n"):
        done = script(herd, code + ending)
        assert done.stderr == ""
        [decoder] = done.stdout.split()
        deadline = time.monotonic() + 10
        while _runs(decoder):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _runs(process: str) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def test_a_fork_does_not_touch_its_parents_decoders(herd) -> None:
    with Pictures(herd) as folder:
        folder.one(0)
        pid = os.fork()
        if pid == 0:
            fine = folder.one(1).pixels[0, 0, 0] == 1
            folder.close()
            os._exit(0 if fine else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert folder.one(2).pixels[0, 0, 0] == 2


def test_ctrl_c_reaches_the_consumer_and_not_the_decoders(herd) -> None:
    code = (
        "import os, signal\n"
        # Ignored where the tests run in a shell's background, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "pictures = folder.read(numbers=[1] * 30)\n"
        "next(pictures)\n"
        "try:\n"
        "    os.killpg(0, signal.SIGINT)\n"
        "    list(pictures)\n"
        "except KeyboardInterrupt:\n"
        "    print(len(list(folder.read())), folder.skipped)\n"
    )
    done = script(herd, code, start_new_session=True)
    assert (done.stdout, done.stderr) == (f"{COUNT} []\n", "")


def test_decoding_processes_know_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, convscope.pictures.decode.child; print({'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"
