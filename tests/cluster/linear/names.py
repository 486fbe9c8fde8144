"""Names in two directories.

link(2) names an inode and a place: it is always one of two files whose own names stay, because
looking up the old name and making the new one are two steps on any Linux filesystem.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, ClassVar

from .scene import UNKNOWN, Op, Role, Scene, make

DIRECTORIES = ("d0", "d1")
NAMES = ("a", "b", "c")
KEPT = ("kept/0", "kept/1")
_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_CHOICES = {Role.GLANCES: 3, Role.WATCHES: 4, Role.WORKS: 17}
"""So many of the calls in `next`."""
_libc = ctypes.CDLL(None, use_errno=True)


class Names(Scene):
    """Calls: as in `mountfs.sim.models.names`; places are DIRECTORY/NAME."""

    faults: ClassVar[dict[int, str]] = {
        errno.ENOENT: "NOT_FOUND",
        errno.EEXIST: "EXISTS",
        errno.EISDIR: "IS_DIRECTORY",
        errno.ENOTDIR: "NOT_DIRECTORY",
    }
    unknown: ClassVar[frozenset[int]] = UNKNOWN | {errno.ESTALE}
    """Linux answers ESTALE, whatever the filesystem says, when another mount moves a directory to
    another directory while it is made or looked up here (`d_splice_alias` in fs/dcache.c).
    """

    def __init__(self, directory: str, number: int, random: Random, role: Role) -> None:
        super().__init__(directory, number, random, role)
        self._inodes = {name: os.stat(self.path(name)).st_ino for name in KEPT}

    @classmethod
    def prepare(cls, directory: str) -> None:
        for name in (*DIRECTORIES, "kept"):
            os.mkdir(f"{directory}/{name}")
        for name in KEPT:
            make(f"{directory}/{name}", b"")

    def next(self) -> Op:
        random = self.random
        place, other = random.sample([f"{top}/{name}" for top in DIRECTORIES for name in NAMES], 2)
        path, target = self.path(place), self.path(other)
        match random.randrange(_CHOICES[self.role]):
            case 0 | 1 | 2:
                return _op(lambda: os.lstat(path).st_ino, "lookup", place)
            case 3:
                top = random.choice(DIRECTORIES)
                return _op(lambda: _list(self.path(top)), "list", top)
            case 4 | 5 | 6:
                return _op(lambda: _make(path), "make", place)
            case 7:
                return _op(partial(_done, os.mkdir, path), "mkdir", place)
            case 8:
                name = random.choice(KEPT)
                ino = self._inodes[name]
                return _op(partial(_link, self.path(name), path, ino), "link", place, ino)
            case 9 | 10 | 11:
                return _op(partial(_done, os.unlink, path), "unlink", place)
            case 12:
                return _op(partial(_done, os.rmdir, path), "rmdir", place)
            case 13 | 14:
                return _op(partial(_done, os.rename, path, target), "rename", place, other, True)
            case 15:
                return _op(
                    partial(_rename, path, target, _NOREPLACE), "rename", place, other, False
                )
        return _op(partial(_rename, path, target, _EXCHANGE), "exchange", place, other)


def _op(act: Any, *what: Any) -> Op:
    return Op("names", what, act)


def _done(act: Callable[..., None], *paths: str) -> int:
    act(*paths)
    return 0


def _link(path: str, target: str, ino: int) -> int:
    os.link(path, target)
    return ino


def _make(path: str) -> int:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _list(path: str) -> list[tuple[str, int]]:
    with os.scandir(path) as entries:
        return sorted((entry.name, entry.inode()) for entry in entries)


def _rename(path: str, target: str, flags: int) -> int:
    old, new = os.fsencode(path), os.fsencode(target)
    if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return 0
