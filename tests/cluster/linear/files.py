"""What is in files, and about them."""

import fcntl
import os
import time
import zlib
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any, ClassVar

from .scene import Op, Role, Scene, make

# -- attributes


class Attributes(Scene):
    """Mode and time of last change of one file, mode and size of another.

    Calls: write ATTRIBUTE V; stat, by name or through a descriptor -> [mode, size, mtime].
    """

    FILES = ("a0", "a1")

    @classmethod
    def prepare(cls, directory: str) -> None:
        for name in cls.FILES:
            make(f"{directory}/{name}", b"")
            os.chmod(f"{directory}/{name}", 0)
            os.utime(f"{directory}/{name}", ns=(0, 0))

    def next(self) -> Op:
        name = self.random.choice(self.FILES)
        path = self.path(name)
        kind = self.random.randrange(_CHOICES[self.role])
        if kind < 3:
            return Op(name, ("stat",), lambda: _attributes(os.stat(path)))
        if kind == 3:
            return Op(name, ("stat",), lambda: _attributes(os.fstat(self.kept(name, os.O_RDONLY))))
        if kind < 6:
            mode = self.random.randrange(1, 0o1000)
            if kind == 4:
                return Op(name, ("write", "mode", mode), lambda: os.chmod(path, mode))
            fd = self.kept(name, os.O_RDONLY)
            return Op(name, ("write", "mode", mode), lambda: os.fchmod(fd, mode))
        value = self.unique()
        if name == "a0":
            when = value * 1_000_000_000
            return Op(name, ("write", "mtime", value), lambda: os.utime(path, ns=(when, when)))
        return Op(name, ("write", "size", value), lambda: os.truncate(path, value))


_CHOICES = {Role.GLANCES: 3, Role.WATCHES: 4, Role.WORKS: 8}


def _attributes(seen: os.stat_result) -> list[int]:
    return [seen.st_mode & 0o7777, seen.st_size, int(seen.st_mtime)]


# -- contents: each file is a register, written as a whole


VALUE_BYTES = 16


def encode(value: int) -> bytes:
    return b"%016d" % value


def decode(data: bytes) -> int | str:
    """The value; what is there, if that is none."""
    return int(data) if len(data) == VALUE_BYTES and data.isdigit() else f"torn: {data!r}"


class Closed(Scene):
    """Files are opened, read or written, and closed again.  One is so large that its bytes are with
    chunkservers, the other is kept with the metadata.  Judged as close-to-open promises: what is
    written and not closed may be seen on its own mount.

    Calls: read -> V; write V.
    """

    FILES: ClassVar[dict[str, int]] = {"c0": 1, "c1": 768}
    """How often the value is there.  Only the first is read: more than a page is not read at once,
    on any filesystem.
    """
    OPEN_S_MAX: ClassVar[float] = 0.01
    """So long a file stays open that was written."""

    @classmethod
    def prepare(cls, directory: str) -> None:
        for name, repeat in cls.FILES.items():
            make(f"{directory}/{name}", encode(0) * repeat)

    def next(self) -> Op:
        name = self.random.choice(list(self.FILES))
        if self.watches or self.random.random() < 0.5:
            return Op(name, ("read",), lambda: self.read(name))
        value = self.unique()
        return Op(name, ("write", value), lambda: self.write(name, value))

    def read(self, name: str) -> int | str:
        return _read_closed(self.path(name))

    def write(self, name: str, value: int) -> None:
        fd = os.open(self.path(name), os.O_WRONLY)
        try:
            os.pwrite(fd, encode(value) * self.FILES[name], 0)
            time.sleep(self.random.random() * self.OPEN_S_MAX)
        finally:
            os.close(fd)

    @classmethod
    def looks(cls, directory: str) -> Iterator[Op]:
        for name in cls.FILES:
            yield Op(name, ("read",), partial(_read_closed, f"{directory}/{name}"))


def _read_closed(path: str) -> int | str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return decode(os.pread(fd, VALUE_BYTES, 0))
    finally:
        os.close(fd)


class Contents(Closed):
    """The same, but nobody may see what somebody else, who asks afterwards, does not.  Files stay
    open for so long that others can look meanwhile.
    """

    OPEN_S_MAX: ClassVar[float] = 0.05


class Held(Closed):
    """The same as `Closed` through descriptors that stay open; what was written is synced."""

    def read(self, name: str) -> int | str:
        flags = os.O_RDONLY if self.watches else os.O_RDWR
        return decode(os.pread(self.kept(name, flags), VALUE_BYTES, 0))

    def write(self, name: str, value: int) -> None:
        fd = self.kept(name, os.O_RDWR)
        os.pwrite(fd, encode(value) * self.FILES[name], 0)
        os.fsync(fd)


# -- appending


RECORD_BYTES = 16


def record(value: int) -> bytes:
    return b"%015d\n" % value


class Appends(Scene):
    """One file, to which everybody appends records: opened for it, or open all the time and synced.

    Calls: append RECORD; read -> [bytes, their crc32]; whole -> [records].
    """

    @classmethod
    def prepare(cls, directory: str) -> None:
        make(f"{directory}/log", b"")

    def __init__(self, directory: str, number: int, random: Random, role: Role) -> None:
        super().__init__(directory, number, random, role)
        self._closes = random.random() < 0.5

    def next(self) -> Op:
        if self.watches or self.random.random() < 0.2:
            return Op("log", ("read",), lambda: _sum(_whole(self.path("log"))))
        value = self.unique()
        return Op("log", ("append", value), lambda: self._append(value))

    def _append(self, value: int) -> None:
        flags = os.O_WRONLY | os.O_APPEND
        fd = os.open(self.path("log"), flags) if self._closes else self.kept("log", flags)
        try:
            os.write(fd, record(value))
            if not self._closes:
                os.fsync(fd)
        finally:
            if self._closes:
                os.close(fd)

    @classmethod
    def looks(cls, directory: str) -> Iterator[Op]:
        yield Op("log", ("whole",), lambda: _records(_whole(f"{directory}/log")))


def _whole(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _sum(data: bytes) -> list[int]:
    return [len(data), zlib.crc32(data)]


def _records(data: bytes) -> list[Any]:
    """What is not a record is shown as it is."""
    found: list[Any] = []
    for start in range(0, len(data), RECORD_BYTES):
        part = data[start : start + RECORD_BYTES]
        is_record = len(part) == RECORD_BYTES and part[:-1].isdigit() and part.endswith(b"\n")
        found.append(int(part) if is_record else repr(part))
    return found


# -- counting, under a lock


class Counters(Scene):
    """A number that is read, and written one higher, through a descriptor that stays open, by who
    has the lock of the file.

    Calls: add -> what it is then.  Who watches adds too: without the lock there is nothing to see.
    """

    @classmethod
    def prepare(cls, directory: str) -> None:
        make(f"{directory}/count", encode(0))

    def next(self) -> Op:
        return Op("count", ("add",), self._add)

    def _add(self) -> int | str:
        fd = self.kept("count", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            data = os.pread(fd, VALUE_BYTES, 0)
            if not data.isdigit():
                return f"not a number: {data!r}"
            value = int(data) + 1
            os.pwrite(fd, encode(value), 0)
            os.fsync(fd)
            return value
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)

    @classmethod
    def looks(cls, directory: str) -> Iterator[Op]:
        """Nobody else is there: what it adds is told by all that were added before."""
        scene = cls(directory, 0, Random(0), Role.WORKS)
        yield Op("count", ("add",), lambda: _once(scene))


def _once(scene: Counters) -> int | str:
    try:
        return scene._add()
    finally:
        scene.close()
