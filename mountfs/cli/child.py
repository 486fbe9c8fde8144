"""Ask what may never answer, a mount that hangs or a disk that is stuck, in a process that can be
left behind.
"""

import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NoAnswer(Exception):
    """It took too long, or the child died."""


def ask_child(question: Callable[[], T], seconds: float) -> T:
    """The result of `question`, which runs in a child process, or the OSError that it raises.

    Raises NoAnswer after `seconds`.  A child that is stuck in the kernel cannot be waited for: it
    is killed, which takes effect once the kernel lets go of it, and ends with us at the latest.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(question, write_end)
    os.close(write_end)
    answered = False
    try:
        said = _read_all(read_end, time.monotonic() + seconds)
        answered = said is not None
    finally:
        os.close(read_end)
        if not answered:
            os.kill(child, signal.SIGKILL)
        _reap(child)
    if not said:
        raise NoAnswer(f"no answer within {seconds:g} s")
    result = pickle.loads(said)
    if isinstance(result, OSError):
        raise result
    return result  # type: ignore[no-any-return]


def _answer(question: Callable[[], object], write_end: int) -> None:
    """Never returns.  Nothing of the parent may be kept open: who reads its output would wait."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        try:
            result = question()
        except OSError as error:
            result = OSError(error.errno, error.strerror, error.filename)
        data = pickle.dumps(result)
        while data:
            data = data[os.write(write_end, data) :]
    finally:
        os._exit(0)


def _read_all(fd: int, deadline: float) -> bytes | None:
    """All that comes until the end, or None if that does not come in time."""
    data = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([fd], [], [], left)[0]:
            return None
        part = os.read(fd, 1 << 16)
        if not part:
            return data
        data += part
    return None


def _reap(child: int) -> None:
    """Without waiting for one that cannot die."""
    for _ in range(20):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.005)
