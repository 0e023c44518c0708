"""A process that computes parts of a pass for another: `python -m convscope.scale.worker FD`."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection

from convscope.scale.processes import WORD, told, unpacked


def main(descriptor: int) -> None:
    """Until the other end closes the line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what the network's code prints is not for the result
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


def _answer(line: Connection, work: object, start: int, stop: int) -> None:
    from convscope.scale.engine import Work

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
