"""A process that computes parts of a pass for another: `python -m convscope.scale.worker FD`."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection


def main(descriptor: int) -> None:
    """Until the other end closes the line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what the network's code prints is not for the result
    threading.Thread(target=_end_with, args=(descriptor,), daemon=True).start()
    # With torch: this takes seconds, in which the other end may go.
    from convscope.scale.processes import told, unpacked

    line = Connection(descriptor)
    try:
        work = unpacked(line.recv_bytes())
        while True:
            start, stop = pickle.loads(line.recv_bytes())
            _answer(line, work, start, stop)
    except (EOFError, OSError):
        pass  # the other one has ended
    except Exception as fault:
        line.send_bytes(b"F" + told(fault))


def _end_with(descriptor: int) -> None:
    """End this process when the other end is gone, also in a batch that takes for ever."""
    watch = select.poll()
    watch.register(descriptor, 0)  # to be told of nothing but that
    watch.poll()
    os._exit(0)


def _answer(line: Connection, work: object, start: int, stop: int) -> None:
    from convscope.scale.engine import Work
    from convscope.scale.processes import WORD, told

    assert isinstance(work, Work)
    try:
        segment = work.alone(start, stop, lambda done: line.send_bytes(WORD + b"%d" % done))
        content = b"S" + segment.to_bytes("")
    except OSError:
        raise
    except Exception as fault:
        content = b"F" + told(fault)
    line.send_bytes(content)


if __name__ == "__main__":
    main(int(sys.argv[1]))
