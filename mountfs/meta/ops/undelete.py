"""Undelete: give what is in the trash a name again, a directory with what was deleted in it by the
same run.
"""

from collections import Counter
from collections.abc import Iterator

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Query, Stamp, check_name
from mountfs.meta.permission import SEARCH, WRITE, permit
from mountfs.meta.records import UNCOUNTED, Inode
from mountfs.meta.trash import Entry, find_entry, newest_of, require_own, take_out, unpack_entry
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino

RESTORED_MAX = 1_000
LOOKED_MAX = 4_000
"""So much is done by one command, so that it does not hold up everybody."""
RUN_LOOKED_MAX = 100_000
"""Of what was deleted in one directory so much is looked at for the last run."""

Way = tuple[tuple[Ino, bytes], ...]
"""Directories that were given back, and how far their trash has been gone through; the last one is
to be gone through next.
"""


Name = tuple[Ino, bytes]
"""(directory, name)"""


class Restored(msgspec.Struct, frozen=True, array_like=True):
    names: tuple[Name, ...]
    """Of what has one again."""
    bytes: int
    skipped: int
    """What is another user's, or whose name was taken, and is still in the trash."""
    left: Way
    """To be gone through by `UndeleteIn`; empty: that was all."""


class Undelete(Command[Restored], frozen=True, tag="undelete"):
    """Give an entry the name `to_name` in directory `to`.  Raises NOT_FOUND where there is no such
    entry (any more), EXISTS, DENIED, OVER_QUOTA, and NOT_PERMITTED for who does not own it.
    """

    directory: Ino
    name: bytes
    order: int
    """0: the newest of that name."""
    to: Ino
    to_name: bytes
    cred: Cred

    def check(self) -> None:
        check_name(self.name)
        check_name(self.to_name)

    def apply(self, tree: Tree, stamp: Stamp) -> Restored:
        order = self.order
        entry = (
            find_entry(tree, self.directory, self.name, order)
            if order
            else newest_of(tree, self.directory, self.name)
        )
        if entry is None:
            raise FsError(Fault.NOT_FOUND, f"{self.name!r} is not in the trash (any more)")
        require_own(tree.inode(entry.ino), self.cred)
        target = tree.directory(self.to)
        permit(tree, target, self.cred, WRITE | SEARCH)
        tree.require_absent(self.to, self.to_name)

        inode = _restore(tree, entry, self.to, self.to_name)
        names, bytes = ((self.to, self.to_name),), inode.allocated
        if not inode.is_directory:
            return Restored(names, bytes, 0, ())
        rest = _restore_in(tree, ((inode.ino, b""),), entry.run, self.cred)
        return Restored(names + rest.names, bytes + rest.bytes, rest.skipped, rest.left)


class UndeleteIn(Command[Restored], frozen=True, tag="undelete_in"):
    """Give back what was deleted in directories that are there, by one run; of each name the
    newest, unless it is taken.  Raises DENIED, OVER_QUOTA.
    """

    way: Way
    run: int
    cred: Cred

    def check(self) -> None:
        if len(self.way) > 2 * RESTORED_MAX:
            raise FsError(Fault.INVALID, "too many directories at a time")

    def apply(self, tree: Tree, stamp: Stamp) -> Restored:
        for ino, _ in self.way:
            directory = tree.directory(ino)
            if directory.uid != self.cred.uid:  # or it is one of those that have come back
                permit(tree, directory, self.cred, WRITE | SEARCH)
        return _restore_in(tree, self.way, self.run, self.cred)


class LastRun(Query[tuple[int, int]], frozen=True, tag="last_run"):
    """(run, how many entries of a directory are of it) of what was deleted last in a directory, at
    `at` or before; 0: at any time.  Only what belongs to `uid`; 0: all.  (0, 0): nothing was.
    """

    directory: Ino
    uid: int
    at: int

    def read(self, tree: Tree) -> tuple[int, int]:
        counts: Counter[int] = Counter()
        last = run = 0
        for key, value in tree.scan(keys.trash_in(self.directory), limit=RUN_LOOKED_MAX):
            entry = unpack_entry(key, value)
            if self.at and entry.time > self.at:
                continue
            if self.uid not in (0, tree.inode(entry.ino).uid):
                continue
            counts[entry.run] += 1
            if entry.time > last:
                last, run = entry.time, entry.run
        return run, counts[run]


class Within(msgspec.Struct, frozen=True, array_like=True):
    """What `Undelete` of a directory would give back besides it."""

    files: int
    directories: int
    bytes: int
    skipped: int
    left: Way


class LookWithin(Query[Within], frozen=True, tag="look_within"):
    """What `UndeleteIn` would do, without doing it."""

    way: Way
    run: int
    uid: int

    def read(self, tree: Tree) -> Within:
        walk = _Walk(tree, self.way, self.run)
        files = directories = bytes = skipped = 0
        before = None
        for entry in walk:
            inode = tree.inode(entry.ino)
            place = entry.directory, entry.name
            taken = tree.get(keys.dentry(*place)) is not None
            if self.uid not in (0, inode.uid) or taken:
                skipped += 1
                continue
            if place == before:
                continue
            before = place
            files += not inode.is_directory
            directories += inode.is_directory
            bytes += inode.allocated
            walk.given_back(inode)
        return Within(files, directories, bytes, skipped, walk.left)


def _restore(tree: Tree, entry: Entry, parent: Ino, name: bytes) -> Inode:
    inode = take_out(tree, entry)
    inode.marks &= ~UNCOUNTED
    tree.add_name(parent, name, inode)
    inode.ctime = tree.stamp.time
    return inode


def _restore_in(tree: Tree, way: Way, run: int, cred: Cred) -> Restored:
    walk = _Walk(tree, way, run)
    names: list[Name] = []
    bytes = skipped = 0
    for entry in walk:
        inode = tree.inode(entry.ino)
        taken = tree.get(keys.dentry(entry.directory, entry.name)) is not None
        if cred.uid not in (0, inode.uid) or taken:
            skipped += (entry.directory, entry.name) not in names[-1:]
            continue
        _restore(tree, entry, entry.directory, entry.name)
        names.append((entry.directory, entry.name))
        bytes += inode.allocated
        walk.given_back(inode)
    return Restored(tuple(names), bytes, skipped, walk.left)


class _Walk:
    """The entries of one run in some directories, as many as one command may look at."""

    def __init__(self, tree: Tree, way: Way, run: int) -> None:
        self._tree = tree
        self._way = list(way)
        self._run = run
        self._looked = self._given = 0

    @property
    def left(self) -> Way:
        return tuple(self._way)

    def given_back(self, inode: Inode) -> None:
        """It is there again: what was deleted in it comes next."""
        self._given += 1
        if inode.is_directory:
            self._way.append((inode.ino, b""))

    def __iter__(self) -> Iterator[Entry]:
        while self._way:
            directory, after = self._way.pop()
            # As before the command: it changes only entries that have been gone through.
            for key, value in self._tree.stored(keys.trash_in(directory, after)):
                if self._looked >= LOOKED_MAX or self._given >= RESTORED_MAX:
                    self._way.append((directory, after))
                    return
                self._looked += 1
                after = key[9:]
                entry = unpack_entry(key, value)
                if entry.run == self._run:
                    below = len(self._way)
                    yield entry
                    if len(self._way) > below:  # a directory: first what is in it
                        self._way.insert(below, (directory, after))
                        break
