"""Locks: of a whole file with flock(2), of ranges of another with fcntl(2)."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from random import Random
from typing import ClassVar

from .scene import Op, Role, Scene, make

RANGES = {"range 0": (0, 10), "range 1": (10, 10)}
"""(start, length)"""
OBJECTS = ("flock", *RANGES)
_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of fcntl(2) on 64 bits: type, whence, start, length, pid."""


class Locks(Scene):
    """A worker waits for a lock only if it has none, so nobody waits for ever.

    Calls: as in `mountfs.sim.models.locks`; an owner is [worker, 0].
    """

    faults: ClassVar[dict[int, str]] = {errno.EAGAIN: "busy", errno.EACCES: "busy"}

    def __init__(self, directory: str, number: int, random: Random, role: Role) -> None:
        super().__init__(directory, number, random, role)
        self._owner = (number, 0)
        self._held: set[str] = set()
        """What it has, or may have."""

    @classmethod
    def prepare(cls, directory: str) -> None:
        make(f"{directory}/flock", b"")
        make(f"{directory}/ranges", bytes(20))

    def next(self) -> Op:
        random = self.random
        if self.watches:
            about = random.choice(list(RANGES))
            exclusive = random.random() < 0.5
            what = ("test", self._owner, exclusive)
            return Op(about, what, lambda: self._test(about, exclusive))
        about = random.choice(OBJECTS)
        if about in self._held:
            return self._unlock(about)
        exclusive = random.random() < 0.7
        how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        if self._held or random.random() < 0.7:
            how |= fcntl.LOCK_NB
        return Op(about, ("lock", self._owner, exclusive), lambda: self._lock(about, how))

    def last(self) -> Iterator[Op]:
        for about in sorted(self._held):
            yield self._unlock(about)

    def _unlock(self, about: str) -> Op:
        return Op(about, ("unlock", self._owner), lambda: self._lock(about, fcntl.LOCK_UN))

    def _lock(self, about: str, how: int) -> None:
        unlocks = how == fcntl.LOCK_UN
        if not unlocks:
            self._held.add(about)
        try:
            if about == "flock":
                fcntl.flock(self.kept("flock", os.O_RDWR), how)
            else:
                start, length = RANGES[about]
                fcntl.lockf(self.kept("ranges", os.O_RDWR), how, length, start)
        except OSError as error:
            if not unlocks and error.errno in self.faults:
                self._held.discard(about)
            raise
        if unlocks:
            self._held.discard(about)

    def _test(self, about: str, exclusive: bool) -> str | None:
        start, length = RANGES[about]
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        asked = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        found = fcntl.fcntl(self.kept("ranges", os.O_RDWR), fcntl.F_GETLK, asked)
        return None if _FLOCK.unpack(found)[0] == fcntl.F_UNLCK else "busy"
