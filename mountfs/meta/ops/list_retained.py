"""What of a directory is retained: its files, and the directories to look into next."""

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Query
from mountfs.meta.records import RETAINED, unpack_dentry
from mountfs.meta.retention import Retention, retention_of
from mountfs.meta.tree import Tree
from mountfs.types import Ino


class Retained(msgspec.Struct, frozen=True, array_like=True):
    name: bytes
    ino: Ino
    retention: Retention | None
    """None: it is a directory with retained files below it, or there were some."""


class RetainedPage(msgspec.Struct, frozen=True, array_like=True):
    found: tuple[Retained, ...]
    after: bytes
    """Where to go on; empty: that was all."""
    now: int
    """The time by which retention ends."""


class ListRetained(Query[RetainedPage], frozen=True, tag="list_retained"):
    """Of the next `limit` names of a directory behind `after`.  Raises NOT_DIRECTORY."""

    directory: Ino
    limit: int
    after: bytes = b""

    def read(self, tree: Tree) -> RetainedPage:
        directory = tree.inode(self.directory)
        if not directory.is_directory:
            raise FsError(Fault.NOT_DIRECTORY)
        found: list[Retained] = []
        last, looked = b"", 0
        if directory.marks & RETAINED:
            for key, value in tree.scan(
                keys.dentries(self.directory, self.after), limit=self.limit
            ):
                last, looked = key[9:], looked + 1
                inode = tree.inode(unpack_dentry(value)[0])
                if inode.marks & RETAINED:
                    kept = None if inode.is_directory else retention_of(tree, inode)
                    found.append(Retained(last, inode.ino, kept))
        after = last if looked == self.limit else b""
        return RetainedPage(tuple(found), after, tree.counters.protected_time)
