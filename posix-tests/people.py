"""Other processes, as other users or as this one.

A child is forked, so it shares nothing but open file descriptions.  It tells its result (or the
errno of its `OSError`) through a pipe, and no test waits for it longer than `PATIENCE_SECONDS`.
"""

import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS: Final = 10.0

ALICE: Final = 60_001
BOB: Final = 60_002
CAROL: Final = 60_003
"""Ids of users and of their groups.  They need not exist in /etc/passwd."""


def as_user(call: Callable[[], T], uid: int, gid: int | None = None, *groups: int) -> T:
    """What `call()` returns or raises in a child that is `uid`, in group `gid` (default: `uid`)."""

    def lowered(_: "Link") -> T:
        os.setgroups(groups)
        os.setgid(uid if gid is None else gid)
        os.setuid(uid)
        return call()

    with Other(lowered) as child:
        result: T = child.result()
    return result


class Link:
    """One side of a conversation of single bytes, for waiting on each other."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads = reads
        self._writes = writes

    def say(self) -> None:
        """Let the other side's next `hear` return."""
        os.write(self._writes, b".")

    def hear(self) -> None:
        """Wait for the other side's next `say`."""
        ready, _, _ = select.select([self._reads], [], [], PATIENCE_SECONDS)
        assert ready and os.read(self._reads, 1) == b".", "the other process did not answer"


class Other:
    """A forked child that runs `call(link)`.  Leaving the block kills what is still running.

    Invariant: `pid` is a child of ours that has not been waited for, or 0.
    """

    def __init__(self, call: Callable[[Link], Any]) -> None:
        from_child, to_parent = os.pipe()
        from_parent, to_child = os.pipe()
        self._result_fd, result_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for fd in (from_child, to_child, self._result_fd):
                os.close(fd)
            _run_and_exit(call, Link(from_parent, to_parent), result_fd)
        for fd in (to_parent, from_parent, result_fd):
            os.close(fd)
        self._pipes = (from_child, to_child)
        self._link = Link(from_child, to_child)
        self.say = self._link.say
        self.hear = self._link.hear

    def result(self) -> Any:
        """Wait for the end of the child.  Returns or raises what its call did."""
        answer = b""
        while True:
            ready, _, _ = select.select([self._result_fd], [], [], PATIENCE_SECONDS)
            assert ready, "the other process did not finish"
            if not (part := os.read(self._result_fd, 65536)):
                break
            answer += part
        os.waitpid(self.pid, 0)
        self.pid = 0
        assert answer, "the other process died"
        value, number, trace = pickle.loads(answer)
        if number is not None:
            raise OSError(number, os.strerror(number))
        assert trace is None, trace
        return value

    def finished_within(self, seconds: float) -> bool:
        """Whether the child's call ends within `seconds`."""
        ready, _, _ = select.select([self._result_fd], [], [], seconds)
        return bool(ready)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        for fd in (self._result_fd, *self._pipes):
            os.close(fd)


def _run_and_exit(call: Callable[[Link], Any], link: Link, result_fd: int) -> None:
    """The child's whole life.  It must not return into the test that forked it."""
    answer: Sequence[Any]
    try:
        answer = (call(link), None, None)
    except OSError as error:
        answer = (None, error.errno, None)
    except BaseException:
        answer = (None, None, traceback.format_exc())
    try:
        os.write(result_fd, pickle.dumps(answer))
    finally:
        os._exit(0)
