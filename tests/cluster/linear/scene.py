"""What a worker does in a round: one scene for each kind of work, on few objects, so that workers
meet there.

Calls are said in the words of `mountfs.sim.models`, which judge them.
"""

import enum
import errno
import os
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, ClassVar, Final, NamedTuple

UNKNOWN: Final = frozenset(
    {errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNABORTED, errno.EINTR}
)
"""Who gets one of these does not know what became of the call."""


class Role(enum.StrEnum):
    WORKS = "works"
    WATCHES = "watches"
    """It changes nothing."""
    GLANCES = "glances"
    """It looks only at what the kernel may answer alone, so that it goes on when the daemon of its
    mount does not.
    """


class Op(NamedTuple):
    about: str
    """The object."""
    what: tuple[Any, ...]
    act: Callable[[], Any]
    """Its result is what json can write.  Raises OSError."""


class Scene:
    """The work of one worker, `number`, in one round."""

    faults: ClassVar[dict[int, str]] = {}
    """Errors that are answers of the models, as they are called there.  Any other is wrong."""

    unknown: ClassVar[frozenset[int]] = UNKNOWN
    """Errors after which it is not known what became of the call."""

    def __init__(self, directory: str, number: int, random: Random, role: Role) -> None:
        self.directory = directory
        self.number = number
        self.random = random
        self.role = role
        self.watches = role is not Role.WORKS
        self._count = 0
        self._fds: dict[tuple[str, int], int] = {}

    @classmethod
    def prepare(cls, directory: str) -> None:
        """Make what all workers find."""

    def next(self) -> Op:
        raise NotImplementedError

    def last(self) -> Iterator[Op]:
        """What is to be done before the worker leaves."""
        return iter(())

    @classmethod
    def looks(cls, directory: str) -> Iterator[Op]:
        """What is looked at through every mount when all workers are done."""
        return iter(())

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def kept(self, name: str, flags: int) -> int:
        """A file that stays open for the rest of the round."""
        fd = self._fds.get((name, flags))
        if fd is None:
            fd = self._fds[name, flags] = os.open(self.path(name), flags)
        return fd

    def unique(self) -> int:
        """A number that no other worker uses in this round; positive."""
        self._count += 1
        return self.number * 1_000_000 + self._count

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def make(path: str, data: bytes) -> None:
    """A new file."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)
