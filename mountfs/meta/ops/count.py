"""What a full count of a tree asks for: listings, files that are open without a name, paths."""

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Query
from mountfs.meta.records import UNCOUNTED, unpack_dentry, unpack_entry
from mountfs.meta.tree import Tree
from mountfs.types import ROOT, Ino

NAMES_MAX = 100_000
"""Of one directory are looked at for the name of another one."""


class Counted(msgspec.Struct, frozen=True, array_like=True):
    """An inode, as it is charged."""

    ino: Ino
    uid: int
    gid: int
    bytes: int
    is_directory: bool


class CountIn(Query[tuple[int, tuple[Counted, ...]]], frozen=True, tag="count_in"):
    """What the next `limit` names of a directory, behind a position, have to be charged to it: a
    file with several names only where its home is, and once for each name there.

    (position of the last name, 0 at the end; what is charged)
    """

    ino: Ino
    after: int
    limit: int

    def read(self, tree: Tree) -> tuple[int, tuple[Counted, ...]]:
        if not tree.inode(self.ino).is_directory:
            raise FsError(Fault.NOT_DIRECTORY)
        found: list[Counted] = []
        last = count = 0
        for key, value in tree.scan(keys.entries(self.ino, self.after), limit=self.limit):
            last, count = keys.last_64(key), count + 1
            inode = tree.inode(unpack_entry(value)[0])
            if inode.parent == self.ino:
                is_directory = inode.is_directory
                found.append(
                    Counted(inode.ino, inode.uid, inode.gid, inode.allocated, is_directory)
                )
        return last if count == self.limit else 0, tuple(found)


class OpenBelow(Query[tuple[Counted, ...]], frozen=True, tag="open_below"):
    """Files and directories without a name, still in use, that are charged to a directory or to one
    below it; the first `limit` of them.  `ListTrash` has those that are in the trash.
    """

    ino: Ino
    limit: int

    def read(self, tree: Tree) -> tuple[Counted, ...]:
        found: list[Counted] = []
        for key, _ in tree.scan(keys.orphans()):
            if len(found) == self.limit:
                break
            _, ino = keys.session_ino(key)
            inode = tree.inode(ino)
            if inode.marks & UNCOUNTED:
                continue
            if any(self.ino == above for above, _ in tree.accounts.chain(inode.parent)):
                is_directory = inode.is_directory
                found.append(Counted(ino, inode.uid, inode.gid, inode.allocated, is_directory))
        return tuple(found)


class PathOf(Query[bytes], frozen=True, tag="path_of"):
    """Of a directory, from the root of the mount; b"" where it has none, or lies among too many."""

    ino: Ino

    def read(self, tree: Tree) -> bytes:
        names: list[bytes] = []
        ino = self.ino
        while ino != ROOT:
            parent = tree.inode(ino).parent
            names_there = tree.scan(keys.dentries(parent), limit=NAMES_MAX)
            name = next((key[9:] for key, row in names_there if unpack_dentry(row)[0] == ino), b"")
            if not name:
                return b""
            names.append(name)
            ino = parent
        return b"/" + b"/".join(reversed(names))
