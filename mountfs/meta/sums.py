"""What is counted: how much lies below a directory, and how much a user or a group has.

The rows are brought up to date by checkpoints only: they change with nearly every command.
"""

import struct
from typing import Final

from mountfs.types import Ino

_SUMS: Final = struct.Struct("<QQQQ")
_USE: Final = struct.Struct("<QQ")

NOBODY: Final = Ino(0)
"""The parent of the root."""


class Sums:
    """All that is charged to a directory or to one below it, itself not counted."""

    __slots__ = ("allocated", "directories", "files", "parent")

    parent: Ino
    """The next directory whose sums have this in them; NOBODY for the root.  A directory that has
    been removed keeps it as long as files that are still open are charged to it.
    """
    allocated: int
    """Sum of `Inode.allocated`."""
    files: int
    """All that is no directory.  A file with several names is one file."""
    directories: int

    def __init__(
        self, parent: Ino, allocated: int = 0, files: int = 0, directories: int = 0
    ) -> None:
        self.parent = parent
        self.allocated = allocated
        self.files = files
        self.directories = directories

    @property
    def inodes(self) -> int:
        return self.files + self.directories

    def pack(self) -> bytes:
        return _SUMS.pack(self.parent, self.allocated, self.files, self.directories)


def unpack_sums(row: bytes) -> Sums:
    parent, *counts = _SUMS.unpack(row)
    return Sums(Ino(parent), *counts)


class Use:
    """What a user or a group has in the whole filesystem, files without a name included."""

    __slots__ = ("allocated", "inodes")

    def __init__(self, allocated: int = 0, inodes: int = 0) -> None:
        self.allocated = allocated
        self.inodes = inodes

    def pack(self) -> bytes | None:
        if not self.inodes:
            assert not self.allocated
            return None
        return _USE.pack(self.allocated, self.inodes)


def unpack_use(row: bytes) -> Use:
    return Use(*_USE.unpack(row))
